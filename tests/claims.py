"""Requests, claims, and what a worker says of them: in as few words as a test needs."""

from collections.abc import Iterable
from typing import Any

from service.protocol import Claim, Emission, Request, SamplingParams


def make_request(request_id: str, *, num_prompt: int = 3, **fields: Any) -> Request:
    """Return a request; its cost is `num_prompt` + `max_tokens`.

    Args:
        request_id: Its id.
        num_prompt: Tokens of its prompt.
        fields: Of the request, or of its `SamplingParams`.
    """
    params = {name: fields.pop(name) for name in SamplingParams.__struct_fields__ if name in fields}
    about = {"model": "tiny", "revision": "r1", "token_ids": tuple(range(num_prompt))} | fields
    return Request(id=request_id, params=SamplingParams(**({"max_tokens": 5, "seed": 7} | params)), **about)


def emission(claim: Claim, *token_ids: int, base: int | None = None, **fields: Any) -> Emission:
    """Return what one step adds to a claim: tokens behind those it came with, unless `base` is given."""
    at = len(claim.token_ids) if base is None else base
    return Emission(id=claim.request.id, epoch=claim.epoch, base=at, token_ids=token_ids, **fields)


def ids_of(claims: Iterable[Claim]) -> list[str]:
    """Return the ids of what was claimed."""
    return [claim.request.id for claim in claims]
