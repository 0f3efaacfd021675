"""How far a reader has come in an answer: event ids say it, and a client says it back to go on from there.

The id of an event is `<id of the answer>-<position>.<position>…`, one position for each choice: the number of its
tokens that were sent, with an `e` behind it once its end was sent (the last text of a choice may come with its end,
after its last token).
"""

import re
from collections.abc import Iterable

import msgspec

from service.errors import BadRequest

MAX_POSITIONS = 64
"""Choices that an event id tells the positions of; events of larger answers have none, for these ids grow with them."""
_POSITION = re.compile(r"([0-9]{1,10})(e?)")


class StreamPosition(msgspec.Struct, frozen=True):
    """How much of one choice was sent."""

    num_tokens: int = 0
    has_end: bool = False


START = StreamPosition()


def write_positions(positions: Iterable[StreamPosition]) -> str:
    """Return what follows `<id of the answer>-`."""
    return ".".join(
        [f"{position.num_tokens}e" if position.has_end else str(position.num_tokens) for position in positions]
    )


def read_after(answer_id: str, last_event_id: str | None, starting_after: str | None) -> list[StreamPosition] | None:
    """Return where a client wants to go on; `None`: it has nothing yet.

    Args:
        answer_id: Of the answer that it asks for.
        last_event_id: The header `Last-Event-ID`, which a browser sends when it connects again: it goes first.
        starting_after: The parameter, which stays in the address for ever.

    Raises:
        BadRequest: not written as an event id is, or another answer's.
    """
    if last_event_id is not None:
        prefix, dash, positions = last_event_id.rpartition("-")
        if dash and prefix != answer_id:
            raise BadRequest("Last-Event-ID: names an event of another stream", param="Last-Event-ID")
        return _read_positions(positions if dash else "", "Last-Event-ID", f"{answer_id}-")
    return None if starting_after is None else _read_positions(starting_after, "starting_after", "")


def _read_positions(text: str, param: str, prefix: str) -> list[StreamPosition]:
    matches = [_POSITION.fullmatch(part) for part in text.split(".")]
    positions = [StreamPosition(int(match[1]), bool(match[2])) for match in matches if match is not None]
    if len(positions) < len(matches):
        raise BadRequest(
            f"{param}: must say how many tokens of each choice were read, as the ids of events do, "
            f"e.g. {prefix}12 or {prefix}12.7e",
            param=param,
        )
    return positions
