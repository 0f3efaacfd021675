"""What a run tells: each event is a line of its log."""

from typing import Literal

import msgspec

Ending = Literal["budget", "target", "patience"]


class StepEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="step"):
    """One optimizer step was made."""

    step: int
    tokens: int
    elapsed_s: float
    progress: float
    """Share of the budget that is used, 0 to 1."""
    loss: float
    """Mean nats a token over the step's batch, before the step."""
    grad_norm: float


class EvaluationEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="evaluation"):
    """The validation split was read."""

    step: int
    tokens: int
    elapsed_s: float
    loss: float
    """Mean nats a token over the whole split."""
    nats_per_char: float
    bits_per_byte: float
    raw_loss: float
    """The same without the temperature."""
    temperature: float
    """What the logits are divided by in the checkpoint; 1: the run has none."""
    random_estimate: float | None
    """nanoGPT's estimate, at the end of the run only: it costs several times the whole split."""
    is_best: bool
    text: str
    """What the model writes now."""


class EndEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="end"):
    """The run is over; times are of all its parts, where it was resumed."""

    step: int
    tokens: int
    elapsed_s: float
    ending: Ending
    data_s: float
    """Of it, waiting for batches."""
    evaluation_s: float
    """Of it, reading the whole validation split."""
    flops: float
    """Floating-point operations of the training steps, as `training.costs` counts them."""
    peak_memory_bytes: int
    """Most that this process held, on the GPU where it trains on one."""

    @property
    def gflops_per_s(self) -> float:
        """Speed over the whole run, evaluations and all."""
        return self.flops / self.elapsed_s / 1e9 if self.elapsed_s else 0.0


Event = StepEvent | EvaluationEvent | EndEvent
