"""The curves of a run for TensorBoard, where that is installed."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from training.events import EvaluationEvent, Event, StepEvent

FOLDER = "tensorboard"


@contextlib.contextmanager
def open_tensorboard(
    folder: Path, notice: Callable[[str], None], num_tokens: int = 0
) -> Iterator[Callable[[Event], None]]:
    """Yield what writes an event below `folder`; without TensorBoard it writes nothing, and `notice` hears why.

    Args:
        folder: Of the run.
        notice: Where one line for the user goes.
        num_tokens: Trained on so far; what a resumed run has written of later ones is forgotten.
    """
    if importlib.util.find_spec("tensorboard") is None:
        notice("run.tensorboard: TensorBoard is not here: going on without (pip install tensorboard)")
        yield lambda _: None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries below it
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / FOLDER), purge_step=num_tokens + 1 if num_tokens else None)

    def write(event: Event) -> None:
        for name, value in _scalars(event).items():
            writer.add_scalar(name, value, event.tokens)

    try:
        yield write
    finally:
        writer.close()


def _scalars(event: Event) -> dict[str, float]:
    match event:
        case StepEvent():
            return {"training/loss": event.loss, "training/grad_norm": event.grad_norm}
        case EvaluationEvent():
            return {"validation/loss": event.loss, "validation/bits_per_byte": event.bits_per_byte}
        case _:
            return {}
