from collections.abc import Callable

import pytest
import torch

from training.config import load_config
from training.model_config import ConvConfig
from training.models.convolution import Convolution
from training.models.families import AnyModel


@pytest.mark.parametrize("shape", [{}, {"kernel_size": 3, "dilation_cycle": 2}, {"n_layer": 1}], ids=str)
def test_the_receptive_field_is_what_the_config_says(
    make_model_of: Callable[..., AnyModel], shape: dict[str, int]
) -> None:
    model = make_model_of("conv", **shape)
    assert reach_of(model, 64) == model.config.receptive_field


def test_the_preset_reaches_128_tokens_back() -> None:
    config = load_config("conv").model
    assert isinstance(config, ConvConfig)
    small = Convolution(config.replace(vocab_size=11, n_embd=8, n_hidden=8)).eval()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(0))
    assert reach_of(small, 2 * config.receptive_field) == config.receptive_field >= 128


def reach_of(model: AnyModel, length: int) -> int:
    """Return how many embeddings the last position's output has a gradient from."""
    embedded = torch.empty(0)

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal embedded
        embedded = output

    model.embed_tokens.register_forward_hook(keep)
    output = model.hidden(torch.randint(11, (1, length), generator=torch.Generator().manual_seed(0)))
    gradient = torch.autograd.grad(output[0, -1, 0], embedded)[0]
    return int((gradient[0].abs().sum(-1) > 0).sum())
