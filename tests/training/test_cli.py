"""The commands as a user starts them: real processes, real signals, real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.__main__ import main
from training.runlog import read_events

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "fox.txt"
    file.write_text(text)
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "training", *map(str, arguments)]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"MINIGPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True)


def test_train_evaluate_sample(tmp_path: Path, corpus: Path, preset: Path) -> None:
    out = tmp_path / "run"
    done = run(tmp_path, "train", preset, "--data", corpus, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "ended by budget" in done.stdout
    assert {"checkpoint", "log.jsonl", "curve.png", "resume.safetensors"} == {path.name for path in out.iterdir()}
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    losses = [event["loss"] for event in read_events(out / "log.jsonl") if event["event"] == "evaluation"]
    evaluated = run(tmp_path, "evaluate", out, "--data", corpus, "--estimate")
    assert f"{min(losses):.4f} nats a token" in evaluated.stdout, evaluated.stderr
    first, second = (run(tmp_path, "sample", out, "the ", "--max-tokens", "20").stdout for _ in range(2))
    assert first == second
    assert first.startswith("the ")
    again = run(tmp_path, "train", preset, "--data", corpus, "--out", out)
    assert again.returncode == 2
    assert "--resume" in again.stderr


def test_killed_while_it_saves_it_goes_on_bit_for_bit(tmp_path: Path, corpus: Path, preset: Path) -> None:
    """Each evaluation saves; the kill falls wherever it falls, also between the two files and the two renames."""
    arguments = ["train", preset, "--data", corpus, "--set", "run.eval_every=1", "--set", "budget.steps=60"]
    whole = run(tmp_path, *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    parts = tmp_path / "parts"
    saved = parts / "resume.safetensors"
    for round_ in range(2):
        resume = ["--resume"] if saved.exists() else []
        process = subprocess.Popen(
            command(*arguments, "--out", parts, *resume), env=environment(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        before = saved.stat().st_mtime_ns if saved.exists() else None
        while process.poll() is None and (not saved.exists() or saved.stat().st_mtime_ns == before):
            time.sleep(0.001 * (1 + round_))  # another moment each time
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = run(tmp_path, *arguments, "--out", parts, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (safetensors.torch.load_file(path / "resume.safetensors") for path in (parts, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [event["step"] for event in read_events(parts / "log.jsonl") if event["event"] == "step"]
    assert steps == list(range(1, 61))


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path, corpus: Path, preset: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", preset, "--data", corpus, "--out", out, "--set", "budget.steps=100000"]
    started = {"env": environment(tmp_path), "cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*arguments), **started) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "best so far" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "--resume" in rest
    step = read_events(out / "log.jsonl")[-1]["step"]
    done = run(tmp_path, *arguments[:-2], "--resume", "--set", f"budget.steps={step + 3}")
    assert done.returncode == 0, done.stderr
    assert read_events(out / "log.jsonl")[-1]["step"] == step + 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_run_saves_plain_names_and_resumes_without_the_compiler(
    tmp_path: Path, corpus: Path, preset: Path
) -> None:
    arguments = ["train", preset, "--data", corpus, "--out", tmp_path / "run"]
    compiled = run(tmp_path, *arguments, "--set", "run.compile=true", "--set", "budget.steps=4")
    assert compiled.returncode == 0, compiled.stderr
    names = safetensors.torch.load_file(tmp_path / "run" / "checkpoint" / "model.safetensors").keys()
    assert "model.layers.0.self_attn.q_proj.weight" in names
    resumed = run(tmp_path, *arguments, "--resume", "--set", "run.compile=false", "--set", "budget.steps=6")
    assert resumed.returncode == 0, resumed.stderr


def test_list_shows_every_preset(tmp_path: Path) -> None:
    shown = run(tmp_path, "train", "--list")
    assert shown.returncode == 0
    for file in (ROOT / "training" / "presets").glob("*.toml"):
        assert file.stem in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "nosuch"], "no preset"),
        (["train", "best", "--data", "nowhere.txt"], "nowhere.txt"),
        (["train", "best", "--set", "model.n_layers=2"], "n_layers"),
        (["train", "best", "--resume", "--out", "nowhere"], "nothing to resume"),
        (["train", "--minutes", "5", "--set", "budget.tokens=1000"], "--minutes 5 and --set budget.tokens=1000"),
        (["train", "--minutes", "-1"], "minutes"),
        (["compare", "best"], "--minutes, --tokens, --flops"),
        (["sample", "nowhere"], "no such folder"),
        (["evaluate", "nowhere"], "no such folder"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, refused_line: Callable[..., str], arguments: list[str], named: str
) -> None:
    if "--out" not in arguments and arguments[0] in {"train", "compare"}:
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert named in refused_line(main, *arguments)


def test_so_it_is_in_a_process(tmp_path: Path) -> None:
    refused = run(tmp_path, "train", "nosuch")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: no preset or TOML file 'nosuch'")
    assert refused.stderr.count("\n") == 1


def test_a_run_cannot_resume_as_another_model(tmp_path: Path, corpus: Path, preset: Path) -> None:
    out = tmp_path / "run"
    assert run(tmp_path, "train", preset, "--data", corpus, "--out", out, "--set", "budget.steps=1").returncode == 0
    for other in (["--set", "model.n_embd=32"], ["nanogpt-cpu"]):
        refused = run(tmp_path, "train", "--data", corpus, "--out", out, "--resume", *other)
        assert refused.returncode == 2
        assert "[model]" in refused.stderr
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 1
