"""One number that makes a model as sure of itself as it may be: the temperature of its logits.

A small model that has read its text several times is too sure. The temperature is fitted on text that it was not
trained on, and that is not the validation split either; then it goes into the weights, so whoever loads the checkpoint
needs to know nothing of it.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv 1706.04599), section 4.2.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from training.data.batches import Tokens
from training.evaluate import heldout_pieces, predict
from training.models.families import AnyModel

MAX_TOKENS = 32_768
MAX_LOGITS = 2**25
"""Numbers to fit on at most: they are held in memory, in fp32."""
FACTORS = (0.1, 10.0)
"""Bounds of what logits are multiplied by: a model that is wrong throughout would best say nothing at all."""
_MAX_ITERATIONS = 20


def fit_temperature(
    model: AnyModel, tokens: Tokens, context_length: int, *, dtype: torch.dtype = torch.float32
) -> float:
    """Return what to divide the logits by so that the loss on `tokens` is lowest.

    Args:
        model: Its mode is kept.
        tokens: Text that it was not trained on, at least two tokens; only the first 32768 are read.
        context_length: Length T of a window.
        dtype: What the matrix products are computed in.
    """
    num_tokens = min(MAX_TOKENS, max(1, MAX_LOGITS // model.config.vocab_size))
    pieces = heldout_pieces(model, tokens[: num_tokens + 1], context_length)
    predicted = [(logits.float().flatten(0, 1), targets.flatten()) for logits, targets in predict(model, pieces, dtype)]
    logits, targets = (torch.cat(parts) for parts in zip(*predicted, strict=True))
    return 1.0 / _best_factor(logits, targets)


@contextlib.contextmanager
def scaled_logits(model: AnyModel, factor: float) -> Iterator[None]:
    """Make the logits `factor` times as large for a while; then the weights are what they were, bit for bit."""
    if factor == 1.0:
        yield
        return
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.scale_logits(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])


def _best_factor(logits: Tensor, targets: Tensor) -> float:
    """Minimize the mean loss of `factor × logits`: it is convex in the factor, so Newton's method finds the place.

    Args:
        logits: `(N, V)`, fp32.
        targets: `(N,)`.
    """
    likely = float(logits.gather(1, targets[:, None]).mean(dtype=torch.float64))
    factor = 1.0
    for _ in range(_MAX_ITERATIONS):
        chances = (factor * logits).softmax(-1)  # (N, V)
        means = (chances * logits).sum(-1)  # (N,)
        slope = float(means.mean(dtype=torch.float64)) - likely
        curvature = float(((chances * logits.square()).sum(-1) - means.square()).mean(dtype=torch.float64))
        moved = factor - slope / max(curvature, 1e-12)
        moved = min(2.0 * factor, FACTORS[1], max(0.5 * factor, FACTORS[0], moved))
        if abs(moved - factor) < 1e-5 * factor:
            return moved
        factor = moved
    return factor
