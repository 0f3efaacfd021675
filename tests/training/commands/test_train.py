"""What `minigpt train` chooses, tells and refuses; how runs begin, end and go on is in test_cli.py."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.commands.test_convert import require_refusal
from training.__main__ import app
from training.commands.auto_config import plan_run, with_minutes
from training.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "fox.txt"
    file.write_text(text)
    return file


def train(*arguments: str | Path) -> str:
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False).output


def test_a_dry_run_tells_what_it_would_take_and_leaves_nothing(tmp_path: Path, corpus: Path, preset: Path) -> None:
    out = tmp_path / "run"
    told = train(preset, "--data", corpus, "--out", out, "--dry-run")
    names = [line.split()[0] for line in told.splitlines()]
    assert names == ["model", "text", "memory", "budget", "speed", "time"]
    assert "384 tokens in 12 steps" in told
    assert not out.exists()


def test_what_does_not_fit_into_memory_is_not_tried(corpus: Path, preset: Path) -> None:
    told = train(preset, "--data", corpus, "--dry-run", "--set", "run.batch_size=1000000000")
    assert "does not fit" in told
    assert "speed" not in told


def test_two_do_not_train_in_one_folder_at_once(tmp_path: Path, corpus: Path, preset: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    command = ["train", str(preset), "--data", str(corpus), "--out", str(out)]
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    refused = CliRunner().invoke(app, command)
    require_refusal(refused, f"{out}: another process trains there")
    assert not [*out.iterdir()]
    os.close(held)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (out / "checkpoint").is_dir()


def test_minutes_alone_choose_what_is_left_open(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "run"
    told = train(
        *("--minutes", "0.005", "--data", corpus, "--out", out),
        *("--set", "run.dtype=fp32", "--set", "optim.ema_decay=0.5", "--set", "run.sample_tokens=0"),
    )
    assert "planned for 0.005 minutes" in told
    assert "ended by budget" in told
    chosen = json.loads((out / "checkpoint" / "manifest.json").read_text())["train_config"]
    assert chosen["optim"]["ema_decay"] == 0.5
    assert chosen["budget"]["minutes"] <= 0.005
    assert chosen["data"]["corpus"] == str(corpus)


def test_minutes_are_a_budget_like_any_other() -> None:
    assert with_minutes(None, ["run.seed=1"]) == ["run.seed=1"]
    assert with_minutes(2.5, ["run.seed=1"]) == ["run.seed=1", "budget.minutes=2.5"]
    with pytest.raises(ConfigError, match=r"--minutes 2.5 and --set budget.steps=9"):
        with_minutes(2.5, ["budget.steps=9"])


def test_processes_that_measure_each_for_itself_would_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.commands.options import make_console

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        plan_run(1.0, None, [], make_console())
