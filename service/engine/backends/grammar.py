"""Grammars applied to logits."""

from collections.abc import Sequence as Ordered

import numpy as np
import torch
from torch import Tensor

from service.engine.sequence import Sequence
from service.grammar import Matcher

_NEVER = -1e30
"""Added to a logit, leaves its token no probability at any temperature, and yet is finite."""


def constrain(logits: Tensor, sequences: Ordered[Sequence]) -> None:
    """Take from each row `(S, V)` what its sequence's grammar does not allow, in place; at a dead end everything.

    It is added, so what was not finite stays so and is still found; a row at a dead end is no longer finite.
    """
    for row, sequence in enumerate(sequences):
        if sequence.matcher is not None:
            _constrain(logits[row], sequence.matcher)


@torch.inference_mode()
def _constrain(row: Tensor, matcher: Matcher) -> None:
    allowed = matcher.allowed()
    removed = np.where(allowed, 0.0, _NEVER if allowed.any() else -np.inf).astype(np.float32)
    row += torch.from_numpy(removed).to(row.device)
