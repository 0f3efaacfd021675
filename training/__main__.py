"""The commands that make checkpoints and evaluate them, under one name. torch is imported when one runs."""

import typer

from training.command_line import run
from training.commands.compare import compare
from training.commands.convert import export, import_
from training.commands.evaluate import evaluate
from training.commands.sample import sample
from training.commands.train import train

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train a mini-GPT on your own text.")
for command in (train, compare, evaluate, sample, export):
    app.command()(command)
app.command("import")(import_)


def main() -> None:
    """Run the command that was typed."""
    run(app)


if __name__ == "__main__":
    main()
