"""Checkpoints of models that nobody has trained."""

from pathlib import Path

from training.checkpoint import save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.models.families import AnyModel
from training.tokenizers.base import Tokenizer


def save_untrained(folder: Path, model: AnyModel, tokenizer: Tokenizer) -> Path:
    """Save a model as it is; return `folder`."""
    save_checkpoint(folder, model, tokenizer, TrainConfig(budget=BudgetConfig(steps=1), model=model.config))
    return folder
