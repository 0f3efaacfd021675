"""Token ids to batches: `(inputs, targets)`, each `(B, T)` int64, the targets one token ahead of the inputs."""

import functools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.errors import CorpusError

Tokens = npt.NDArray[np.uint16]
Batch = tuple[Tensor, Tensor]
ALL_ROWS = slice(None)


class Batches(Protocol):
    """Training batches, one for each step; a batch depends on its index alone, so a run is resumed by going on."""

    @property
    def num_batches(self) -> int | None:
        """Batches after which the text begins anew for every row; None: rows never go on from batch to batch."""

    def batch(self, index: int, rows: slice = ALL_ROWS) -> Batch:
        """Return `rows` of batch `index`, counted from 0 over all epochs."""


class RandomBatches:
    """Windows from everywhere: each epoch cuts the text anew and draws every window once, in random order.

    Args:
        tokens: The training split.
        batch_size: Windows B in a batch.
        context_length: Tokens T of a window.
        seed: At least 0.

    Raises:
        CorpusError: fewer than T + 1 tokens.
    """

    num_batches = None

    def __init__(self, tokens: Tokens, batch_size: int, context_length: int, seed: int) -> None:
        _require_window(tokens, context_length)
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        # One window less than fit leaves room to shift the cuts by a whole window.
        self._num_windows = max(1, (len(tokens) - 1) // context_length - 1)
        self._starts = functools.lru_cache(maxsize=2)(self._draw_starts)

    def batch(self, index: int, rows: slice = ALL_ROWS) -> Batch:
        """Return `rows` of batch `index`, counted from 0 over all epochs."""
        first = index * self._batch_size
        places = [divmod(first + row, self._num_windows) for row in range(self._batch_size)[rows]]
        starts = np.array([self._starts(epoch)[window] for epoch, window in places], np.int64)
        return _windows(self._tokens, starts, self._context_length)

    def _draw_starts(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        slack = len(self._tokens) - 1 - self._num_windows * self._context_length
        offset = rng.integers(slack, endpoint=True)
        return offset + self._context_length * rng.permutation(self._num_windows)


class StreamBatches:
    """Streams side by side: the text, as a ring, is cut into B equal parts; batch i is window i of each of them.

    Each epoch cuts the ring at other places.

    Args:
        tokens: The training split.
        batch_size: Streams B.
        context_length: Tokens T of a window.
        seed: At least 0.

    Raises:
        CorpusError: a part would be shorter than a window.
    """

    def __init__(self, tokens: Tokens, batch_size: int, context_length: int, seed: int) -> None:
        self._part = len(tokens) // batch_size
        if self._part < max(2, context_length):
            raise CorpusError(
                f"{len(tokens)} tokens are too few for {batch_size} streams in windows of {context_length}: "
                "use a longer text, a smaller run.batch_size, or a smaller model.context_length"
            )
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed

    @property
    def num_batches(self) -> int:
        """Batches of an epoch: after them every stream begins elsewhere."""
        return self._part // self._context_length

    def batch(self, index: int, rows: slice = ALL_ROWS) -> Batch:
        """Return `rows` of batch `index`, counted from 0 over all epochs."""
        epoch, window = divmod(index, self.num_batches)
        offset = np.random.default_rng((self._seed, epoch)).integers(len(self._tokens))
        streams = np.arange(self._batch_size)[rows]
        return _windows(
            self._tokens, offset + self._part * streams + self._context_length * window, self._context_length
        )


def validation_windows(tokens: Tokens, context_length: int, batch_size: int = 64) -> Iterator[Batch]:
    """Yield the whole split in windows side by side: every token but the first is a target exactly once.

    Args:
        tokens: The validation split.
        context_length: Tokens T of a window; the last one, a batch of its own, may be shorter.
        batch_size: Windows B in a batch; the last batches may have fewer.

    Raises:
        CorpusError: fewer than two tokens.
    """
    _require_window(tokens, 1)
    num_full, num_left = divmod(len(tokens) - 1, context_length)
    starts = context_length * np.arange(num_full)
    for first in range(0, num_full, batch_size):
        yield _windows(tokens, starts[first : first + batch_size], context_length)
    if num_left:
        yield _windows(tokens, np.array([context_length * num_full]), num_left)


def validation_streams(tokens: Tokens, context_length: int, num_streams: int = 64) -> Iterator[Iterator[Batch]]:
    """Yield the whole split as streams to be read on from window to window, then the few tokens that are left over.

    Args:
        tokens: The validation split.
        context_length: Tokens T of a window; the last one of a stream may be shorter.
        num_streams: Streams B side by side, all of one length.

    Yields:
        Groups of batches; the rows of a group go on from batch to batch. Every token but the first is a target once.

    Raises:
        CorpusError: fewer than two tokens.
    """
    _require_window(tokens, 1)
    length, num_left = divmod(len(tokens) - 1, num_streams)
    if length:
        yield _stream_windows(tokens, length * np.arange(num_streams), length, context_length)
    if num_left:
        yield _stream_windows(tokens, np.array([length * num_streams]), num_left, context_length)


def random_estimate_batches(
    tokens: Tokens, batch_size: int, context_length: int, num_batches: int, seed: int
) -> Iterator[Batch]:
    """Yield windows from uniformly random places, as nanoGPT's `estimate_loss` takes them.

    Args:
        tokens: The split to estimate on.
        batch_size: Windows B in a batch.
        context_length: Tokens T of a window.
        num_batches: Batches to yield.
        seed: At least 0; the same seed, the same batches.

    Raises:
        CorpusError: fewer than T + 1 tokens.
    """
    _require_window(tokens, context_length)
    rng = np.random.default_rng(seed)
    for _ in range(num_batches):
        yield _windows(tokens, rng.integers(len(tokens) - context_length, size=batch_size), context_length)


def _stream_windows(tokens: Tokens, starts: npt.NDArray[np.int64], length: int, context_length: int) -> Iterator[Batch]:
    for first in range(0, length, context_length):
        yield _windows(tokens, starts + first, min(context_length, length - first))


def _windows(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> Batch:
    places = (starts[:, None] + np.arange(length + 1)) % len(tokens)  # (B, T + 1)
    windows = torch.from_numpy(tokens[places].astype(np.int64))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _require_window(tokens: Tokens, context_length: int) -> None:
    if len(tokens) <= context_length:
        raise CorpusError(
            f"a split of {len(tokens)} tokens has no window of {context_length} + 1: use a longer text, another "
            f"data.validation_fraction, or --set model.context_length={max(1, len(tokens) - 1)}"
        )
