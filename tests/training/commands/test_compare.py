"""`minigpt compare`: every contestant trained once, whatever comes in between."""

import json
import signal
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from training.__main__ import app
from training.errors import TrainingError
from training.runlog import RunLog, read_events


@pytest.fixture
def arguments(tmp_path: Path, text: str, preset: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A comparison of two optimizers in tmp_path/compared; its budget is for the test to say."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fox.txt").write_text(text)
    data, out = tmp_path / "fox.txt", tmp_path / "compared"
    return ["compare", str(preset), "--optimizers", "sgd,muon", f"--data={data}", f"--out={out}"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_each_is_trained_once_and_set_beside_the_others(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "compared"
    told = invoke(*arguments, "--tokens", "200").output
    assert (out / "table.md").read_text() in told
    report = json.loads((out / "comparison.json").read_text())
    assert {(result["name"], result["tokens"]) for result in report["results"]} == {("muon", 224), ("sgd", 224)}
    names = {path.name for path in out.iterdir()}
    assert names == {"table.md", "comparison.json", "sgd-1337", "muon-1337"} | {
        f"loss-{axis}.png" for axis in ("tokens", "seconds", "flops")
    }
    logs = {path: path.read_bytes() for path in out.glob("*/log.jsonl")}
    invoke(*arguments, "--tokens", "200", "--seeds", "2")
    assert len(json.loads((out / "comparison.json").read_text())["results"]) == 4
    assert {path: path.read_bytes() for path in logs} == logs


def test_a_folder_with_another_comparison_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    invoke(*arguments, "--tokens", "100")
    files = {path: path.read_bytes() for path in (tmp_path / "compared").rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"sgd-1337: .*--out"):
        invoke(*arguments, "--tokens", "300")
    assert {path: path.read_bytes() for path in files} == files


def test_what_ctrl_c_left_is_gone_on_with(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLog.write

    def write_and_interrupt(log: RunLog, event: object) -> None:
        write(log, event)  # type: ignore[arg-type]
        if len(log.events) == 2:
            signal.raise_signal(signal.SIGINT)

    log = tmp_path / "compared" / "sgd-1337" / "log.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "write", write_and_interrupt)
        stopped = invoke(*arguments, "--tokens", "200")
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.output
    before = log.read_bytes()
    assert invoke(*arguments, "--tokens", "200").exit_code == 0
    assert log.read_bytes().startswith(before)
    assert [event["event"] for event in read_events(log)].count("end") == 1
