"""The commands `minigpt queue …`: what an operator sees of a queue in Redis, and may end."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, TypeVar

import typer

from service.commands.backends import open_gateway_queue
from service.commands.options import JsonOption, QueueOption
from service.commands.output import show_json, show_table
from service.config import QueueSettings
from service.errors import NotFound, Unavailable
from service.logs import configure_logging
from service.queue.base import GatewayQueue

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Look into a queue in Redis, and end what is in it.")


@app.command()
def status(queue: QueueOption, as_json: JsonOption = False) -> None:
    """Tell what waits, what runs and how many work."""
    stats = _ask(queue, lambda opened: opened.stats())
    counts: dict[str, object] = {
        "waiting": stats.waiting,
        "waiting_tokens": stats.waiting_tokens,
        "running": stats.running,
        "workers": stats.workers,
        "resumed": stats.resumed,
        "fenced": stats.fenced,
        "quarantined": stats.quarantined,
    }
    revisions = sorted(stats.revisions)
    if as_json:
        show_json({**counts, "revisions": revisions})
    else:
        show_table(("", "now"), [*counts.items(), *(("serves", revision) for revision in revisions)])


@app.command()
def cancel(
    queue: QueueOption,
    answer: Annotated[
        str, typer.Argument(metavar="ID", help="Of an answer, or of one of its sequences: <answer>-<k>.")
    ],
) -> None:
    """End an answer, or one sequence of it: at once where it waits, else within a step."""
    for request_id in _ask(queue, lambda opened: _cancel(opened, answer)):
        typer.echo(f"cancelled {request_id}")


@app.command()
def dead(queue: QueueOption, as_json: JsonOption = False) -> None:
    """List what was given up because too many workers died with it, the newest first."""
    requests = _ask(queue, lambda opened: opened.dead())
    if as_json:
        show_json(requests)
        return
    columns = ("ended", "id", "tenant", "model", "revision", "attempts")
    show_table(
        columns,
        [(_time(request.ended), *(getattr(request, column) for column in columns[1:])) for request in requests],
    )


def _ask(url: str, ask: Callable[[GatewayQueue], Awaitable[T]]) -> T:
    configure_logging("error", "plain")
    return asyncio.run(_ask_queue(url, ask))


async def _ask_queue(url: str, ask: Callable[[GatewayQueue], Awaitable[T]]) -> T:
    async with open_gateway_queue(url, QueueSettings()) as queue:
        try:
            return await ask(queue)
        except Unavailable as error:
            from service.queue.redis.address import reason_of

            why = reason_of(error.__cause__ or error)
            raise Unavailable(f"the queue at {queue.address} cannot be reached ({why}): does its Redis run?") from error


async def _cancel(queue: GatewayQueue, id_: str) -> list[str]:
    ids = await _find_ids(queue, id_)
    for request_id in ids:
        await queue.cancel(request_id)
    return ids


async def _find_ids(queue: GatewayQueue, id_: str) -> list[str]:
    """Return the ids of the sequences that `id_` means: all of an answer, or itself."""
    answer = id_.rpartition("-")[0] or id_
    ids = [request.id for request in await queue.find(answer)]
    if id_ not in (answer, *ids):
        raise NotFound(f"no sequence '{id_}': the answer has {ids[0]} to {ids[-1]}")
    return ids if id_ == answer else [id_]


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(" ", "seconds")
