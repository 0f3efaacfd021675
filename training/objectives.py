"""What training minimizes."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the targets, in nats a token, as a float32 scalar.

    Args:
        logits: `(B, T, V)`, any float dtype.
        targets: `(B, T)` int64.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
