"""Bit for bit: a token's logits depend on nothing but its own past. To 1e-5: they are those of the plain module."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.config import EngineSettings
from service.engine.kernels.library import PAGE_SIZE, load_kernels
from service.engine.loading import make_engine
from service.engine.native import NativeRunner, why_not_native
from service.engine.scheduler import Work
from service.engine.sequence import Sequence
from service.engine.state_pool import PagePool
from service.errors import SettingError
from service.protocol import Claim
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="no native kernels: installed without a C++ compiler")
SHAPES = [
    {},
    {"n_head": 4, "n_kv_head": 2, "head_dim": 16, "n_embd": 48, "n_hidden": 80},
    {"head_dim": 64, "n_layer": 1, "tie_embeddings": True, "rope_theta": 5e5},
    {"head_dim": 80, "n_head": 3, "n_kv_head": 1, "n_layer": 3},
]


class Bench:
    """A runner with its pages, poisoned: what is read before it is written shows."""

    def __init__(self, model: GPT, tokenizer: CharTokenizer, make_claim: Callable[..., Claim]) -> None:
        self.runner = NativeRunner(model, 32, 256)
        self.runner.keys.fill_(float("nan"))
        self.runner.values.fill_(float("nan"))
        self.pool = PagePool(32, PAGE_SIZE)
        self.sequence = lambda ids: Sequence(make_claim("a", ids), tokenizer, 0.0)

    def run(self, prompts: list[list[int]], random: Random, longest: int) -> list[Tensor]:
        """Prefill all prompts in random chunks, in random company; return each one's last logits."""
        sequences = [self.sequence(prompt) for prompt in prompts]
        results: dict[int, Tensor] = {}
        while len(results) < len(sequences):
            unfinished = [s for s in sequences if s.num_to_compute]
            works = [Work(s, random.randint(1, min(longest, s.num_to_compute))) for s in unfinished]
            random.shuffle(works)
            for work in works:
                assert self.pool.grow(work.sequence, work.sequence.num_computed_tokens + work.num_tokens)
            logits = self.runner.run(works)
            done = [work.sequence for work in works if work.num_logits]
            results |= {sequences.index(s): row.clone() for s, row in zip(done, logits, strict=True)}
            for work in works:
                work.sequence.num_computed_tokens += work.num_tokens
        for sequence in sequences:
            self.pool.release(sequence)
        return [results[index] for index in range(len(sequences))]


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 33), min_size=1, max_size=64), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_the_same_bits_alone_in_company_and_in_chunks(
    make_gpt: Callable[..., GPT],
    tokenizer: CharTokenizer,
    make_claim: Callable[..., Claim],
    shape: dict[str, object],
    prompts: list[list[int]],
    seed: int,
) -> None:
    model = make_gpt(**shape)
    bench = Bench(model, tokenizer, make_claim)
    together = bench.run(prompts, Random(seed), longest=9)
    for prompt, logits in zip(prompts, together, strict=True):
        [alone] = bench.run([prompt], Random(0), longest=64)
        assert torch.equal(logits, alone)
        with torch.inference_mode():
            torch.testing.assert_close(logits, model(torch.tensor([prompt]))[0, -1], rtol=0, atol=1e-5)


@needs_kernels
def test_the_same_bits_with_any_number_of_threads(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, make_claim: Callable[..., Claim]
) -> None:
    model = make_gpt(n_embd=192, n_hidden=512, head_dim=64)
    prompts = [[index] * 60 for index in range(8)]
    one = Bench(model, tokenizer, make_claim).run(prompts, Random(1), longest=60)
    try:
        torch.set_num_threads(2)
        two = Bench(model, tokenizer, make_claim).run(prompts, Random(2), longest=60)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("shape", "page_size", "named"),
    [
        ({"norm": "layernorm"}, 16, "layout"),
        ({"n_embd": 24}, 16, "multiples of 16"),
        ({}, 8, "page_size"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_cover_torch_computes(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, shape: dict[str, object], page_size: int, named: str
) -> None:
    model = make_gpt(**shape)
    assert named in (why_not_native(model, page_size) or "")
    assert "fp32" in (why_not_native(make_gpt().bfloat16(), 16) or "")
    small = EngineSettings(page_size=page_size, max_num_seqs=2, max_step_tokens=8)
    assert make_engine(model, tokenizer, small).room == 2
    with pytest.raises(SettingError, match=named):
        make_engine(model, tokenizer, small.replace(kernels="native"))
