"""How well a model predicts text that it was not trained on."""

import math
from collections.abc import Iterable, Iterator

import msgspec
import torch
from torch import Tensor

from training.data.batches import Tokens, random_estimate_batches, validation_streams, validation_windows
from training.data.prepare import PreparedData
from training.distributed import ALONE, Ranks
from training.models.base import CarriedState, SlotSpec
from training.models.families import AnyModel
from training.objectives import cross_entropy

NUM_ESTIMATE_BATCHES = 200
"""As nanoGPT's `eval_iters`."""
MAX_ROWS = 64
MAX_LOGITS = 2**26
"""Of a batch: a large vocabulary must not need more memory here than in training."""
Piece = tuple[Tensor, Tensor, CarriedState | None]
"""Inputs and targets, each `(B, T)`, and the past of the rows."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Losses on the validation split."""

    loss: float
    """Mean nats a token over the whole split, each token but the first predicted once."""
    raw_loss: float
    """The same without the temperature."""
    nats_per_char: float
    """The loss over the characters of the split: comparable between tokenizers; for `char` equal to `loss`."""
    bits_per_byte: float


def evaluate(
    model: AnyModel,
    data: PreparedData,
    context_length: int,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    carries: bool = True,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Predict every token of the validation split once, as `heldout_pieces` reads it.

    Args:
        model: Its mode is kept.
        data: The prepared text.
        context_length: Length T of a window.
        dtype: What the matrix products are computed in.
        temperature: What the logits are divided by.
        carries: Whether a model of fixed state reads on and on, not each window from nothing.
        ranks: The processes that share the work; all get the same result.
    """
    pieces = heldout_pieces(model, data.validation, context_length, ranks, carries=carries)
    total, raw_total = (ranks.sum(part) for part in _sum_losses(predict(model, pieces, dtype), temperature))
    # The first token has no prediction: leave its share of characters and bytes out.
    count = len(data.validation) - 1
    share = count / len(data.validation)
    return Evaluation(
        loss=total / count,
        raw_loss=raw_total / count,
        nats_per_char=total / (data.validation_chars * share),
        bits_per_byte=total / (data.validation_bytes * share) / math.log(2.0),
    )


def random_estimate(
    model: AnyModel,
    tokens: Tokens,
    context_length: int,
    *,
    batch_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    ranks: Ranks = ALONE,
) -> float:
    """Return nanoGPT's estimate: the mean loss, nats a token, of 200 batches at random places, each from zero."""
    batches = random_estimate_batches(tokens, batch_size, context_length, NUM_ESTIMATE_BATCHES, seed)
    pieces = ((*batch, None) for batch in ranks.share(batches))
    total, _ = _sum_losses(predict(model, pieces, dtype), temperature)
    return ranks.sum(total) / (NUM_ESTIMATE_BATCHES * batch_size * context_length)


def heldout_pieces(
    model: AnyModel, tokens: Tokens, context_length: int, ranks: Ranks = ALONE, *, carries: bool = True
) -> Iterator[Piece]:
    """Yield this process' share of a text, of which every token but the first is predicted once.

    A model whose state grows reads windows of the context, none over another; one of fixed state reads on and on, in
    streams side by side, if its past is carried from one to the next.
    """
    spec = model.state_spec
    fitting = MAX_LOGITS // model.config.vocab_size
    if carries and isinstance(spec, SlotSpec):
        length = min(context_length, max(1, fitting // MAX_ROWS))
        device = next(model.parameters()).device
        for stream in validation_streams(tokens, length, MAX_ROWS):
            yield from _carry(stream, spec, device, ranks)
    else:
        rows = min(MAX_ROWS, max(1, fitting // context_length))
        for inputs, targets in ranks.share(validation_windows(tokens, context_length, rows)):
            yield inputs, targets, None


@torch.inference_mode()
def predict(model: AnyModel, pieces: Iterable[Piece], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits, `(B, T, V)`, and the targets, `(B, T)`, of each piece."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for inputs, targets, state in pieces:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(inputs.to(device), state)
        yield logits, targets.to(device)
    model.train(was_training)


def _carry(
    batches: Iterable[tuple[Tensor, Tensor]], spec: SlotSpec, device: torch.device, ranks: Ranks
) -> Iterator[Piece]:
    state: CarriedState | None = None
    rows = slice(ranks.rank, None, ranks.num_ranks)
    for inputs, targets in batches:
        if not len(inputs[rows]):
            return
        state = state or CarriedState(spec, len(inputs[rows]), device)
        yield inputs[rows], targets[rows], state


@torch.inference_mode()
def _sum_losses(predictions: Iterable[tuple[Tensor, Tensor]], temperature: float) -> tuple[float, float]:
    """Return the sum of the losses, and what it is without the temperature."""
    total = raw_total = 0.0
    for logits, targets in predictions:
        raw_loss = loss = cross_entropy(logits, targets)
        if temperature != 1.0:
            loss = cross_entropy(logits.float() / temperature, targets)
        total += float(loss) * targets.numel()
        raw_total += float(raw_loss) * targets.numel()
    return total, raw_total
