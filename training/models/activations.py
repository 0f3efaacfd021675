"""The elementwise nonlinearities, by the names that the configs know them by."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from training.model_config import Activation


def relu2(x: Tensor) -> Tensor:
    """Return the square of the positive part.

    Source: Primer (So et al. 2021, arXiv 2109.08668), section 3.
    """
    return F.relu(x).square()


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu2": relu2,
}
