"""Bit for bit: a token's logits depend on nothing but its own past. And as near to the plain module's as can be."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import service
from service.config import EngineSettings
from service.engine.backends.choose import why_not_native
from service.engine.backends.native_paged import NativeRunner
from service.engine.kernels.library import LEVELS, best_level, load_kernels
from service.engine.kernels.structures import PAGE_SIZE
from service.engine.kernels.weights import ComputeDtype
from service.engine.loading import make_engine
from service.engine.page_pool import PagePool
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.errors import SettingError
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from training.checkpoint import load_checkpoint
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

MakeGPT = Callable[..., GPT]
MakeClaim = Callable[..., Claim]

BUNDLED = Path(service.__file__).parent / "checkpoints" / "shakespeare"
SHAPES = [
    {},
    {"n_head": 4, "n_kv_head": 2, "head_dim": 16, "n_embd": 48, "n_hidden": 80},
    {"head_dim": 64, "n_layer": 1, "tie_embeddings": True, "rope_theta": 5e5},
    {"head_dim": 80, "n_head": 3, "n_kv_head": 1, "n_layer": 3},
]
ERRORS = {"fp32": 1e-5, "bf16": 0.1, "int8": 0.2}
"""Of a logit, as a share of the greatest. Of 3,000 prompts the worst is 0.06 in bf16 and 0.13 in int8: random weights
round worse than trained ones, with torch's own bf16 as well, where it is 0.07."""
NATS = {"fp32": 1e-5, "bf16": 0.001, "int8": 0.001}
"""What may be the default costs less than 0.001; of int8 the issue asks 0.01 only."""

needs_kernels = pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")
every_compute_dtype = pytest.mark.parametrize("compute_dtype", ERRORS)
with_fixtures = settings(WITH_FIXTURES, max_examples=15)
some_prompts = st.lists(st.lists(st.integers(0, 33), min_size=1, max_size=64), min_size=1, max_size=6)


class Everything(ScheduledChunk):
    """A chunk that wants the logits of all of its tokens."""

    num_logits = property(lambda chunk: chunk.num_tokens)


class Bench:
    """A runner with its pages, poisoned: what is read before it is written shows."""

    def __init__(
        self,
        model: GPT,
        tokenizer: CharTokenizer,
        make_claim: MakeClaim,
        compute_dtype: ComputeDtype,
        level: str | None = None,
    ) -> None:
        self.runner = NativeRunner(model, 32, 256, compute_dtype, level)
        self.runner.keys.fill_(float("nan"))
        self.runner.values.fill_(float("nan"))
        self.pool = PagePool(32, PAGE_SIZE, prefix_caching=False)
        self.sequence = lambda ids: Sequence(make_claim("a", ids), tokenizer, 0.0)

    def run(self, prompts: list[list[int]], random: Random, longest: int) -> list[Tensor]:
        """Prefill all prompts in random chunks, in random company; return each one's logits."""
        sequences = [self.sequence(prompt) for prompt in prompts]
        results: dict[int, list[Tensor]] = {index: [] for index in range(len(prompts))}
        while unfinished := [s for s in sequences if s.num_to_compute]:
            chunks = [Everything(s, random.randint(1, min(longest, s.num_to_compute))) for s in unfinished]
            random.shuffle(chunks)
            for sequence, count, _ in chunks:
                assert self.pool.grow(sequence, sequence.num_computed_tokens + count)
            rows = self.runner.run(chunks).clone().split([count for _, count, _ in chunks])
            for (sequence, count, _), logits in zip(chunks, rows, strict=True):
                results[sequences.index(sequence)].append(logits)
                sequence.num_computed_tokens += count
        for sequence in sequences:
            self.pool.release(sequence)
        return [torch.cat(logits) for logits in results.values()]

    def hold_together(self, model: GPT, prompts: list[list[int]], seed: int, error: float) -> None:
        """Check that company and chunks change no bit, and that the logits are the model's."""
        together = self.run(prompts, Random(seed), longest=9)
        for prompt, logits in zip(prompts, together, strict=True):
            [alone] = self.run([prompt], Random(0), longest=64)
            assert torch.equal(logits, alone)
            with torch.inference_mode():
                plain = model(torch.tensor([prompt]))[0]
            torch.testing.assert_close(logits, plain, rtol=0, atol=error * max(1.0, plain.abs().max().item()))


@needs_kernels
@every_compute_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@with_fixtures
@given(prompts=some_prompts, seed=st.integers(0, 2**32))
def test_the_same_bits_alone_in_company_and_in_chunks(
    make_gpt: MakeGPT,
    tokenizer: CharTokenizer,
    make_claim: MakeClaim,
    shape: dict[str, object],
    compute_dtype: ComputeDtype,
    prompts: list[list[int]],
    seed: int,
) -> None:
    model = make_gpt(**shape)
    Bench(model, tokenizer, make_claim, compute_dtype).hold_together(model, prompts, seed, ERRORS[compute_dtype])


@every_compute_dtype
@pytest.mark.parametrize("level", LEVELS)
@with_fixtures
@given(prompts=some_prompts, seed=st.integers(0, 2**32))
def test_so_on_every_kind_of_processor(
    make_gpt: MakeGPT,
    tokenizer: CharTokenizer,
    make_claim: MakeClaim,
    level: str,
    compute_dtype: ComputeDtype,
    prompts: list[list[int]],
    seed: int,
) -> None:
    if load_kernels(level) is None:
        pytest.skip(f"no {level} kernels on this machine")
    model = make_gpt(**SHAPES[1])
    Bench(model, tokenizer, make_claim, compute_dtype, level).hold_together(model, prompts, seed, ERRORS[compute_dtype])


