from pathlib import Path

from training.events import StepEvent
from training.runlog import RunLog, plot_curves, read_events


def step(number: int) -> StepEvent:
    return StepEvent(step=number, tokens=number * 10, elapsed_s=0.5, progress=0.1, loss=3.0 / number, grad_norm=1.0)


def test_a_resumed_log_drops_what_the_resumed_state_has_not_seen(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = RunLog(file)
    for number in range(1, 6):
        log.write(step(number))
    file.write_bytes(file.read_bytes() + b'{"event": "step", "st')  # a kill in mid-line
    resumed = RunLog(file, from_step=3)
    resumed.write(step(4))
    assert [event["step"] for event in read_events(file)] == [1, 2, 3, 4]
    assert resumed.events == read_events(file)


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    RunLog(file).write(step(1))
    assert RunLog(file).events == []
    assert file.read_bytes() == b""


def test_curves_are_drawn_even_of_a_run_that_was_interrupted_early(tmp_path: Path) -> None:
    for events in ([], [step(1)]):
        log = RunLog(tmp_path / "log.jsonl")
        for event in events:
            log.write(event)
        plot_curves(log.events, tmp_path / "curve.png", "a run")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert not (tmp_path / ".curve.png.new").exists()
