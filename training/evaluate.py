"""How well a model predicts text that it was not trained on."""

import math
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.data.batches import random_estimate_batches, validation_windows
from training.data.prepare import PreparedData
from training.objectives import cross_entropy

NUM_ESTIMATE_BATCHES = 200
"""As nanoGPT's `eval_iters`."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Losses on the validation split."""

    loss: float
    """Mean nats a token over the whole split, each token but the first predicted once."""
    nats_per_char: float
    """The same sum over the characters of the split: comparable between tokenizers; for `char` equal to `loss`."""
    bits_per_byte: float


def evaluate(
    model: nn.Module, data: PreparedData, context_length: int, *, dtype: torch.dtype = torch.float32
) -> Evaluation:
    """Predict every token of the validation split once, in non-overlapping windows of the context.

    Args:
        model: `(B, T)` → `(B, T, V)`; its mode is kept.
        data: The prepared text.
        context_length: Length T of a window.
        dtype: Arithmetic of the matrix products.
    """
    total, count = _sum_losses(model, validation_windows(data.validation, context_length), dtype)
    # The first token has no prediction: leave its share of characters and bytes out.
    share = count / len(data.validation)
    return Evaluation(
        loss=total / count,
        nats_per_char=total / (data.validation_chars * share),
        bits_per_byte=total / (data.validation_bytes * share) / math.log(2.0),
    )


def random_estimate(
    model: nn.Module,
    tokens: npt.NDArray[np.uint16],
    context_length: int,
    *,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return nanoGPT's estimate: the mean loss, nats a token, of 200 batches at random places."""
    batches = random_estimate_batches(tokens, batch_size, context_length, NUM_ESTIMATE_BATCHES, seed)
    total, count = _sum_losses(model, batches, dtype)
    return total / count


@torch.inference_mode()
def _sum_losses(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[float, int]:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in batches:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(inputs.to(device))
        total += float(cross_entropy(logits, targets.to(device))) * targets.numel()
        count += targets.numel()
    model.train(was_training)
    return total, count
