"""Decode steps as CUDA graphs: one launch for a whole step, one graph for each size of batch.

Nothing here but `GraphRecorder` needs a GPU. A recorder is handed in, so that the same runner is tested on CPUs.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.paged_kv import Attention, PagedKV
from service.engine.backends.step_inputs import Integers, StepInputs, pack, stage
from service.engine.backends.torch_paged import TorchRunner
from service.engine.scheduler import ScheduledChunk
from training.models.gpt import GPT

Step = Callable[[], Tensor]
Recorder = Callable[[Step], Step]
"""Turns a step into one that does the same again: reads the same tensors, writes to the one that it returns."""


class GraphRunner(TorchRunner):
    """Runs steps that only decode from graphs, recorded at construction; all others as `TorchRunner` does.

    The logits that it returns last until its next run.

    Args:
        model: In evaluation mode, on the device of `kv`.
        kv: Where the past is kept; its last page belongs to the runner, and to no sequence.
        attention: How it is read.
        max_num_seqs: Most rows of a step.
        record: Makes a graph of a step.
    """

    def __init__(self, model: GPT, kv: PagedKV, attention: Attention, *, max_num_seqs: int, record: Recorder) -> None:
        super().__init__(model, kv, attention)
        # The largest first: the others find room in the memory that it took.
        sizes = reversed(bucket_sizes(max_num_seqs))
        self._buckets = [_Bucket(size, model, kv, attention, record) for size in sizes][::-1]

    @override
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        if any((chunk.num_tokens, chunk.num_logits) != (1, 1) for chunk in chunks):
            return super().run(chunks)
        return next(bucket for bucket in self._buckets if bucket.size >= len(chunks)).run(chunks)


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Return the powers of two below `max_num_seqs`, and that, in ascending order."""
    return [*(2**power for power in range((max_num_seqs - 1).bit_length())), max_num_seqs]


class _Bucket:
    """A recorded step of `size` rows, of which fewer may be somebody's; the rest write to the last page."""

    @torch.inference_mode()
    def __init__(self, size: int, model: GPT, kv: PagedKV, attention: Attention, record: Recorder) -> None:
        self.size = size
        self._kv = kv
        self._num_before = model.num_before
        max_context = model.state_spec.max_context
        self._width = -(-max_context // kv.page_size)
        self._flat = torch.from_numpy(self._pack([])).to(kv.keys.device)
        inputs = StepInputs(self._flat, [1] * size, [max_context] * size, model.num_before)

        def step() -> Tensor:
            hidden = model.hidden(inputs.token_ids, attention(kv, inputs))[0]  # (size, C)
            return model.lm_head(hidden).float()

        self._replay = record(step)

    @torch.inference_mode()
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        """Compute chunks of one token each; return their logits, `(len(chunks), V)`."""
        self._flat.copy_(stage(self._pack(chunks), self._flat.device), non_blocking=True)
        return self._replay()[: len(chunks)]

    def _pack(self, chunks: Ordered[ScheduledChunk]) -> Integers:
        return pack(
            chunks,
            self._kv.page_size,
            width=self._width,
            num_before=self._num_before,
            num_unused=self.size - len(chunks),
            scratch_page=self._kv.num_pages - 1,
        )


class GraphRecorder:
    """Records steps on a CUDA device; its graphs share their memory, so one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Record a step; return what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._stream.device):
            self._warm_up(step)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, step: Step) -> None:
        """Let libraries choose their kernels and take their workspaces, which they may not while a graph is recorded.

        Source: PyTorch's notes on CUDA semantics, "CUDA Graphs": a few runs on the side stream come before.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                step()
        current.wait_stream(self._stream)
