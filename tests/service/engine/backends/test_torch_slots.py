"""A slot holds what its own sequence left there, however that was computed and whoever had it before."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.config import EngineSettings
from service.engine.backends.base import Runner
from service.engine.backends.torch_slots import Slots, TorchSlotRunner
from service.engine.kernels.library import best_level
from service.engine.loading import make_engine
from service.engine.page_pool import PagePool
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.errors import SettingError
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from tests.service.engine.stepping import finish, run
from tests.service.engine.test_engine import oracle
from training.models.base import UNBOUNDED_CONTEXT
from training.models.families import AnyModel
from training.tokenizers.char import CharTokenizer

CPU = torch.device("cpu")
NUM_SLOTS = 11
SMALL = EngineSettings(device="cpu", max_num_seqs=3, max_step_tokens=16)

MakeModel = Callable[..., AnyModel]
MakeClaim = Callable[..., Claim]


@pytest.fixture
def slot_model(slot_family: str, make_model_of: MakeModel) -> AnyModel:
    return make_model_of(slot_family)


@pytest.fixture(params=["native", "torch"])
def small(request: pytest.FixtureRequest) -> EngineSettings:
    """A small engine's settings, for each way to compute."""
    if request.param == "native" and best_level() is None:
        pytest.skip("no native kernels: the package was installed without a C++ compiler")
    return SMALL.replace(kernels=request.param, dtype="fp32")


class Bench:
    """Slots, poisoned: what a former sequence left shows. And who computes over them."""

    def __init__(
        self,
        model: AnyModel,
        make_runner: Callable[[AnyModel, Slots], Runner],
        tokenizer: CharTokenizer,
        make_claim: MakeClaim,
    ) -> None:
        self.model = model
        self.pool = PagePool(NUM_SLOTS, model.state_spec.max_context, prefix_caching=False)
        slots = Slots(model.state_spec, NUM_SLOTS, dtype=torch.float32, device=CPU)
        for kept in slots.tensors.values():
            kept.fill_(float("nan"))
        self.runner = make_runner(model, slots)
        self.sequence = lambda id_, ids: Sequence(make_claim(id_, ids), tokenizer, 0.0)

    def alone(self, prompt: list[int]) -> Tensor:
        """Return the logits behind a prompt that is read at once, `(V,)`."""
        sequence = self.sequence("alone", prompt)
        assert self.pool.admit(sequence)
        logits = self.runner.run([ScheduledChunk(sequence, len(prompt))])[0].clone()
        self.pool.release(sequence)
        return logits

    def hold_together(self, prompts: list[list[int]], seed: int, error: float) -> None:
        """Check that company and chunks change no bit, and that the logits are the model's."""
        random = Random(seed)
        alone = [self.alone(prompt) for prompt in prompts]
        sequences = [self.sequence(str(i), prompt) for i, prompt in enumerate(prompts)]
        assert all(self.pool.admit(sequence) for sequence in sequences)
        while unfinished := [sequence for sequence in sequences if sequence.num_to_compute]:
            drawn = [
                ScheduledChunk(sequence, random.randint(0, min(7, sequence.num_to_compute))) for sequence in unfinished
            ]
            chunks = sorted((chunk for chunk in drawn if chunk.num_tokens), key=lambda chunk: chunk.num_tokens > 1)
            if not chunks:
                continue
            logits = self.runner.run(chunks)
            for row, chunk in zip(logits, [chunk for chunk in chunks if chunk.num_logits], strict=True):
                with torch.inference_mode():
                    plain = self.model(torch.tensor([chunk.sequence.token_ids]))[0, -1]
                torch.testing.assert_close(row, plain, rtol=0, atol=error * max(1.0, plain.abs().max().item()))
                assert torch.equal(row, alone[int(chunk.sequence.id)])
            for sequence, num_tokens, _ in chunks:
                sequence.num_computed_tokens += num_tokens
        for sequence in sequences:
            self.pool.release(sequence)


some_prompts = st.lists(st.lists(st.integers(0, 33), min_size=1, max_size=40), min_size=1, max_size=NUM_SLOTS)


@settings(WITH_FIXTURES, max_examples=40)
@given(prompts=some_prompts, seed=st.integers(0, 2**32))
def test_any_chunks_beside_strangers_are_the_bits_of_the_sequence_alone(
    slot_model: AnyModel, tokenizer: CharTokenizer, make_claim: MakeClaim, prompts: list[list[int]], seed: int
) -> None:
    """full sequence ≡ prefill + decode ≡ chunked prefill ≡ batched with strangers, for every family.

    Bit for bit within the engine, to 1e-5 of what the model computes of the whole at once.
    """
    Bench(slot_model, TorchSlotRunner, tokenizer, make_claim).hold_together(prompts, seed, error=1e-5)


