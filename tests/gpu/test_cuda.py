"""The engine's invariants on a CUDA GPU: `make check-gpu`. Without one, all of this is skipped."""

import warnings
from collections.abc import Callable
from itertools import islice

import pytest
import torch

from service.config import EngineSettings
from service.engine.backends.cuda_graphs import GraphRunner
from service.engine.backends.flash import FlashState, try_attention
from service.engine.backends.paged_kv import FLASH_PAGE_SIZE, PagedState
from service.engine.backends.torch_paged import TorchRunner
from service.engine.engine import Engine
from service.engine.loading import make_engine
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.protocol import Claim, Request, SamplingParams
from training.models.base import KVSpec
from training.models.gpt import GPT
from training.sample import sample
from training.tokenizers.char import CharTokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

DEVICE = torch.device("cuda")
PROMPTS = [[1], [5, 3, 8, 2, 11], list(range(20)), [9] * 37, [7, 1] * 11]
KINDS = {"fp32, gathered": ("fp32", 16), "bf16, gathered": ("bf16", 16), "bf16, flash": ("bf16", FLASH_PAGE_SIZE)}

MakeEngine = Callable[..., Engine]


@pytest.fixture
def engine_of(tokenizer: CharTokenizer) -> MakeEngine:
    def make(model: GPT, kind: str, **settings: object) -> Engine:
        dtype, page_size = KINDS[kind]
        small = {"max_num_seqs": 6, "max_step_tokens": 24, "kernels": "torch", "device": str(DEVICE)}
        chosen = EngineSettings(**(small | {"dtype": dtype, "page_size": page_size} | settings))
        return make_engine(model.to(DEVICE), tokenizer, chosen)

    return make


def claim(id_: str, token_ids: list[int], **params: object) -> Claim:
    chosen = SamplingParams(**({"max_tokens": 12, "seed": 7, "temperature": 0.0} | params))
    return Claim(request=Request(id=id_, model="m", revision="r", token_ids=tuple(token_ids), params=chosen), epoch=1)


def answers(engine: Engine, **params: object) -> list[list[int]]:
    """The answers to all prompts, computed together."""
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(PROMPTS))}
    for index, prompt in enumerate(PROMPTS):
        engine.add(claim(str(index), prompt, **params))
    while engine.has_work:
        for output in engine.step():
            tokens[output.id] += output.token_ids
    return list(tokens.values())


@pytest.mark.parametrize("head_dim", [8, 64, 96, 128, 256])
def test_the_kernel_computes_what_the_plain_products_do(head_dim: int) -> None:
    if torch.cuda.get_device_capability(DEVICE) < (8, 0):
        pytest.skip("this CUDA GPU is older than Ampere, which the kernel needs")
    spec = KVSpec(n_layer=1, n_kv_head=2, head_dim=head_dim, max_context=64)
    assert try_attention(FlashState, spec, torch.bfloat16, DEVICE) < 0.05


def test_greedy_text_equals_the_uncached_decoder(gpt: GPT, tokenizer: CharTokenizer, engine_of: MakeEngine) -> None:
    found = answers(engine_of(gpt, "fp32, gathered"))
    banned = tokenizer.special_ids - {tokenizer.end_of_text_id}
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert tokens == list(islice(sample(gpt, prompt, temperature=0, banned=banned), len(tokens)))


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_the_logits_of_the_plain_runner(
    gpt: GPT, tokenizer: CharTokenizer, engine_of: MakeEngine, kind: str
) -> None:
    runner = engine_of(gpt, kind).backend.runner
    assert isinstance(runner, GraphRunner)
    plain = TorchRunner(gpt, runner._kv, PagedState)
    per_sequence = -(-64 // runner._kv.page_size)
    chunks = []
    for row, prompt in enumerate(PROMPTS):
        sequence = Sequence(claim("a", [*prompt, 3]), tokenizer, 0.0)
        sequence.page_table += range(row * per_sequence, (row + 1) * per_sequence)
        plain.run([ScheduledChunk(sequence, len(prompt))])
        sequence.num_computed_tokens = len(prompt)
        chunks.append(ScheduledChunk(sequence, 1))
    for count in range(1, len(chunks) + 1):
        expected = plain.run(chunks[:count])
        tolerance = 1e-4 if kind.startswith("fp32") else 0.05 * expected.std().item()
        torch.testing.assert_close(runner.run(chunks[:count]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_tokens_again(gpt: GPT, engine_of: MakeEngine, kind: str) -> None:
    sampled = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 16}
    first, second = (answers(engine_of(gpt, kind), **sampled) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.01}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_once_a_step(gpt: GPT, engine_of: MakeEngine, kind: str, params: dict[str, object]) -> None:
    engine = engine_of(gpt, kind, max_step_tokens=512)
    for index, prompt in enumerate(PROMPTS):
        engine.add(claim(str(index), prompt, logit_bias={0: -100.0, 1: -100.0}, max_tokens=12, **params))
    try:
        for step in ("prefill", "decode", "decode"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                engine.step()
            waits = [str(each.message) for each in caught if "synchronizing CUDA operation" in str(each.message)]
            assert len(waits) == 1, (step, waits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
