"""What an engine is made of: a runner that computes logits, a sampler that draws tokens, a pool that holds the past."""

from collections.abc import Sequence as Ordered
from typing import NamedTuple, Protocol

from torch import Tensor

from service.engine.interface import EngineInfo
from service.engine.page_pool import PagePool
from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence


class Runner(Protocol):
    """Computes a step."""

    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        """Compute the chunks; return the logits that they want, in their order, `(S, V)` float32."""


class Sampler(Protocol):
    """Draws tokens; a row's token depends on nothing but its own logits and parameters."""

    def __call__(self, logits: Tensor, sequences: Ordered[Sequence]) -> list[int | None]:
        """Draw the next token of each sequence from its row of `logits` `(S, V)` float32, which may be changed.

        Returns:
            A token id each; None where the logits are not finite.
        """


class Backend(NamedTuple):
    """What computes a model, chosen together."""

    runner: Runner
    sampler: Sampler
    pool: PagePool
    """Pages, or slots, as many as the runner's storage has."""
    info: EngineInfo
    can_speculate: bool
    """Whether several tokens of a sequence may be computed in a step to be thrown away, at no cost to determinism."""
