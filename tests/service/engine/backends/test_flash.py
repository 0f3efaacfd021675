"""Flash attention: what it is asked for, held against the plain products; the kernel itself runs in tests/gpu."""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor

from service.engine.backends.cuda_graphs import GraphRunner
from service.engine.backends.flash import FlashState, try_attention, why_not_flash
from service.engine.backends.paged_kv import FLASH_PAGE_SIZE, PagedKV, PagedState
from service.engine.backends.step_inputs import StepInputs
from service.engine.page_pool import PagePool
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.protocol import Claim
from training.models.base import KVSpec
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

SPEC = KVSpec(n_layer=1, n_kv_head=2, head_dim=16, max_context=64)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def documented_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, **how: object
) -> Tensor:
    """What the documentation of `varlen_attn` says of the arguments that we give, row by row, in fp32."""
    assert (how["window_size"], how["enable_gqa"], how["num_splits"]) == ((-1, 0), True, 1)
    table, lengths = how["block_table"], how["seqused_k"]
    assert {x.dtype for x in (cu_seq_q, cu_seq_k, lengths, table)} == {torch.int32}
    assert lengths.is_contiguous()
    assert cu_seq_q.is_contiguous()
    assert table.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert cu_seq_k.shape == cu_seq_q.shape == (len(table) + 1,)
    rows = []
    for row, length in enumerate(lengths.tolist()):
        q = query[cu_seq_q[row] : cu_seq_q[row + 1]].float()  # (T, H, D)
        assert len(q) <= max_q
        assert length <= max_k
        k, v = (x[table[row].long()].flatten(0, 1)[:length].float() for x in (key, value))  # (L, G, D)
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        scores = torch.einsum("thd,lhd->htl", q, k) * q.size(-1) ** -0.5
        future = torch.ones(len(q), length, dtype=torch.bool).triu(length - len(q) + 1)
        rows.append(torch.einsum("htl,lhd->thd", scores.masked_fill(future, float("-inf")).softmax(-1), v))
    return torch.cat(rows).to(query.dtype)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"device": CPU}, "on CUDA"),
        ({"dtype": torch.float32}, "bf16"),
        ({"spec": KVSpec(n_layer=1, n_kv_head=2, head_dim=20, max_context=64)}, "head_dim"),
        ({"spec": KVSpec(n_layer=1, n_kv_head=2, head_dim=264, max_context=64)}, "head_dim"),
        ({"page_size": 16}, "page_size must be a multiple of 256"),
    ],
    ids=str,
)
def test_what_it_cannot_read_is_named(changed: dict[str, object], named: str) -> None:
    kind = {"spec": SPEC, "page_size": FLASH_PAGE_SIZE, "dtype": torch.bfloat16, "device": CUDA} | changed
    assert named in (why_not_flash(**kind) or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU, where the kernel runs")
def test_a_kernel_that_does_not_run_is_not_used() -> None:
    assert why_not_flash(SPEC, FLASH_PAGE_SIZE, torch.bfloat16, CUDA)


def test_the_arguments_mean_what_the_plain_products_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.backends.flash.varlen_attn", documented_attention)
    assert try_attention(FlashState, SPEC, torch.float32, CPU) < 1e-5
    assert try_attention(FlashState, SPEC, torch.bfloat16, CPU) < 0.05


class OneKeyTooMany(PagedState):
    def __init__(self, kv: PagedKV, inputs: StepInputs) -> None:
        inputs.lengths.add_(1)
        super().__init__(kv, inputs)


class OneRowForgotten(PagedState):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        y = super().attend(q, k, v, layer)
        return y.index_fill(1, torch.tensor([1]), 0.0)


def test_the_trial_notices_what_is_wrong() -> None:
    assert try_attention(PagedState, SPEC, torch.float32, CPU) == 0.0
    for wrong in (OneKeyTooMany, OneRowForgotten):
        assert not try_attention(wrong, SPEC, torch.float32, CPU) < 0.05


def test_prefill_and_replayed_decodes_equal_the_full_sequence(
    gpt: GPT,
    tokenizer: CharTokenizer,
    make_claim: Callable[..., Claim],
    make_graph_runner: Callable[..., GraphRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.backends.flash.varlen_attn", documented_attention)
    random = Random(5)
    runner = make_graph_runner(gpt, 48, 4, attention=FlashState, max_num_seqs=4)
    for stored in (runner._kv.keys, runner._kv.values):
        stored.fill_(float("nan"))
    pool = PagePool(48, 4)
    make = partial(Sequence, tokenizer=tokenizer, now=0.0)
    sequences = [make(make_claim(str(n), [random.randrange(30) for _ in range(n)])) for n in (1, 9, 25)]
    for _ in range(12):
        chunks = [ScheduledChunk(s, min(s.num_to_compute, random.randint(1, 9))) for s in sequences]
        chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
        for sequence, num_tokens, _ in chunks:
            assert pool.grow(sequence, sequence.num_computed_tokens + num_tokens)
        logits = runner.run(chunks)
        wanting = [chunk.sequence for chunk in chunks if chunk.num_logits]
        for sequence, row in zip(wanting, logits, strict=True):
            with torch.inference_mode():
                expected = gpt(torch.tensor([sequence.token_ids]))[0, -1]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
        for sequence, num_tokens, _ in chunks:
            sequence.num_computed_tokens += num_tokens
        for sequence in wanting:
            sequence.token_ids.append(random.randrange(30))
