"""Whether a run has begun to learn its text by heart."""

from training.events import EvaluationEvent, StepEvent

SMOOTHING = 0.95
"""Share of the old training loss kept at each step: the losses of single batches jump about."""
EVALUATIONS_IN_A_ROW = 2
"""Without a new best, before it is more than chance."""


class OverfittingWatch:
    """Compare what a model does on its text with what it does on the text held out."""

    def __init__(self) -> None:
        self.training_loss: float | None = None
        """Smoothed."""
        self.best: EvaluationEvent | None = None
        self._training_loss_at_best: float | None = None
        self._worse: list[int] = []

    def step(self, event: StepEvent) -> None:
        """Take in the loss of a batch."""
        known = self.training_loss
        self.training_loss = event.loss if known is None else SMOOTHING * known + (1 - SMOOTHING) * event.loss

    def evaluation(self, event: EvaluationEvent) -> None:
        """Take in the loss on the text held out."""
        if event.is_best:
            self.best = event
            self._training_loss_at_best = self.training_loss
            self._worse = []
        else:
            self._worse.append(event.step)

    @property
    def since(self) -> int | None:
        """Step of the first evaluation that was worse while training went on getting better; None: all is well."""
        if len(self._worse) < EVALUATIONS_IN_A_ROW or self.training_loss is None or self._training_loss_at_best is None:
            return None
        return self._worse[0] if self.training_loss < self._training_loss_at_best else None
