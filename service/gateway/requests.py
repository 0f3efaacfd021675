"""From a body to the requests of the queue: one for each choice of each prompt."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from service.errors import BadRequest, DoesNotFit
from service.gateway.models import ServedModel
from service.gateway.schemas import GenerateBody
from service.protocol import Grammar, Request, SamplingParams

DEFAULT_MAX_TOKENS = 128
_PLAIN_PARAMS = (
    *("temperature", "top_p", "min_p", "logprobs"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Fields that go from the body to `SamplingParams` as they are; its defaults hold for what is left out."""
Prompt = tuple[int, ...]
"""Token ids, at least one."""


def make_requests(
    body: GenerateBody, model: ServedModel, answer_id: str, tenant: str, rng: random.Random
) -> list[Request]:
    """Return what `body` asks for; the ids are `<answer id>-<k>`.

    Args:
        body: What was sent.
        model: The one that it names.
        answer_id: Id of the whole answer.
        tenant: Whose it is.
        rng: Draws the seed if the body has none.

    Raises:
        BadRequest: a token id that the vocabulary lacks.
        DoesNotFit: prompt and `max_tokens` are more than the context.
    """
    prompts = _read_prompts(body, model)
    template = Request(
        id=answer_id,
        model=model.name,
        revision=model.revision,
        token_ids=(),
        params=_read_params(body, model, prompts, rng),
        deadline_s=body.deadline_s,
        tenant=tenant,
        priority=body.priority or "normal",
        num_choices=len(prompts) * (body.n or 1),
        echo=bool(body.echo),
    )
    return list(_number_choices(template, prompts, body.n or 1))


def _number_choices(template: Request, prompts: Sequence[Prompt], num_choices: int) -> Iterator[Request]:
    numbers = itertools.count()
    for prompt in prompts:
        for choice in range(num_choices):
            params = msgspec.structs.replace(template.params, choice=choice)
            request_id = f"{template.id}-{next(numbers)}"
            yield msgspec.structs.replace(template, id=request_id, token_ids=prompt, params=params)


def _read_prompts(body: GenerateBody, model: ServedModel) -> list[Prompt]:
    start = (model.tokenizer.end_of_text_id,)
    if body.token_ids is not None:
        _require_known(body.token_ids, model, "token_ids")
        return [tuple(body.token_ids) or start]
    texts = [body.prompt] if body.prompt is not None else body.prompts or []
    return [tuple(model.tokenizer.encode(text)) or start for text in texts]


def _read_params(
    body: GenerateBody, model: ServedModel, prompts: Sequence[Prompt], rng: random.Random
) -> SamplingParams:
    plain: dict[str, Any] = {name: given for name in _PLAIN_PARAMS if (given := getattr(body, name)) is not None}
    bias = {int(token_id): added for token_id, added in (body.logit_bias or {}).items()}
    _require_known(bias, model, "logit_bias")
    return SamplingParams(
        max_tokens=_fit(body.max_tokens, max(map(len, prompts)), model.context_length),
        seed=rng.getrandbits(63) if body.seed is None else body.seed,
        top_k=body.top_k or None,
        logit_bias=bias,
        stop=tuple(body.stop or ()),
        grammar=_read_grammar(body),
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        **plain,
    )


def _read_grammar(body: GenerateBody) -> Grammar | None:
    if body.regex is not None:
        return Grammar(kind="regex", source=body.regex)
    return None if body.json_schema is None else Grammar(kind="json_schema", source=body.json_schema)


def _require_known(token_ids: Iterable[int], model: ServedModel, param: str) -> None:
    if not all(0 <= token_id < model.vocab_size for token_id in token_ids):
        raise BadRequest(f"{param}: token ids of {model.name} are 0 to {model.vocab_size - 1}", param=param)


def _fit(max_tokens: int | None, num_prompt_tokens: int, context_length: int) -> int:
    num_left = context_length - num_prompt_tokens
    wanted = min(DEFAULT_MAX_TOKENS, max(num_left, 1)) if max_tokens is None else max_tokens
    if wanted > num_left:
        raise DoesNotFit(
            f"max_tokens: {num_prompt_tokens} prompt tokens and {wanted} new ones are more than the context of "
            f"{context_length}; shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    return wanted
