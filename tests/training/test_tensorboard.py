import importlib.util
from pathlib import Path

import pytest

from training.events import StepEvent
from training.tensorboard import FOLDER, open_tensorboard

EVENT = StepEvent(step=1, tokens=32, elapsed_s=0.5, progress=0.1, loss=3.0, grad_norm=1.0)


def test_without_it_a_run_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said: list[str] = []
    with open_tensorboard(tmp_path, said.append) as write:
        write(EVENT)
    assert len(said) == 1
    assert "pip install" in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_it_shows_the_losses_against_the_tokens(tmp_path: Path) -> None:
    with open_tensorboard(tmp_path, print) as write:
        write(EVENT)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    [point] = curves.Scalars("training/loss")
    assert (point.step, point.value) == (32, 3.0)
