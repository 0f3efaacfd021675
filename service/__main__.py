"""The command `minigpt`: every command of both packages under one name. Only what runs imports torch."""

import typer

from service.bench.cli import app as bench_app
from service.commands.gateway import gateway
from service.commands.keys import app as keys_app
from service.commands.options import BUNDLED
from service.commands.queue import app as queue_app
from service.commands.serve import serve
from service.commands.worker import worker
from training.__main__ import app as training_app
from training.command_line import run

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train a small language model on your own text, and serve it."
)
app.add_typer(training_app)
for command in (serve, gateway, worker):
    app.command()(command)
app.add_typer(queue_app, name="queue")
app.add_typer(keys_app, name="keys")
app.add_typer(bench_app, name="bench", context_settings={"obj": BUNDLED})


def main() -> None:
    """Run the command that was typed."""
    run(app)


if __name__ == "__main__":
    main()