def test_who_finds_no_slot_waits_and_has_the_same_tokens(
    slot_model: AnyModel, tokenizer: CharTokenizer, make_claim: MakeClaim, small: EngineSettings
) -> None:
    claims = [make_claim(str(index), [index + 1] * 9, temperature=0.9, max_tokens=20) for index in range(5)]
    roomy, tight = make_engine(slot_model, tokenizer, small), make_engine(slot_model, tokenizer, small, num_pages=2)
    steps = []
    made = run(tight, *claims, after_step=lambda: steps.append(tight.last_step))
    assert {id_: each.token_ids for id_, each in made.items()} == finish(roomy, *claims)
    usages = [step.kv_cache_usage for step in steps]
    assert (max(usages), usages[-1], sum(step.num_preempted for step in steps)) == (1.0, 0.0, 0)


def test_a_text_goes_on_past_the_window_that_was_trained_on(
    slot_model: AnyModel, tokenizer: CharTokenizer, make_claim: MakeClaim, small: EngineSettings
) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6] * 12
    assert len(prompt) > slot_model.config.context_length
    engine = make_engine(slot_model, tokenizer, small)
    assert finish(engine, make_claim("a", prompt))["a"] == oracle(slot_model, tokenizer, prompt, 12)


def test_a_prompt_is_scored_the_same_in_any_chunks(
    slot_model: AnyModel, tokenizer: CharTokenizer, make_claim: MakeClaim, small: EngineSettings
) -> None:
    prompt = [7, 2, 9, 4, 4, 1, 8, 3, 5, 6, 2]
    with torch.inference_mode():
        logprobs = slot_model(torch.tensor([prompt]))[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).squeeze(1)
    for max_step_tokens in (3, 16):
        engine = make_engine(slot_model, tokenizer, small.replace(max_step_tokens=max_step_tokens))
        made = run(engine, make_claim("a", prompt, max_tokens=0, logprobs=0, prompt_logprobs=True))
        [output] = made["a"].outputs
        told = torch.tensor([entry.logprob for entry in output.prompt_logprobs])
        torch.testing.assert_close(told, expected, rtol=0, atol=1e-5)


def test_storage_is_what_a_slot_says(slot_model: AnyModel) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        slots = Slots(slot_model.state_spec, 10, dtype=dtype, device=CPU)
        assert sum(kept.nbytes for kept in slots.tensors.values()) == 11 * Slots.slot_bytes(
            slot_model.state_spec, dtype
        )


def test_torch_computes_in_fp32_with_a_slot_for_each_sequence(slot_model: AnyModel, tokenizer: CharTokenizer) -> None:
    engine = make_engine(slot_model, tokenizer, SMALL.replace(kernels="torch"))
    assert (engine.info.kernels, engine.info.dtype, engine.info.batch_invariant) == ("torch", "fp32", True)
    assert engine.info.kv_cache_bytes == 3 * Slots.slot_bytes(slot_model.state_spec, torch.float32)
    assert engine.max_context == UNBOUNDED_CONTEXT


def test_bf16_where_it_is_asked_for_stays_close(
    slot_model: AnyModel, tokenizer: CharTokenizer, make_claim: MakeClaim
) -> None:
    with torch.inference_mode():
        expected = slot_model(torch.arange(30)[None])[0, -1]
    engine = make_engine(slot_model, tokenizer, SMALL.replace(kernels="torch", dtype="bf16", max_step_tokens=30))
    assert not engine.info.batch_invariant
    sequence = Sequence(make_claim("a", range(30)), tokenizer, 0.0)
    assert engine.backend.pool.admit(sequence)
    logits = engine.backend.runner.run([ScheduledChunk(sequence, 30)])[0]
    assert (logits - expected).abs().max() < 0.2 * expected.std()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"kernels": "native"}, r"kernels = 'native': n_embd, .* must be multiples of 16; choose auto or torch"),
        ({"dtype": "int8"}, "dtype = 'int8': only the native kernels have it"),
        ({"kv_cache_mb": 10**9}, r"kv_cache_mb = 1000000000: \d+ MiB of memory are free; give less"),
    ],
    ids=str,
)
def test_what_is_not_to_be_had_is_refused(
    make_model_of: MakeModel, tokenizer: CharTokenizer, refused: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        make_engine(make_model_of("lstm", n_hidden=24), tokenizer, SMALL.replace(**refused))


def test_memory_bounds_the_slots_and_holds_at_least_one(make_model_of: MakeModel, tokenizer: CharTokenizer) -> None:
    wide = make_model_of("conv", n_embd=2**14, n_layer=5, dilation_cycle=5, n_hidden=1)  # 31 positions before its own
    slot_bytes = Slots.slot_bytes(wide.state_spec, torch.float32)
    assert slot_bytes == 31 * 2**16
    with pytest.raises(SettingError, match="kv_cache_mb = 1: one full context takes 2 MiB; give at least that"):
        make_engine(wide, tokenizer, SMALL.replace(kv_cache_mb=1))
    assert make_engine(wide, tokenizer, SMALL.replace(kv_cache_mb=4)).info.kv_cache_bytes == 2 * slot_bytes
    assert make_engine(wide, tokenizer, SMALL.replace(kv_cache_mb=50)).info.kv_cache_bytes == 3 * slot_bytes
