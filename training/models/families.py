"""Which class makes a model of which table of settings."""

from typing import Any

import torch

from training.model_config import ConvConfig, GPTConfig, MLPConfig, ModelConfig, RecurrentConfig
from training.models.base import LanguageModel
from training.models.convolution import Convolution
from training.models.gpt import GPT
from training.models.recurrent import Recurrent
from training.models.window_mlp import WindowMLP

AnyModel = LanguageModel[Any]
_FAMILIES: dict[type, Any] = {GPTConfig: GPT, RecurrentConfig: Recurrent, MLPConfig: WindowMLP, ConvConfig: Convolution}


def make_model(config: ModelConfig, generator: torch.Generator | None = None) -> AnyModel:
    """Make the model that `config` describes.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.
    """
    return _FAMILIES[type(config)](config, generator)
