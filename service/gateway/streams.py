"""Answers found again by their ids, on any gateway: on their way, or ended a while ago."""

import re
from collections.abc import Mapping, Sequence

from service.errors import BadRequest, NotFound
from service.gateway.choice import Choice
from service.gateway.generation import Generation
from service.gateway.models import ServedModel
from service.gateway.stream_position import START, StreamPosition
from service.protocol import Request
from service.queue.base import GatewayQueue

_ANSWER_ID = re.compile(r"[0-9a-f]{32}")


class Streams:
    """What clients may join, resume and cancel. An id belongs to its tenant, and is no credential.

    Args:
        queue: Where the answers are.
        models: What is served here, by name.
    """

    def __init__(self, queue: GatewayQueue, models: Mapping[str, ServedModel]) -> None:
        self._queue = queue
        self._models = models

    async def join(self, answer_id: str, tenant: str, after: Sequence[StreamPosition] | None = None) -> Generation:
        """Return the answer for one who reads along.

        Args:
            answer_id: Of the answer.
            tenant: Who asks.
            after: Where to go on in each choice; `None`: from the start.

        Raises:
            NotFound: there is none, it is another tenant's, or its model is not served here.
            BadRequest: the answer never has this position.
        """
        requests = await self._find(answer_id, tenant)
        model = self._model_of(requests[0])
        positions = [START] * len(requests) if after is None else after
        _require_possible(positions, requests)
        choices = [
            Choice(request, index, model.tokenizer, position)
            for index, (request, position) in enumerate(zip(requests, positions, strict=True))
        ]
        return Generation(answer_id, choices, self._queue)

    async def cancel(self, answer_id: str, tenant: str) -> None:
        """End every choice of an answer, whoever reads it.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        for request in await self._find(answer_id, tenant):
            await self._queue.cancel(request.id)

    async def _find(self, answer_id: str, tenant: str) -> list[Request]:
        unknown = NotFound("no such stream: it never began here, or its end is too long ago")
        if not _ANSWER_ID.fullmatch(answer_id):
            raise unknown
        try:
            requests = await self._queue.find(answer_id)
        except NotFound:
            raise unknown from None
        if requests[0].tenant != tenant:
            raise unknown
        return requests

    def _model_of(self, request: Request) -> ServedModel:
        model = self._models.get(request.model)
        if model is None or model.revision != request.revision:
            raise NotFound(
                f"this stream is made by {request.model} of revision {request.revision}, which this server lacks: "
                "ask one that has it"
            )
        return model


def _require_possible(positions: Sequence[StreamPosition], requests: Sequence[Request]) -> None:
    if len(positions) != len(requests):
        raise BadRequest(
            f"this stream has {len(requests)} choice(s): the position to go on after names {len(positions)}"
        )
    if any(
        position.num_tokens > request.params.max_tokens for position, request in zip(positions, requests, strict=True)
    ):
        raise BadRequest(f"this stream has at most {requests[0].params.max_tokens} tokens in each choice")
