"""The integers that a step computes from, brought to its device in one copy that nobody waits for."""

from collections.abc import Sequence as Ordered

import numpy as np
import torch
from torch import Tensor

from service.engine.scheduler import ScheduledChunk

Integers = np.ndarray[tuple[int, ...], np.dtype[np.integer]]


class StepInputs:
    """T tokens of R rows, a row a sequence; rows of one token come first.

    Args:
        flat: Everything in one int32 tensor, in the order of `lay_out`.
        counts: Tokens of each row.
        bounds: Of each row, the most positions that it has, this step's included.
        num_before: Of each token, how many before it stand in `flat`.
    """

    def __init__(self, flat: Tensor, counts: list[int], bounds: list[int], num_before: int = 0) -> None:
        num_rows, num_tokens = len(counts), sum(counts)
        sizes = [num_tokens, num_before * num_tokens, num_tokens, num_tokens, num_rows + 1, num_rows]
        parts = torch.split(flat, [*sizes, flat.numel() - sum(sizes)])
        token_ids, before, positions, slots, starts, lengths, tables = parts
        self.counts, self.bounds = counts, bounds
        self.token_ids = token_ids.unsqueeze(0)
        """`(1, T)`."""
        self.before = before.view(num_before, 1, num_tokens)
        """Token ids 1, 2, … places before each token, `(N, 1, T)`; 0 where its row has none."""
        self.positions = positions.unsqueeze(0)
        """Of each token in its own row, `(1, T)`."""
        self.slots = slots
        """Where each token's key and value go, `(T,)`."""
        self.starts = starts
        """The first token of each row, and T, `(R + 1,)`."""
        self.lengths = lengths
        """Positions of each row, this step's included, `(R,)`."""
        self.page_tables = tables.view(num_rows, -1)
        """`(R, P)`; only the pages of a row's own positions mean anything."""


def read_step(chunks: Ordered[ScheduledChunk], page_size: int, device: torch.device, num_before: int = 0) -> StepInputs:
    """Return the inputs of a step on `device`; see `pack`."""
    counts = [chunk.num_tokens for chunk in chunks]
    lengths = [chunk.sequence.num_computed_tokens + chunk.num_tokens for chunk in chunks]
    width = -(-max(lengths) // page_size)
    flat = pack(chunks, page_size, width=width, num_before=num_before)
    return StepInputs(upload(flat, device), counts, lengths, num_before)


def pack(
    chunks: Ordered[ScheduledChunk],
    page_size: int,
    *,
    width: int,
    num_before: int = 0,
    num_unused: int = 0,
    scratch_page: int = 0,
) -> Integers:
    """Lay out the inputs of a step.

    Args:
        chunks: A row each.
        page_size: Tokens in a page.
        width: Pages of a row of the page tables.
        num_before: How many tokens before each one the model reads besides.
        num_unused: Rows behind them that compute one token for nobody.
        scratch_page: Where unused rows write, and all that they read.
    """
    spans = [(chunk.sequence.num_computed_tokens, chunk.num_tokens) for chunk in chunks]
    ids = [token_id for chunk in chunks for token_id in chunk.token_ids] + [0] * num_unused
    for distance in range(1, num_before + 1):
        ids += [token_id for chunk in chunks for token_id in _read_before(chunk, distance)] + [0] * num_unused
    tables = np.full((len(chunks) + num_unused, width), scratch_page, dtype=np.int32)
    for row, chunk in enumerate(chunks):
        pages = chunk.sequence.page_table[:width]
        tables[row, : len(pages)] = pages
    return lay_out(ids, spans + [(0, 1)] * num_unused, tables, page_size)


def _read_before(chunk: ScheduledChunk, distance: int) -> list[int]:
    """Return the token `distance` places before each one of a chunk; 0 where there is none."""
    known, first = chunk.sequence.token_ids, chunk.sequence.num_computed_tokens
    padding = [0] * max(0, distance - first)
    return (padding + known[max(0, first - distance) : first] + chunk.token_ids)[: chunk.num_tokens]


def lay_out(token_ids: list[int], spans: list[tuple[int, int]], tables: Integers, page_size: int) -> Integers:
    """Return what `StepInputs` reads.

    Args:
        token_ids: Of all rows, one row after the other; then, for each distance, those that stand before them.
        spans: Of each row, its first position in this step and how many there are.
        tables: Pages of each row, `(R, P)`.
        page_size: Tokens in a page.
    """
    firsts, counts = np.asarray(spans).T
    positions = np.concatenate([np.arange(first, first + count) for first, count in spans])
    pages = tables[np.repeat(np.arange(len(spans)), counts), positions // page_size]
    slots = pages * page_size + positions % page_size
    starts = np.cumsum([0, *counts])
    parts = (token_ids, positions, slots, starts, firsts + counts, tables.ravel())
    return np.concatenate(parts).astype(np.int32)


def upload(values: Integers, device: torch.device) -> Tensor:
    """Copy to `device` in the order of its work, without waiting for it; on a CPU nothing is copied."""
    return stage(values, device).to(device, non_blocking=True)


def stage(values: Integers, device: torch.device) -> Tensor:
    """Return `values` where a copy to `device` can start without waiting: for CUDA in pinned memory."""
    host = torch.from_numpy(values)
    return host.pin_memory() if device.type == "cuda" else host
