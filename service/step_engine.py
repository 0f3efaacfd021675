"""An engine as the worker needs it: synchronous, no I/O."""

from collections.abc import Sequence
from typing import Protocol

from service.protocol import Claim, End, TokenLogprobs


class StepOutput(Protocol):
    """What a step made of one sequence."""

    @property
    def id(self) -> str:
        """Of the request."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """New tokens."""

    @property
    def end(self) -> End | None:
        """Set when the sequence ended with these tokens."""

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Of each of `token_ids`, where the request wants them."""

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Of the prompt's tokens, once, where the request wants them."""


class StepEngine(Protocol):
    """Continues requests, all of them by a little in each step."""

    def add(self, claim: Claim) -> None:
        """Take a request; a bad one ends with an error at the next step."""

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown: no error."""

    def step(self) -> Sequence[StepOutput]:
        """Compute once for all; return the sequences with news.

        What goes wrong with one sequence ends that one, with an error. What this raises, out of memory included, is
        about all of them: no state in here is to be trusted any more, and the process must end.
        """

    @property
    def room(self) -> int:
        """How many more requests it wants now."""

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
