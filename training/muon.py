"""Muon: momentum whose every update is made orthogonal; matrices of one shape are worked on together."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ_STEPS = 3
"""Enough here: two more change the loss by less than the noise between seeds and cost as much again."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Move matrices by orthogonalized Nesterov momentum.

    Does what `torch.optim.Muon` does, but stacks matrices of one shape: a mini-GPT has many small ones, and one call
    for each of the twenty operations on each of them costs several times the arithmetic.

    Args:
        params: Matrices.
        lr: Peak rate; a matrix with more rows than columns moves √(rows / columns) times as far.
        momentum: Share of the old direction that is kept.
        weight_decay: Decoupled decay.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks
    (kellerjordan.github.io/posts/muon).
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step; parameters without gradient stay."""
        del closure
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                self._move(parameters, rate, group["momentum"], group["lr"] * group["weight_decay"])

    def _move(self, parameters: list[Tensor], rate: float, momentum: float, decay: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        directions = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))  # (N, rows, columns)
        if decay:
            torch._foreach_mul_(parameters, 1.0 - decay)
        torch._foreach_add_(parameters, orthogonalize(directions).to(parameters[0].dtype).unbind(), alpha=-rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1, by a few Newton–Schulz steps in bf16.

    Args:
        matrices: `(N, rows, columns)`.

    Returns:
        The same shape, bf16.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp_min(1e-7).bfloat16()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
