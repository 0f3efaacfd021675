from collections.abc import Callable
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.backends.paged_kv import PagedKV
from service.engine.backends.torch_paged import TorchRunner
from service.engine.page_pool import PagePool
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

PAGE_SIZE = 4


@settings(WITH_FIXTURES, max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, 33), min_size=1, max_size=40), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_logits_of_any_chunks_beside_strangers_equal_the_full_sequence(
    gpt: GPT, tokenizer: CharTokenizer, make_claim: Callable[..., Claim], prompts: list[list[int]], seed: int
) -> None:
    """full sequence ≡ prefill + decode ≡ chunked prefill ≡ batched with strangers, for every family (fp32, 1e-5)."""
    random = Random(seed)
    pool = PagePool(48, PAGE_SIZE)
    kv = PagedKV(gpt.state_spec, 48, PAGE_SIZE, dtype=torch.float32, device=torch.device("cpu"))
    kv.keys.fill_(float("nan"))  # poison: a page read before it is written shows
    kv.values.fill_(float("nan"))
    runner = TorchRunner(gpt, kv)
    sequences = [Sequence(make_claim(str(i), prompt), tokenizer, 0.0) for i, prompt in enumerate(prompts)]
    while unfinished := [sequence for sequence in sequences if sequence.num_to_compute]:
        chunks = []
        for sequence in unfinished:
            num_tokens = random.randint(0, min(7, sequence.num_to_compute))
            if num_tokens:
                assert pool.grow(sequence, sequence.num_computed_tokens + num_tokens)
                chunks.append(ScheduledChunk(sequence, num_tokens))
        if not chunks:
            continue
        chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
        logits = runner.run(chunks)
        for row, chunk in zip(logits, [chunk for chunk in chunks if chunk.num_logits], strict=True):
            with torch.inference_mode():
                expected = gpt(torch.tensor([chunk.sequence.token_ids]))[0, -1]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
        for sequence, num_tokens, _ in chunks:
            sequence.num_computed_tokens += num_tokens


def test_storage_is_what_a_page_says(gpt: GPT) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        kv = PagedKV(gpt.state_spec, 10, PAGE_SIZE, dtype=dtype, device=torch.device("cpu"))
        size_bytes = sum(part.numel() * part.element_size() for part in (kv.keys, kv.values))
        assert size_bytes == 10 * PagedKV.page_bytes(gpt.state_spec, PAGE_SIZE, dtype)


def test_bf16_stays_close(make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, make_claim: Callable) -> None:
    exact, rounded = make_gpt(), make_gpt().bfloat16()
    kv = PagedKV(rounded.state_spec, 16, PAGE_SIZE, dtype=torch.bfloat16, device=torch.device("cpu"))
    sequence = Sequence(make_claim("a", list(range(30))), tokenizer, 0.0)
    assert PagePool(16, PAGE_SIZE).grow(sequence, 30)
    logits = TorchRunner(rounded, kv).run([ScheduledChunk(sequence, 30)])[0]
    with torch.inference_mode():
        expected = exact(torch.arange(30)[None])[0, -1]
    assert (logits - expected).abs().max() < 0.1 * expected.std()
