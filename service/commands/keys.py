"""The commands `minigpt keys …`: who may ask the gateways."""

import sys
from typing import Annotated

import typer

from service.commands.backends import open_key_store
from service.commands.options import JsonOption
from service.commands.output import show_json, show_table
from service.keys import create_key

StoreOption = Annotated[str, typer.Option(metavar="FILE|redis", envvar="MINIGPT_KEYS", help="Where the API keys are.")]
QueueUrlOption = Annotated[
    str | None, typer.Option(metavar="URL", envvar="MINIGPT_QUEUE", help="With --keys redis: the queue's Redis.")
]

app = typer.Typer(no_args_is_help=True, help="Give out and take back the API keys of gateways.")


@app.command()
def add(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose key it is.")],
    keys: StoreOption,
    queue: QueueUrlOption = None,
    rate: Annotated[int | None, typer.Option(help="Requests a minute, at each gateway. Default: no limit.")] = None,
) -> None:
    """Print a new key. It is not stored, only its hash, so it is not shown again."""
    secret, key = create_key(tenant, rate)
    open_key_store(keys, queue).add(key)
    typer.echo(secret)
    sys.stderr.write(f"key {key.id} of {tenant}: keep it now, it is not shown again\n")


@app.command("list")
def list_(keys: StoreOption, queue: QueueUrlOption = None, as_json: JsonOption = False) -> None:
    """List the keys by their ids."""
    known = open_key_store(keys, queue).read()
    if as_json:
        show_json([{"id": key.id, "tenant": key.tenant, "rate": key.rate, "created": key.created} for key in known])
    else:
        rows = [(key.id, key.tenant, key.rate or "no limit", key.created.isoformat(" ", "seconds")) for key in known]
        show_table(("id", "tenant", "requests a minute", "created"), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as `minigpt keys list` shows it.")],
    keys: StoreOption,
    queue: QueueUrlOption = None,
) -> None:
    """Forget a key; within a second no gateway takes it."""
    open_key_store(keys, queue).revoke(key_id)
    typer.echo(f"revoked {key_id}")
