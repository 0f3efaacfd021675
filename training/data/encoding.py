"""Pieces of text to token ids, by several processes where the text is long."""

import multiprocessing
import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from training.data.pieces import Piece
from training.errors import CorpusError
from training.tokenizers.base import Tokenizer

UINT16 = "<u2"
BATCH_BYTES = 2**20
"""Text that a process takes at once."""
WORTH_PROCESSES_BYTES = 2**25
"""Shorter texts are encoded before a process has started."""
MAIN_MB, WORKER_MB = 128, 96
"""What the process that reads, and each one that encodes, take at most."""


class Encoded(NamedTuple):
    """Some of a text as token ids."""

    ids: bytes
    """`UINT16`; with `END_OF_TEXT` between documents."""
    num_chars: int
    num_bytes: int


Encode = Callable[[Iterable[Piece]], Iterator[Encoded]]
"""Pieces to their ids, in parts one after the other."""


def num_processes(text_bytes: int, memory_mb: int) -> int:
    """Return how many processes are to encode a text; 1: the one that asks.

    Args:
        text_bytes: Length of the text.
        memory_mb: What all processes together may take, in MB.
    """
    if text_bytes < WORTH_PROCESSES_BYTES:
        return 1
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(num_cpus, (memory_mb - MAIN_MB) // WORKER_MB))


@contextmanager
def open_encoder(tokenizer: Tokenizer, processes: int) -> Iterator[Encode]:
    """Start processes that encode pieces; the ids do not depend on how many there are.

    Raises:
        CorpusError: a process was ended from outside.
    """
    if processes == 1:
        yield lambda pieces: (_encode(tokenizer, batch) for batch in _batches(pieces))
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(_start_worker(tokenizer)))
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        yield lambda pieces: _in_order(pool, partial(_ask, idle), _batches(pieces), 2 * processes)


def _encode(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Encoded:
    border = np.array([tokenizer.end_of_text_id]).astype(UINT16)  # a vocabulary beyond it is refused by encode_array
    ids = ((border[: piece.opens_document], tokenizer.encode_array(piece.text)) for piece in pieces)
    return Encoded(
        np.concatenate([part for parts in ids for part in parts]).astype(UINT16).tobytes(),
        sum(len(piece.text) for piece in pieces),
        sum(piece.num_bytes for piece in pieces),
    )


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = list[Piece](), 0
    for piece in pieces:
        batch.append(piece)
        size += piece.num_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(
    pool: ThreadPoolExecutor,
    encode: Callable[[list[Piece]], Encoded],
    batches: Iterable[list[Piece]],
    max_waiting: int,
) -> Iterator[Encoded]:
    """Encode at once, and never hold more than `max_waiting` batches."""
    waiting = deque[Future[Encoded]]()
    for batch in batches:
        waiting.append(pool.submit(encode, batch))
        if len(waiting) == max_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ask(idle: "queue.SimpleQueue[Connection]", batch: list[Piece]) -> Encoded:
    worker = idle.get()
    try:
        worker.send(batch)
        encoded: Encoded = worker.recv()
        return encoded
    except (EOFError, OSError) as error:
        raise CorpusError("a process that encodes the text has died: is data.memory_mb more than is free?") from error
    finally:
        idle.put(worker)


@contextmanager
def _start_worker(tokenizer: Tokenizer) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks as they are
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(tokenizer, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _work(tokenizer: Tokenizer, batches: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    try:
        while True:
            batches.send(_encode(tokenizer, batches.recv()))
    except (EOFError, ConnectionError):  # that process has ended, or needs no more
        return
