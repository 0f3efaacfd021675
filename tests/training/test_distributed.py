"""Several processes of one run, started as a user starts them: by torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import FAMILIES
from training.checkpoint import load_checkpoint
from training.config import TrainConfig, load_config
from training.data.prepare import PreparedData
from training.evaluate import evaluate
from training.events import EvaluationEvent, StepEvent
from training.runlog import read_events
from training.trainer import Trainer

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[str]]
STREAMS = {"batches": "streams", "batch_size": 4, "accumulate": 2, "eval_every": 4}
GPT_RUN = ["model.dropout=0.0", "run.batch_size=4", "run.accumulate=2", "run.eval_every=4", "budget.steps=8"]
GPT_RUN += ["optim.algorithm=adamw"]  # in fp32: Muon's bf16 makes more of the last bit
GPT_RUN += ["optim.warmup_fraction=0.0", "optim.decay_fraction=0.0"]  # so that another budget is the same run


@pytest.fixture
def start(tmp_path: Path, text: str) -> Start:
    """A function that starts `minigpt train` in two processes."""
    (tmp_path / "fox.txt").write_text(text)

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, "-m", "training", "train", *map(str, arguments), "--data", str(tmp_path / "fox.txt")]
        env = os.environ | {"MINIGPT_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=env, cwd=ROOT, **pipes)

    return begin


def losses(folder: Path, tag: str) -> list[float]:
    return [event["loss"] for event in read_events(folder / "log.jsonl") if event["event"] == tag]


def test_two_processes_lose_what_one_does_and_one_goes_on_with_their_run(
    preset: Path, prepared: PreparedData, tmp_path: Path, start: Start
) -> None:
    config = load_config(str(preset), GPT_RUN)
    events = list(Trainer(config, prepared, tmp_path / "one").run())
    expected = [event.loss for event in events if isinstance(event, StepEvent)]
    out = tmp_path / "two"
    changes = [f"--set={change}" for change in [*GPT_RUN, "budget.steps=4"]]
    with start(preset, "--out", out, *changes) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count("ended by budget") == 1
    assert {path.name for path in out.iterdir()} == {"checkpoint", "log.jsonl", "curve.png", "resume.safetensors"}
    assert losses(out, "step") == pytest.approx(expected[:4], abs=1e-5)
    [evaluated] = losses(out, "evaluation")
    assert evaluate(load_checkpoint(out).model, prepared, 16).loss == pytest.approx(evaluated, abs=1e-5)

    again = Trainer(config, prepared, out, resume=True)
    assert [e.loss for e in again.run() if isinstance(e, StepEvent)] == pytest.approx(expected[4:], abs=5e-4)


def test_two_processes_go_on_with_the_streams_of_one(
    make_config: Callable[..., TrainConfig], prepared: PreparedData, tmp_path: Path, start: Start
) -> None:
    config = make_config(model=FAMILIES["lstm"] | {"dropout": 0.0}, run=STREAMS)
    whole = Trainer(config, prepared, tmp_path / "whole")
    expected = [event.loss for event in whole.run() if isinstance(event, StepEvent)]
    first = Trainer(config, prepared, tmp_path / "run")
    next(event for event in first.run() if isinstance(event, EvaluationEvent))
    first.save()
    with start("--resume", "--out", tmp_path / "run") as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert losses(tmp_path / "run", "step") == pytest.approx(expected[4:], abs=5e-4)
    ours, theirs = (safetensors.torch.load_file(tmp_path / name / "resume.safetensors") for name in ("run", "whole"))
    assert {*ours} == {*theirs}
    for name in ours:
        if name.startswith("state/"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_ctrl_c_saves_the_run_of_all_processes(
    preset: Path, prepared: PreparedData, tmp_path: Path, start: Start
) -> None:
    config = load_config(str(preset), ["budget.steps=1000000"])
    said = ""
    with start(preset, "--out", tmp_path / "run", "--set=budget.steps=1000000") as process:
        assert process.stdout
        for line in process.stdout:
            said += line
            if "best so far" in line:
                process.send_signal(signal.SIGINT)
                break
        said += process.stdout.read()
    assert said.count("interrupted and saved") == 1, said
    step = read_events(tmp_path / "run" / "log.jsonl")[-1]["step"]
    assert Trainer(config, prepared, tmp_path / "run", resume=True).state.step == step
