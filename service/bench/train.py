"""`minigpt bench train`: a step of preset `nanogpt-cpu` beside a step of nanoGPT's own CPU recipe."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from rich.table import Table

from service.bench.nanogpt_peer import BATCH_SIZE, NanoGPTTrainer, make_nanogpt, nanogpt_config
from service.bench.rounds import Run, compare, measure_in_turn, median_speed
from training.config import TrainConfig
from training.data.batches import random_estimate_batches
from training.data.prepare import PreparedData
from training.evaluate import evaluate
from training.trainer import Trainer

PRESET = "nanogpt-cpu"
WARM_UP_STEPS = 3


class TrainRun(Run, frozen=True, kw_only=True):
    """Some steps made, none of them an evaluation."""

    steps: int


class Losses(msgspec.Struct, frozen=True, kw_only=True):
    """Nats a token over the whole validation split."""

    minigpt: float
    nanogpt: float


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, a run a round."""

    minigpt: list[TrainRun]
    nanogpt: list[TrainRun]
    losses: Losses | None
    """After the last step; None before the end of the budget."""