@needs_kernels
@every_compute_dtype
def test_the_same_bits_in_a_crowd_with_any_number_of_threads(
    make_gpt: MakeGPT, tokenizer: CharTokenizer, make_claim: MakeClaim, compute_dtype: ComputeDtype
) -> None:
    model = make_gpt(n_embd=192, n_hidden=512, head_dim=64)
    random = Random(3)
    prompts = [random.choices(range(34), k=random.randint(1, 7)) for _ in range(32)]
    one = Bench(model, tokenizer, make_claim, compute_dtype).run(prompts, Random(1), longest=4)
    try:
        torch.set_num_threads(2)
        two = Bench(model, tokenizer, make_claim, compute_dtype).run(prompts, Random(2), longest=7)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


@needs_kernels
@every_compute_dtype
def test_two_threads_may_write_to_one_page(
    make_gpt: MakeGPT, tokenizer: CharTokenizer, make_claim: MakeClaim, compute_dtype: ComputeDtype
) -> None:
    """Six tokens, three for each thread: the third and the fourth share a lane of bf16 values."""
    model = make_gpt(n_embd=192, n_hidden=512, head_dim=64)
    prompt = [[1, 2, 3, 4, 5, 6]]
    try:
        torch.set_num_threads(2)
        bench = Bench(model, tokenizer, make_claim, compute_dtype)
        runs = [bench.run(prompt, Random(seed), longest=6)[0] for seed in range(1000)]
        assert all(torch.equal(runs[0], run) for run in runs)
    finally:
        torch.set_num_threads(1)


def windows(text: Path, every: int) -> Iterator[tuple[GPT, CharTokenizer, list[int], list[int]]]:
    loaded = load_checkpoint(BUNDLED, device="cpu", dtype=torch.float32)
    corpus = text.read_text()
    ids = loaded.tokenizer.encode(corpus[int(0.9 * len(corpus)) :])
    length = loaded.model.config.context_length
    for at in range(0, len(ids) - 1, every * length):
        yield loaded.model, loaded.tokenizer, ids[at : at + length], ids[at + 1 : at + length + 1]


@needs_kernels
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=[pytest.mark.chaos, pytest.mark.timeout(3 * 3600)])])
def test_loss_over_the_validation_split(tinyshakespeare: Path, make_claim: MakeClaim, every: int) -> None:
    losses: dict[str, list[float]] = {compute_dtype: [] for compute_dtype in NATS}
    runners: dict[str, NativeRunner] = {}
    for model, tokenizer, inputs, targets in windows(tinyshakespeare, every):
        runners = runners or {compute_dtype: NativeRunner(model, 64, 1024, compute_dtype) for compute_dtype in NATS}
        sequence = Sequence(make_claim("a", inputs[: len(targets)]), tokenizer, 0.0)
        sequence.page_table = list(range(64))
        for compute_dtype, runner in runners.items():
            logits = runner.run([Everything(sequence, len(targets))])
            losses[compute_dtype] += F.cross_entropy(logits, torch.tensor(targets), reduction="none").tolist()
    means = {compute_dtype: np.mean(each) for compute_dtype, each in losses.items()}
    logging.getLogger(__name__).info("nats a token: %s", means)
    assert len(losses["fp32"]) > 111_000 / every
    assert means["fp32"] == pytest.approx(1.4093, abs=0.004)
    for compute_dtype, nats in NATS.items():
        assert means[compute_dtype] == pytest.approx(means["fp32"], abs=nats)


@pytest.mark.parametrize(
    ("shape", "page_size", "named"),
    [
        ({"norm": "layernorm"}, 16, "norm = 'layernorm'"),
        ({"n_embd": 24}, 16, "multiples of 16"),
        ({}, 8, "page_size"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_cover_torch_computes(
    make_gpt: MakeGPT, tokenizer: CharTokenizer, shape: dict[str, object], page_size: int, named: str
) -> None:
    model = make_gpt(**shape)
    assert named in (why_not_native(model, page_size) or "")
    small = EngineSettings(page_size=page_size, max_num_seqs=2, max_step_tokens=8)
    assert make_engine(model, tokenizer, small).info.kernels == "torch"
    for refused in ({"kernels": "native"}, {"dtype": "int8"}):
        with pytest.raises(SettingError, match=named):
            make_engine(model, tokenizer, small.replace(**refused))


@pytest.mark.skipif("MINIGPT_SANITIZED" not in os.environ, reason="only in make check-native")
def test_the_sanitized_kernels_are_the_ones_that_run() -> None:
    library = Path(load_kernels(best_level() or "")._name).resolve()
    assert library.is_relative_to(Path(os.environ["MINIGPT_SANITIZED"]).resolve())
    assert b"__asan_init" in library.read_bytes()


@needs_kernels
@every_compute_dtype
def test_an_engine_tells_what_computes(
    make_gpt: MakeGPT, tokenizer: CharTokenizer, compute_dtype: ComputeDtype
) -> None:
    info = make_engine(make_gpt(), tokenizer, EngineSettings(dtype=compute_dtype, kv_cache_mb=4)).info
    assert (info.kernels, info.dtype) == (best_level(), compute_dtype)
    assert 0 < info.kv_cache_bytes <= 4 * 2**20
