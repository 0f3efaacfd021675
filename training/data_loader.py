"""What the model reads: the micro-batches of a step, each with the past of its rows where it has one."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
import torch
from torch import Tensor

from training.config import RunConfig
from training.data.batches import Batches, RandomBatches, StreamBatches, Tokens
from training.distributed import Ranks
from training.errors import ConfigError, TrainingError
from training.models.base import CarriedState, SlotSpec, StateSpec


class MicroBatch(msgspec.Struct, frozen=True):
    """Rows that are computed at once."""

    inputs: Tensor
    targets: Tensor
    state: CarriedState | None


class DataLoader:
    """The rows of this process: of each batch of `batch_size × accumulate` rows every `num_ranks`-th.

    How a step's batch is cut into micro-batches and shared among processes changes neither its rows nor their past.

    Args:
        run: Batches and seed.
        tokens: The text to train on.
        context_length: Tokens T of a row.
        spec: What of the past the model needs kept.
        device: Where the model stands.
        ranks: The processes of the run.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: `batch_size` does not divide among the processes.
        CorpusError: a text too short.
    """

    def __init__(
        self,
        run: RunConfig,
        tokens: Tokens,
        context_length: int,
        spec: StateSpec,
        device: torch.device,
        ranks: Ranks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if run.batch_size % ranks.num_ranks:
            raise ConfigError(
                f"run.batch_size = {run.batch_size}: {ranks.num_ranks} processes share it; give a multiple of that"
            )
        num_rows = run.batch_size * run.accumulate
        kind = StreamBatches if run.batches == "streams" else RandomBatches
        self.batches: Batches = kind(tokens, num_rows, context_length, seed=run.seed)
        self._seconds = 0.0
        self._spec = spec if isinstance(spec, SlotSpec) and run.batches == "streams" else None
        self._num_rows = num_rows // ranks.num_ranks
        self._device = device
        self._ranks = ranks
        self._clock = clock
        self._past = self._no_past()
        self._read: list[CarriedState] = []

    def micro_batches(self, step: int, accumulate: int) -> Iterator[MicroBatch]:
        """Yield the batch of `step` in `accumulate` parts; `advance` says that it was learned from."""
        if self.batches.num_batches and step % self.batches.num_batches == 0:
            self._past = self._no_past()
        self._read = []
        size = self._num_rows // accumulate
        for first in range(0, self._num_rows, size):
            yield self._micro_batch(step, first, first + size)

    def advance(self) -> None:
        """Keep the past as the last batch left it."""
        if self._past and self._read:
            for name in self._past.tensors:
                self._past.tensors[name] = torch.cat([part.tensors[name] for part in self._read])

    def take_seconds(self) -> float:
        """Return the time spent on batches since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the past of all rows of all processes, `(B, *shape)`; every process must ask."""
        past = self._past.tensors if self._past else {}
        # Rows are dealt out in turn.
        return {name: torch.stack(self._ranks.gather(part), 1).flatten(0, 1) for name, part in past.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` returned, in however many processes.

        Raises:
            TrainingError: it is the past of other streams.
        """
        past = self._past.tensors if self._past else {}
        for name, part in past.items():
            rows = tensors[name][self._ranks.rank :: self._ranks.num_ranks] if name in tensors else part[:0]
            if rows.shape != part.shape:
                raise TrainingError("--resume cannot change the streams: keep run.batches, batch_size and accumulate")
            past[name] = rows.to(part)

    def _micro_batch(self, step: int, first: int, last: int) -> MicroBatch:
        started = self._clock()
        ranks = self._ranks
        rows = slice(first * ranks.num_ranks + ranks.rank, last * ranks.num_ranks, ranks.num_ranks)
        inputs, targets = self.batches.batch(step, rows)
        batch = MicroBatch(inputs.to(self._device), targets.to(self._device), self._lend(first, last))
        self._seconds += self._clock() - started
        return batch

    def _lend(self, first: int, last: int) -> CarriedState | None:
        if self._past is None:
            return None
        part = copy.copy(self._past)
        part.tensors = {name: tensor[first:last] for name, tensor in self._past.tensors.items()}
        self._read.append(part)
        return part

    def _no_past(self) -> CarriedState | None:
        return CarriedState(self._spec, self._num_rows, self._device) if self._spec else None
