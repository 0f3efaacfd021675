"""The engine as its worker sees it: synchronous, no I/O, and nothing here needs torch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from service.protocol import Claim, End, TokenLogprobs


class StepOutput(NamedTuple):
    """What a step made of one sequence."""

    id: str
    """Of the request."""
    token_ids: tuple[int, ...]
    """New tokens."""
    end: End | None
    """Set when the sequence ended with these tokens."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One of each of `token_ids`, where the request wants them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but the first, once, where the request wants them."""


class StepStats(NamedTuple):
    """What the last step was."""

    batch_size: int = 0
    num_tokens: int = 0
    kv_cache_usage: float = 0.0
    """Share of the pages that are held, 0 to 1."""
    num_preempted: int = 0
    num_queried_tokens: int = 0
    """Of the sequences that began: looked up in the prefix cache."""
    num_found_tokens: int = 0
    """Of these: not computed again."""


class EngineInfo(NamedTuple):
    """What computes, and with what."""

    device: str
    kernels: str
    """`torch`, or which of the native ones."""
    dtype: str
    """What the matrix products are computed in."""
    num_threads: int
    kv_cache_bytes: int
    """Most that keys and values, or recurrent states, may take."""
    batch_invariant: bool
    """Whether a token's logits are the same bits whatever else is computed with it."""

    def __str__(self) -> str:
        megabytes = round(self.kv_cache_bytes / 2**20)
        return f"{self.kernels} kernels in {self.dtype} on {self.device}, {megabytes} MiB of state"


class StepEngine(Protocol):
    """Continues requests, all of them by a little in each step."""

    def add(self, claim: Claim) -> None:
        """Take a request; one that cannot be computed ends with an error at the next step."""

    def abort(self, request_id: str) -> None:
        """Forget a request and free its pages; unknown: no error."""

    def step(self) -> Sequence[StepOutput]:
        """Compute one step; return what is new of each sequence that it changed.

        What goes wrong with one sequence ends that one, with an error. What this raises, out of memory included, is
        about all of them: no state in here is to be trusted any more, and the process must end.
        """

    @property
    def capacity(self) -> int:
        """How many more requests would be computed at once."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute or to return."""
