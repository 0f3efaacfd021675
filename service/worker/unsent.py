"""What the engine has made of a request and the queue does not know yet."""

from dataclasses import dataclass, field

from service.engine.interface import StepOutput
from service.protocol import Emission, End, TokenLogprobs

MAX_UNSENT = 256
"""Tokens of one request that may wait for the queue before nothing more is computed."""


@dataclass(slots=True)
class UnsentOutput:
    """Output of one claimed request, gathered until it is sent."""

    epoch: int
    """Of the claim."""
    num_sent: int
    """Tokens that the queue has, those of earlier workers included."""
    is_new: bool = True
    """Whether nothing of it was sent yet."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    end: End | None = None

    def add(self, output: StepOutput) -> None:
        """Take what a step made of the request."""
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.end = output.end

    @property
    def is_urgent(self) -> bool:
        """Whether a client waits for the request's first token or its end."""
        return self.end is not None or (self.is_new and bool(self.token_ids))

    @property
    def is_full(self) -> bool:
        """Whether no more tokens should be made before the queue has taken these."""
        return len(self.token_ids) >= MAX_UNSENT

    def emit(self, request_id: str) -> Emission:
        """Return what is new; it counts as sent from now on."""
        emission = Emission(
            id=request_id,
            epoch=self.epoch,
            base=self.num_sent,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            end=self.end,
        )
        self.num_sent += len(self.token_ids)
        self.is_new &= not self.token_ids
        self.token_ids.clear()
        self.logprobs.clear()
        self.prompt_logprobs = ()
        return emission
