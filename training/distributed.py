"""The processes of one run: who this one is among them, and what they tell each other."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the first evaluates and writes while they wait."""


class Ranks:
    """One process among those of its run; on its own it talks to nobody.

    Args:
        rank: Its number, 0 to `num_ranks` - 1; number 0 writes the files and speaks to the user.
        num_ranks: Processes of the run.
    """

    def __init__(self, rank: int = 0, num_ranks: int = 1) -> None:
        self.rank = rank
        self.num_ranks = num_ranks

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Yield this process' part of what is dealt out in turn."""
        return islice(items, self.rank, None, self.num_ranks)

    def sum(self, value: float) -> float:
        """Return the sum of the processes' values."""
        return sum(self._all(value))

    def any(self, value: bool) -> bool:
        """Tell whether any process says so: all of them hear the same."""
        return any(self._all(float(value)))

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return what each process makes, the first before the others: they find in a cache what it left there."""
        made = make() if self.is_first else None
        self.any(False)  # the others wait here
        return made if made is not None else make()

    def of_first(self, value: float) -> float:
        """Return the first process' value, bit for bit."""
        return self._all(value)[0]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process' tensor, all of one shape."""
        if self.num_ranks == 1:
            return [tensor]
        received = [torch.empty_like(tensor) for _ in range(self.num_ranks)]
        dist.all_gather(received, tensor.contiguous())
        return received

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return what computes as `model` does, and whose gradients are the mean over the processes."""
        if self.num_ranks == 1:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False)

    def _all(self, value: float) -> list[float]:
        return [float(other) for other in self.gather(torch.tensor(value, dtype=torch.float64))]


ALONE = Ranks()
"""The one process of most runs."""


@contextlib.contextmanager
def joined_ranks(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """Join the processes that torchrun started, with gloo for the CPU and nccl for GPUs, one for each process.

    Args:
        environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them; without: `ALONE`.
    """
    rank, num_ranks = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if num_ranks == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", 0)))
    dist.init_process_group(rank=rank, world_size=num_ranks, timeout=PATIENCE)
    try:
        yield Ranks(rank, num_ranks)
    finally:
        dist.destroy_process_group()


def without_exchange(model: nn.Module, *, yes: bool) -> contextlib.AbstractContextManager[None]:
    """Where `yes`, keep gradients to this process: they are exchanged with the last micro-batch of a step."""
    if yes and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
