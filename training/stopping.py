"""How much of a budget is used, and what ends a run."""

from training.config import BudgetConfig
from training.events import Ending
from training.resume import ResumeState


def used_share(budget: BudgetConfig, state: ResumeState, epoch_tokens: int) -> float:
    """Return the share of `budget` that a run in `state` has used, where an epoch has `epoch_tokens`."""
    if budget.minutes is not None:
        return state.elapsed_s / (60 * budget.minutes)
    if budget.steps is not None:
        return state.step / budget.steps
    limit = budget.tokens if budget.tokens is not None else (budget.epochs or 0) * epoch_tokens
    return state.tokens / limit


def why_ended(budget: BudgetConfig, state: ResumeState, epoch_tokens: int) -> Ending | None:
    """Return what ends a run in `state`; None: it goes on."""
    if budget.target_loss is not None and state.best_loss is not None and state.best_loss <= budget.target_loss:
        return "target"
    if budget.patience is not None and state.evaluations_without_best >= budget.patience:
        return "patience"
    return "budget" if used_share(budget, state, epoch_tokens) >= 1 else None
