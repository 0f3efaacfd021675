"""The gradient of a step's batch, found in micro-batches, and what to do when one of them does not fit in memory."""

import torch
from torch import nn

from training.config import RunConfig
from training.data_loader import DataLoader
from training.distributed import without_exchange
from training.errors import TrainingError
from training.memory import is_out_of_memory
from training.objectives import cross_entropy


def find_gradients(
    model: nn.Module, loader: DataLoader, step: int, accumulate: int, *, device: torch.device, dtype: torch.dtype
) -> float | None:
    """Leave the gradient of the mean loss of a step's batch in the weights.

    Args:
        model: `(B, T)` and the past of the rows → `(B, T, V)`.
        loader: What it reads.
        step: Which batch.
        accumulate: Micro-batches to cut it into.
        device: Where the model stands.
        dtype: What the matrix products are computed in.

    Returns:
        This process' mean loss, nats a token. None: memory ran out. It is no exception, for a traceback would keep the
        tensors in memory while the caller tries again with less.
    """
    loss = 0.0
    try:
        for index, batch in enumerate(loader.micro_batches(step, accumulate)):
            with without_exchange(model, yes=index + 1 < accumulate):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                    logits = model(batch.inputs, batch.state)  # (B, T, V)
                batch_loss = cross_entropy(logits, batch.targets) / accumulate
                torch.autograd.backward(batch_loss)
            loss += float(batch_loss.detach())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return loss


def shrink_micro_batches(run: RunConfig, num_ranks: int) -> RunConfig:
    """Return settings of smaller micro-batches and more of them: of the same batch, halves if it is even.

    Raises:
        TrainingError: there is nothing smaller, or other processes would have to follow.
    """
    if run.batch_size == 1 or num_ranks > 1:
        fewer = "" if run.batch_size == 1 else "lower run.batch_size and raise run.accumulate as many times, or "
        raise TrainingError(
            f"out of memory with run.batch_size = {run.batch_size}: {fewer}choose a smaller model or context_length"
        )
    factor = next(number for number in range(2, run.batch_size + 1) if run.batch_size % number == 0)
    return run.replace(batch_size=run.batch_size // factor, accumulate=run.accumulate * factor)
