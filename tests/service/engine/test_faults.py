"""What goes wrong with one sequence ends that one; what there is no room for is refused at the start."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.kernels.library import best_level
from service.engine.loading import make_engine
from service.engine.scheduler import ScheduledChunk
from service.errors import SettingError
from service.protocol import Claim
from tests.service.engine.stepping import finish, run
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

MakeGPT = Callable[..., GPT]
MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]

POISON = 13
INNOCENTS = {
    "greedy": ([5, 3, 8, 2, 11], {}),
    "drawn": ([9] * 21, {"temperature": 0.9, "top_p": 0.9, "seed": 4}),
    "scored": ([4, 7, 4], {"logprobs": 2, "prompt_logprobs": True}),
}
NOT_FINITE = "the model's logits are not finite"


class Sick:
    """A runner whose logits of one request are not finite from its `start`th row on, as a broken kernel's might be."""

    def __init__(self, engine: Engine, id_: str, start: int, value: float) -> None:
        self._run = engine.backend.runner.run
        self._id = id_
        self._start = start
        self._value = value
        engine.backend = engine.backend._replace(runner=self)

    def run(self, chunks: list[ScheduledChunk]) -> Tensor:
        logits = self._run(chunks).clone()
        rows = [chunk.sequence.id for chunk in chunks for _ in range(chunk.num_logits)]
        for row in [row for row, id_ in enumerate(rows) if id_ == self._id]:
            self._start -= 1
            if self._start < 0:
                logits[row, 3] = self._value
        return logits


def innocents(make_claim: MakeClaim) -> list[Claim]:
    return [
        make_claim(id_, prompt, **params, logit_bias={POISON: -100.0}) for id_, (prompt, params) in INNOCENTS.items()
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"logprobs": 1, "prompt_logprobs": True}], ids=str)
def test_logits_that_are_not_finite_half_way_end_that_sequence_alone(
    make_gpt: MakeGPT, engine_of: MakeEngine, make_claim: MakeClaim, value: float, params: dict[str, object]
) -> None:
    model, params = make_gpt(), params | {"logit_bias": {5: 100.0}}
    expected = finish(engine_of(model), *innocents(make_claim))
    engine = engine_of(model)
    Sick(engine, "sick", 4 if "logprobs" not in params else 7, value)
    made = run(engine, *innocents(make_claim), make_claim("sick", [1, 2, 3, 4], **params))
    sick = made.pop("sick")
    assert (sick.token_ids, sick.end.finish_reason, sick.end.error) == ([5] * 4, "error", NOT_FINITE)
    assert {id_: each.token_ids for id_, each in made.items()} == expected
    assert engine.last_step.kv_cache_usage == 0


@pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_no_arithmetic_hides_what_is_not_finite(
    make_gpt: MakeGPT, tokenizer: CharTokenizer, make_claim: MakeClaim, dtype: str
) -> None:
    settings = EngineSettings(dtype=dtype, kernels="native", kv_cache_mb=4)
    model = make_gpt()
    expected = finish(make_engine(model, tokenizer, settings), *innocents(make_claim))
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
    engine = make_engine(model, tokenizer, settings)
    sick = make_claim("sick", [1, 2, POISON, 4]), make_claim("falls sick", [1, 2, 4], logit_bias={POISON: 100.0})
    made = run(engine, *innocents(make_claim), *sick)
    for id_, token_ids in (("sick", []), ("falls sick", [POISON])):
        ended = made.pop(id_)
        assert (ended.token_ids, ended.end.error) == (token_ids, NOT_FINITE)
    assert {id_: each.token_ids for id_, each in made.items()} == expected


def test_more_memory_than_there_is_is_refused_at_the_start(make_gpt: MakeGPT, tokenizer: CharTokenizer) -> None:
    with pytest.raises(SettingError, match=r"kv_cache_mb = 1000000000: \d+ MiB of memory are free; give less"):
        make_engine(make_gpt(), tokenizer, EngineSettings(device="cpu", kv_cache_mb=10**9))
