"""What a run has saved outlives it, however it ends: real processes, real kills, a disk that takes no more."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.data.prepare import PreparedData
from training.trainer import Trainer

ROOT = Path(__file__).parents[2]
MakeConfig = Callable[..., TrainConfig]


def run_unlucky(kind: str, config: TrainConfig, folder: Path, text: str) -> list[str]:
    command = [sys.executable, "-m", "tests.training.unlucky_run", kind, str(folder), text]
    settings = msgspec.json.encode(config).decode()
    done = subprocess.run(command, cwd=ROOT, input=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_killed_at_any_moment_the_last_checkpoint_and_state_are_whole(
    make_config: MakeConfig, tmp_path: Path, text: str
) -> None:
    config = make_config(run={"eval_every": 1, "sample_tokens": 0}, budget={"steps": 1_000_000})
    found = [list(map(int, line.split())) for line in run_unlucky("killed", config, tmp_path, text)]
    steps = [step for step, _ in found]
    assert len(steps) > 1
    assert steps == sorted(set(steps))
    assert all(checkpoint <= step + 1 for step, checkpoint in found)


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, text: str
) -> None:
    config = make_config(run={"sample_tokens": 0})
    state, checkpoint = run_unlucky("full", config, tmp_path, text)
    assert "resume.safetensors: cannot save" in state
    assert "checkpoint: cannot write" in checkpoint
    assert load_checkpoint(tmp_path).manifest.step == 1
    assert Trainer(config, prepared, tmp_path, resume=True).state.step == 1
    assert not (tmp_path / ".resume.safetensors.new").exists()
