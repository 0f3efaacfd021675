"""From a body to requests in the queue: which model, which tokens, whether they fit, who could answer."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from service.errors import BadRequest, DoesNotFit, NotFound, Unavailable
from service.gateway.generation import Choice, Generation
from service.gateway.schemas import GenerateBody
from service.grammar import Grammars
from service.grammar_errors import GrammarError
from service.metrics import GatewayMetrics
from service.protocol import Grammar, Request, SamplingParams
from service.queue.base import GatewayQueue
from training.tokenizers.base import Tokenizer

DEFAULT_MAX_TOKENS = 128
_RETRY_AFTER_S = 1.0
_PLAIN_PARAMS = (
    *("temperature", "top_p", "min_p", "logprobs"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Fields that go from the body to `SamplingParams` as they are; its defaults hold for what is left out."""


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the gateway knows it: no weights."""

    name: str
    revision: str
    """Hash of the weights."""
    tokenizer: Tokenizer
    context_length: int
    """Tokens that prompt and answer may have together."""
    vocab_size: int


class Prompt(msgspec.Struct, frozen=True):
    """What is continued: its text, for `echo`, and its tokens, at least one."""

    text: str
    token_ids: tuple[int, ...]


class Admission:
    """Takes requests in, or refuses them before anything is computed.

    Args:
        queue: Where they go.
        models: What is served.
        metrics: Counts what is accepted.
        clock: Seconds, Unix time; deadlines go by it.
        rng: Draws the seeds of requests without one.
    """

    def __init__(
        self,
        queue: GatewayQueue,
        models: Sequence[ServedModel],
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.draining = False
        """Set to refuse new requests; those that were accepted go on."""
        self.models = {model.name: model for model in models}
        self._grammars = {model.name: Grammars(model.tokenizer) for model in models}
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._loaded: frozenset[str] = frozenset()

    async def admit(self, body: GenerateBody, request_id: str) -> Generation:
        """Put what `body` asks for into the queue.

        Args:
            body: The request.
            request_id: Id of the answer; those of its sequences are `<request id>-<k>`.

        Raises:
            BadRequest: a token id that the vocabulary lacks; a grammar that cannot be compiled or that the vocabulary
                cannot spell; no model named where there are several.
            NotFound: no such model.
            DoesNotFit: prompt and `max_tokens` are more than the context.
            QueueFull: too much waits already.
            Unavailable: draining, or no worker has loaded this model yet.
        """
        arrived = time.perf_counter()
        model = self._resolve(body.model)
        prompts = _read_prompts(body, model)
        params = self._read_params(body, model, prompts)
        if params.grammar is not None:
            await self._require_possible(params.grammar, model)
        await self._require_loaded(model)
        template = Request(
            id=request_id,
            model=model.name,
            revision=model.revision,
            token_ids=(),
            params=params,
            deadline_s=body.deadline_s,
        )
        choices = list(_make_choices(template, prompts, body, model.tokenizer))
        await self._queue.submit([choice.request for choice in choices])
        metrics = self._metrics.models[model.name]
        for choice in choices:
            metrics.accept(len(choice.request.token_ids))
        return Generation(request_id, choices, self._queue, metrics, arrived)

    async def require_ready(self) -> None:
        """Pass when a worker for every model holds its lease and the queue answers.

        Raises:
            Unavailable: not so, or draining.
        """
        self._require_open()
        alive = (await self._queue.stats()).revisions
        missing = [model.name for model in self.models.values() if model.revision not in alive]
        if missing:
            raise Unavailable(f"no worker serves {', '.join(missing)}", retry_after_s=_RETRY_AFTER_S)

    async def _require_possible(self, grammar: Grammar, model: ServedModel) -> None:
        try:
            await asyncio.to_thread(self._grammars[model.name].start, grammar)
        except GrammarError as error:
            raise BadRequest(str(error), param=grammar.kind) from None

    async def _require_loaded(self, model: ServedModel) -> None:
        self._require_open()
        if model.revision in self._loaded:
            return  # should its worker be gone, the queue keeps the request for the next
        self._loaded |= (await self._queue.stats()).revisions
        if model.revision not in self._loaded:
            raise Unavailable(f"no worker has loaded {model.name} yet", retry_after_s=_RETRY_AFTER_S)

    def _require_open(self) -> None:
        if self.draining:
            raise Unavailable("this server is shutting down", retry_after_s=_RETRY_AFTER_S)

    def _resolve(self, name: str | None) -> ServedModel:
        names = ", ".join(self.models)
        if name is None:
            if len(self.models) > 1:
                raise BadRequest(f"model: name one of {names}", param="model")
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotFound(f"model: no such model here; there is {names}", param="model")
        return self.models[name]

    def _read_params(self, body: GenerateBody, model: ServedModel, prompts: Sequence[Prompt]) -> SamplingParams:
        plain: dict[str, Any] = {name: given for name in _PLAIN_PARAMS if (given := getattr(body, name)) is not None}
        bias = {int(token_id): added for token_id, added in (body.logit_bias or {}).items()}
        _require_known(bias, model, "logit_bias")
        return SamplingParams(
            max_tokens=_fit(body.max_tokens, max(len(prompt.token_ids) for prompt in prompts), model.context_length),
            seed=self._rng.getrandbits(63) if body.seed is None else body.seed,
            top_k=body.top_k or None,
            logit_bias=bias,
            stop=tuple(body.stop or ()),
            grammar=_read_grammar(body),
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            **plain,
        )


def _read_prompts(body: GenerateBody, model: ServedModel) -> list[Prompt]:
    tokenizer = model.tokenizer
    start = (tokenizer.end_of_text_id,)
    if body.token_ids is not None:
        _require_known(body.token_ids, model, "token_ids")
        text = tokenizer.decode(body.token_ids) if body.echo else ""
        return [Prompt(text, tuple(body.token_ids) or start)]
    texts = [body.prompt] if body.prompt is not None else body.prompts or []
    return [Prompt(text, tuple(tokenizer.encode(text)) or start) for text in texts]


def _read_grammar(body: GenerateBody) -> Grammar | None:
    if body.regex is not None:
        return Grammar(kind="regex", source=body.regex)
    return None if body.json_schema is None else Grammar(kind="json_schema", source=body.json_schema)


def _require_known(token_ids: Iterable[int], model: ServedModel, param: str) -> None:
    if not all(0 <= token_id < model.vocab_size for token_id in token_ids):
        raise BadRequest(f"{param}: token ids of {model.name} are 0 to {model.vocab_size - 1}", param=param)


def _fit(max_tokens: int | None, num_prompt_tokens: int, context_length: int) -> int:
    room = context_length - num_prompt_tokens
    wanted = min(DEFAULT_MAX_TOKENS, max(room, 1)) if max_tokens is None else max_tokens
    if wanted > room:
        raise DoesNotFit(
            f"max_tokens: {num_prompt_tokens} prompt tokens and {wanted} new ones are more than the context of "
            f"{context_length}; shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    return wanted


def _make_choices(
    template: Request, prompts: Sequence[Prompt], body: GenerateBody, tokenizer: Tokenizer
) -> Iterator[Choice]:
    numbers = itertools.count()
    for prompt in prompts:
        for choice in range(body.n or 1):
            index = next(numbers)
            request = msgspec.structs.replace(
                template,
                id=f"{template.id}-{index}",
                token_ids=prompt.token_ids,
                params=msgspec.structs.replace(template.params, choice=choice),
            )
            yield Choice(request, index, tokenizer, prompt.text if body.echo else "")
