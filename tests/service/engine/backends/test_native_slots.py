"""Bit for bit, as with transformers: a token's logits depend on nothing but its own past."""

import math
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.config import EngineSettings
from service.engine.backends.native_slots import NativeSlotRunner
from service.engine.backends.torch_slots import Slots
from service.engine.kernels.library import LEVELS, best_level, load_kernels
from service.engine.kernels.weights import ComputeDtype
from service.engine.loading import make_engine
from service.protocol import Claim
from tests.service.engine.backends.test_native_paged import ERRORS, every_compute_dtype, needs_kernels, with_fixtures
from tests.service.engine.backends.test_torch_slots import NUM_SLOTS, Bench, some_prompts
from training.models.families import AnyModel
from training.tokenizers.char import CharTokenizer

MakeModel = Callable[..., AnyModel]
MakeClaim = Callable[..., Claim]
MakeBench = Callable[..., Bench]

SHAPES = [
    ("rnn", {"activation": "relu", "n_layer": 1}),
    ("lstm", {"n_layer": 3, "n_embd": 48, "n_hidden": 32, "tie_embeddings": False}),
    ("mlp", {"direct": False, "n_layer": 1, "window": 2, "activation": "leaky_relu"}),
    ("mlp", {"n_layer": 3, "activation": "gelu"}),
    ("conv", {"kernel_size": 3, "dilation_cycle": 2, "activation": "silu", "gate_activation": "relu2"}),
    ("conv", {"kernel_size": 4, "n_layer": 2, "activation": "tanh", "gate_activation": "relu"}),
]


@pytest.fixture
def make_bench(make_model_of: MakeModel, tokenizer: CharTokenizer, make_claim: MakeClaim) -> MakeBench:
    def make(family: str, compute_dtype: ComputeDtype, level: str | None = None, **shape: object) -> Bench:
        runner = partial(NativeSlotRunner, max_step_tokens=NUM_SLOTS * 40, compute_dtype=compute_dtype, level=level)
        return Bench(make_model_of(family, **shape), runner, tokenizer, make_claim)

    return make


@needs_kernels
@every_compute_dtype
@with_fixtures
@given(prompts=some_prompts, seed=st.integers(0, 2**32))
def test_the_same_bits_alone_in_company_and_in_chunks(
    make_bench: MakeBench, slot_family: str, compute_dtype: ComputeDtype, prompts: list[list[int]], seed: int
) -> None:
    make_bench(slot_family, compute_dtype).hold_together(prompts, seed, ERRORS[compute_dtype])


@needs_kernels
@pytest.mark.parametrize(("family", "shape"), SHAPES, ids=str)
@with_fixtures
@given(prompts=some_prompts, seed=st.integers(0, 2**32))
def test_so_in_every_shape(
    make_bench: MakeBench, family: str, shape: dict[str, object], prompts: list[list[int]], seed: int
) -> None:
    make_bench(family, "fp32", **shape).hold_together(prompts, seed, ERRORS["fp32"])


@every_compute_dtype
@pytest.mark.parametrize("level", LEVELS)
def test_so_on_every_kind_of_processor(
    make_bench: MakeBench, slot_family: str, level: str, compute_dtype: ComputeDtype
) -> None:
    if load_kernels(level) is None:
        pytest.skip(f"no {level} kernels on this machine")
    random = Random(5)
    prompts = [random.choices(range(34), k=random.randint(1, 40)) for _ in range(NUM_SLOTS)]
    make_bench(slot_family, compute_dtype, level).hold_together(prompts, 6, ERRORS[compute_dtype])


@needs_kernels
@every_compute_dtype
def test_the_same_bits_with_any_number_of_threads(
    make_bench: MakeBench, slot_family: str, compute_dtype: ComputeDtype
) -> None:
    prompts = [[*range(length)] for length in range(1, NUM_SLOTS + 1)]
    wide = {"n_embd": 192, "n_hidden": 192}
    one = [make_bench(slot_family, compute_dtype, **wide).alone(prompt) for prompt in prompts]
    try:
        torch.set_num_threads(2)
        bench = make_bench(slot_family, compute_dtype, **wide)
        bench.hold_together(prompts, 0, error=math.inf)  # a wide RNN of random weights lets what is rounded grow
        assert all(torch.equal(bench.alone(prompt), expected) for prompt, expected in zip(prompts, one, strict=True))
    finally:
        torch.set_num_threads(1)


@needs_kernels
def test_they_compute_where_nothing_keeps_them_from_it(
    make_model_of: MakeModel, tokenizer: CharTokenizer, slot_family: str
) -> None:
    model = make_model_of(slot_family)
    settings = EngineSettings(device="cpu", max_num_seqs=3, max_step_tokens=16)
    info = make_engine(model, tokenizer, settings).info
    assert (info.kernels, info.dtype, info.batch_invariant) == (best_level(), "int8", True)
    assert info.kv_cache_bytes == 3 * Slots.slot_bytes(model.state_spec, torch.float32)
