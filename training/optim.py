"""Which optimizer moves which weight, how its rate follows the budget, and the average that is kept."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.models.base import ParameterGroup
from training.models.families import AnyModel
from training.muon import Muon


def schedule(config: OptimConfig, progress: float) -> float:
    """Return the share of the peak learning rate at `progress` of the budget.

    Args:
        config: Shares of warm-up and decay.
        progress: 0 at the first step, 1 at the end of the budget.
    """
    if progress < config.warmup_fraction:
        return max(progress, 0.01 * config.warmup_fraction) / config.warmup_fraction
    if config.decay_fraction == 0:
        return 1.0
    left = min(1.0, max(0.0, (1.0 - progress) / config.decay_fraction))  # 1 before the decay, 0 at the end
    if config.decay_shape == "cosine":
        left = 0.5 - 0.5 * float(torch.cos(torch.tensor(left * torch.pi, dtype=torch.float64)))
    return config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left


class Optimizer:
    """Muon for the hidden matrices and AdamW for embeddings, head, norms and biases; or one of torch's for all.

    Args:
        model: Whose parameters to move; it tells their groups.
        config: Rates, decay, momentum.

    Source: AdamW, Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    def __init__(self, model: AnyModel, config: OptimConfig) -> None:
        self.config = config
        self._named = dict(model.named_parameters())  # tied weights once
        groups: dict[ParameterGroup, list[Tensor]] = {"matrix": [], "embed": [], "head": [], "other": []}
        for name, parameter in self._named.items():
            groups[model.group_of(name)].append(parameter)
        muon = groups.pop("matrix") if config.algorithm == "muon" else []
        rest = [
            {
                "params": groups[group],
                "lr": getattr(config, f"{group}_lr"),
                "weight_decay": 0.0 if group == "other" else config.weight_decay,
            }
            for group in groups
            if groups[group]
        ]
        self._optimizers: list[torch.optim.Optimizer] = [_make_optimizer(rest, config)]
        if muon:
            self._optimizers.append(
                Muon(muon, lr=config.matrix_lr, momentum=config.momentum, weight_decay=config.weight_decay)
            )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, progress: float) -> float:
        """Clip the gradient, move the weights at the rate of `progress`, forget the gradient; return its norm."""
        limit = self.config.grad_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), limit)
        factor = schedule(self.config, progress)
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        return float(norm)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything the next step depends on, as `parameter name/key` → tensor."""
        return {
            f"{name}/{key}": value
            for name, parameter, optimizer in self._owners()
            for key, value in optimizer.state[parameter].items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; nothing of an earlier state remains."""
        for name, parameter, optimizer in self._owners():
            prefix = f"{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }

    def _owners(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer]]:
        names = {id(parameter): name for name, parameter in self._named.items()}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[id(parameter)], parameter, optimizer


def _make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    match config.algorithm:
        case "muon" | "adamw":
            return torch.optim.AdamW(groups, betas=config.betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, betas=config.betas, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups)
        case "rmsprop":
            return torch.optim.RMSprop(groups, alpha=config.betas[1])
        case "sgd" | "momentum" | "nesterov" as kind:
            momentum = 0.0 if kind == "sgd" else config.momentum
            return torch.optim.SGD(groups, momentum=momentum, nesterov=kind == "nesterov")


class Average:
    """An exponential moving average of the weights.

    Args:
        model: Whose weights to follow.
        decay: Share of the old average kept at each step; early steps keep less, so that the start is forgotten.

    Source: Polyak and Juditsky 1992, SIAM Journal on Control and Optimization 30.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the weights after `step` steps."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.named_parameters():
            self.weights[name].lerp_(tensor, weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; twice is nothing."""
        for name, tensor in model.named_parameters():
            average = self.weights[name]
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)
