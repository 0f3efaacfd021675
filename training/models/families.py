"""Which class makes a model of which table of settings."""

from typing import Any

import torch

from training.model_config import GPTConfig, ModelConfig
from training.models.base import LanguageModel
from training.models.gpt import GPT

AnyModel = LanguageModel[Any]
_FAMILIES: dict[type, Any] = {GPTConfig: GPT}


def make_model(config: ModelConfig, generator: torch.Generator | None = None) -> AnyModel:
    """Make the model that `config` describes.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.
    """
    return _FAMILIES[type(config)](config, generator)
