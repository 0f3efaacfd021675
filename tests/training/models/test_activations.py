from collections.abc import Callable
from typing import get_args

import pytest
import torch

from training.model_config import Activation
from training.models.activations import ACTIVATIONS
from training.models.families import AnyModel


def test_every_name_of_the_config_has_a_function() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation))


def test_each_is_the_function_of_its_name() -> None:
    x = torch.tensor([-2.0, 0.5])
    expected = {
        "sigmoid": [0.1192, 0.6225],
        "tanh": [-0.9640, 0.4621],
        "relu": [0.0, 0.5],
        "leaky_relu": [-0.02, 0.5],
        "gelu": [-0.0454, 0.3457],
        "silu": [-0.2384, 0.3112],
        "relu2": [0.0, 0.25],
    }
    for name, values in expected.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), torch.tensor(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt", "mlp", "conv"])
@torch.inference_mode()
def test_each_makes_another_model(make_model_of: Callable[..., AnyModel], family: str) -> None:
    ids = torch.arange(20).unsqueeze(0)
    logits = [make_model_of(family, activation=name)(ids) for name in ACTIVATIONS]
    assert all(not torch.equal(first, second) for i, first in enumerate(logits) for second in logits[:i])
