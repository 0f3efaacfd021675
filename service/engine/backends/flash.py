"""Attention over pages in place, by the flash kernel that CUDA builds of PyTorch bring."""

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from typing_extensions import override

from service.engine.backends.paged_kv import FLASH_PAGE_SIZE, Attention, PagedKV, PagedState
from service.engine.backends.step_inputs import StepInputs, lay_out, upload
from training.models.base import KVSpec


def why_not_flash(spec: KVSpec, page_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return what keeps the kernel from reading keys and values of this kind; None if nothing does."""
    if device.type != "cuda":
        return f"it computes on CUDA, not on {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bf16 or fp16, not in {dtype}"
    if spec.head_dim % 8 or spec.head_dim > 256:
        return f"head_dim must be a multiple of 8 up to 256, not {spec.head_dim}"
    if page_size % FLASH_PAGE_SIZE:
        return f"page_size must be a multiple of {FLASH_PAGE_SIZE}, not {page_size}"
    try:
        error = try_attention(FlashState, spec, dtype, device)
    except RuntimeError as refusal:
        return str(refusal).partition("\n")[0]
    return None if error < 0.05 else f"tried here, it was off by {error}"


class FlashState(PagedState):
    """As `PagedState`, in one call of the kernel a layer.

    Source: FlashAttention-2 (Dao 2023, arXiv 2307.08691).
    """

    @override
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self._kv.append(k, v, self._written, layer)
        keys, values = self._kv.pages(layer)  # (P, page_size, G, D)
        inputs = self._inputs
        y = varlen_attn(
            q[0].to(keys.dtype),
            keys,
            values,
            cu_seq_q=inputs.starts,
            cu_seq_k=inputs.starts,  # only its shape is read: `block_table` and `seqused_k` tell which keys
            max_q=max(inputs.counts),
            max_k=max(inputs.bounds),
            window_size=(-1, 0),  # causal, and a row's last query stands at its last key
            enable_gqa=True,
            seqused_k=inputs.lengths,
            block_table=inputs.page_tables,
            num_splits=1,  # with more, rows come out wrong: pytorch/pytorch#194167, pytorch/torchtitan#3235
        )
        return cast(Tensor, y).unsqueeze(0).to(q.dtype)


def try_attention(attention: Attention, spec: KVSpec, dtype: torch.dtype, device: torch.device) -> float:
    """Return by how much `attention` is off `PagedState`, at most; NaN where it reads what no row has written.

    The step is two decodes and a prefill chunk over pages in no order, with random queries, keys and values.
    """
    G, D = spec.n_kv_head, spec.head_dim  # noqa: N806
    generator = torch.Generator(device).manual_seed(0)
    noise = partial(torch.randn, generator=generator, dtype=dtype, device=device)
    one_layer = KVSpec(n_layer=1, n_kv_head=G, head_dim=D, max_context=2 * FLASH_PAGE_SIZE)
    kv = PagedKV(one_layer, 6, FLASH_PAGE_SIZE, dtype=dtype, device=device)
    for stored in (kv.keys, kv.values):
        stored.fill_(float("nan"))
    past = _read_spans([(0, FLASH_PAGE_SIZE + 3), (0, 7), (0, FLASH_PAGE_SIZE + 40)], device)
    kv.append(noise(1, sum(past.counts), G, D), noise(1, sum(past.counts), G, D), past.slots.long(), 0)
    now = _read_spans([(FLASH_PAGE_SIZE + 2, 1), (6, 1), (FLASH_PAGE_SIZE + 10, 30)], device)
    q, k, v = (noise(1, sum(now.counts), heads, D) for heads in (2 * G, G, G))
    expected, found = (make(kv, now).attend(q, k, v, 0) for make in (PagedState, attention))
    return (found.float() - expected.float()).abs().max().item()


def _read_spans(spans: list[tuple[int, int]], device: torch.device) -> StepInputs:
    counts = [count for _, count in spans]
    tables = np.array([[5, 0], [2, 3], [4, 1]], dtype=np.int32)
    flat = upload(lay_out([0] * sum(counts), spans, tables, FLASH_PAGE_SIZE), device)
    return StepInputs(flat, counts, [first + count for first, count in spans])
