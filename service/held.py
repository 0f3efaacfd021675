"""A request in an engine's hands: what the engine has made of it and the queue does not know yet."""

from dataclasses import dataclass, field

from service.protocol import Emission, End, TokenLogprobs
from service.step_engine import StepOutput

MAX_UNSENT = 256
"""Tokens of one request that may wait for the queue before nothing more is computed."""


@dataclass(slots=True)
class Held:
    """A request in the engine, as far as the queue knows it."""

    epoch: int
    num_sent: int
    is_new: bool = True
    """Whether nothing of it was sent yet."""
    unsent: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    end: End | None = None

    def add(self, output: StepOutput) -> None:
        """Take what a step made of it."""
        self.unsent += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.end = output.end

    @property
    def is_urgent(self) -> bool:
        """Whether a client waits for its first token or its end."""
        return self.end is not None or (self.is_new and bool(self.unsent))

    @property
    def is_full(self) -> bool:
        """Whether no more tokens should be made before the queue has taken these."""
        return len(self.unsent) >= MAX_UNSENT

    def emit(self, request_id: str) -> Emission:
        """Return what is new, which counts as sent from here on."""
        emission = Emission(
            id=request_id,
            epoch=self.epoch,
            base=self.num_sent,
            token_ids=tuple(self.unsent),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            end=self.end,
        )
        self.num_sent += len(self.unsent)
        self.is_new &= not self.unsent
        self.unsent.clear()
        self.logprobs.clear()
        self.prompt_logprobs = ()
        return emission
