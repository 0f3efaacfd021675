"""Taking requests in: which model, whether it can be done, who could answer, and into the queue."""

import asyncio
import random
import time
from collections.abc import Mapping

import msgspec

from service.errors import BadRequest, Unavailable
from service.gateway.answer_metrics import AnswerMetrics
from service.gateway.choice import Choice
from service.gateway.generation import Generation
from service.gateway.idempotency import read_idempotency
from service.gateway.lifecycle import Lifecycle, Phase
from service.gateway.models import ServedModel, choose_model
from service.gateway.requests import make_requests
from service.gateway.schemas import GenerateBody
from service.gateway.streams import Streams
from service.grammar import Grammars
from service.grammar_errors import GrammarError
from service.metrics import GatewayMetrics
from service.protocol import Grammar, Request
from service.queue.base import GatewayQueue


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks."""

    request_id: str
    """Ours; the answer is named after it."""
    tenant: str
    idempotency_key: str | None
    """As it was sent."""


class Admission:
    """Takes requests in, or refuses them before anything is computed.

    Args:
        queue: Where they go.
        models: What is served, by name.
        streams: Where an answer is found that was asked for before.
        metrics: Counts what is accepted.
        lifecycle: Of the gateway; while it serves, requests are taken.
        rng: Draws the seeds of requests without one.
        wait_for_workers: Whether requests for a model are taken before a worker was ever seen to have loaded it.
    """

    def __init__(
        self,
        queue: GatewayQueue,
        models: Mapping[str, ServedModel],
        streams: Streams,
        metrics: GatewayMetrics,
        lifecycle: Lifecycle,
        rng: random.Random,
        *,
        wait_for_workers: bool = False,
    ) -> None:
        self._queue = queue
        self._models = models
        self._grammars = {name: Grammars(model.tokenizer) for name, model in models.items()}
        self._streams = streams
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._rng = rng
        self._wait_for_workers = wait_for_workers
        self._loaded: frozenset[str] = frozenset()

    async def admit(self, body: GenerateBody, caller: Caller) -> Generation:
        """Put what `body` asks for into the queue, or join what the same idempotency key asked for before.

        Raises:
            BadRequest: a token id that the vocabulary lacks; a grammar that cannot be compiled or that the vocabulary
                cannot spell; no model named where there are several; an idempotency key that is none, or another
                request's.
            NotFound: no such model.
            DoesNotFit: prompt and `max_tokens` are more than the context.
            QueueFull: too much waits already.
            Unavailable: draining, no worker has loaded this model yet, or the queue cannot be reached.
        """
        arrived = time.perf_counter()
        idempotency = read_idempotency(caller.idempotency_key, body)
        model = choose_model(self._models, body.model)
        requests = make_requests(body, model, caller.request_id, caller.tenant, self._rng)
        await self._require_possible(requests[0].params.grammar, model)
        await self._require_loaded(model)
        accepted = await self._queue.submit(requests, idempotency)
        if accepted[0] != requests[0].id:
            return await self._streams.join(accepted[0].rpartition("-")[0], caller.tenant)
        return self._follow(requests, model, caller, arrived, outlives_client=bool(idempotency or body.background))

    async def require_ready(self) -> None:
        """Pass when a worker for every model holds its lease and the queue answers.

        Raises:
            Unavailable: not so, or draining.
        """
        self._require_open()
        alive = (await self._queue.stats()).revisions
        missing = [model.name for model in self._models.values() if model.revision not in alive]
        if missing:
            raise Unavailable(f"no worker serves {', '.join(missing)}")

    def _follow(
        self, requests: list[Request], model: ServedModel, caller: Caller, arrived: float, *, outlives_client: bool
    ) -> Generation:
        metrics = AnswerMetrics(self._metrics.models[model.name], arrived)
        metrics.accept(requests)
        choices = [Choice(request, index, model.tokenizer) for index, request in enumerate(requests)]

        def is_wanted_without_client() -> bool:
            return outlives_client or self._lifecycle.phase is Phase.LEAVING

        return Generation(caller.request_id, choices, self._queue, metrics, is_wanted=is_wanted_without_client)

    async def _require_possible(self, grammar: Grammar | None, model: ServedModel) -> None:
        if grammar is None:
            return
        try:
            await asyncio.to_thread(self._grammars[model.name].start, grammar)
        except GrammarError as error:
            raise BadRequest(str(error), param=grammar.kind) from None

    async def _require_loaded(self, model: ServedModel) -> None:
        self._require_open()
        if self._wait_for_workers or model.revision in self._loaded:
            return  # should its worker be gone, the queue keeps the request for the next
        self._loaded |= (await self._queue.stats()).revisions
        if model.revision not in self._loaded:
            raise Unavailable(f"no worker has loaded {model.name} yet")

    def _require_open(self) -> None:
        if self._lifecycle.phase is not Phase.SERVING:
            raise Unavailable("this server is shutting down")
