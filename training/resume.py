"""The state of a run in one file, replaced by one rename: there is no moment at which it is half-written."""

from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from training.config import TrainConfig
from training.errors import TrainingError
from training.models.families import AnyModel
from training.optim import Average, Optimizer
from training.settings import Settings


class ResumeState(Settings, frozen=True, kw_only=True):
    """Everything of a run that is no tensor."""

    config: TrainConfig
    corpus_sha256: str
    step: int = 0
    """Steps made; with the seed it is also the position in the data."""
    tokens: int = 0
    elapsed_s: float = 0.0
    best_loss: float | None = None
    """Lowest whole-validation loss so far, nats a token."""
    evaluations_without_best: int = 0


def save_resume(path: Path, state: ResumeState, model: AnyModel, optimizer: Optimizer, average: Average | None) -> None:
    """Write `state` and every tensor that the next step depends on.

    Raises:
        TrainingError: no permission, or no room; the file before it stays.
    """
    tensors = {f"model/{name}": tensor.detach() for name, tensor in model.named_parameters()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.state_tensors().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.weights.items()} if average else {}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, aside, metadata={"state": msgspec.json.encode(state).decode()})
        aside.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path}: cannot save: {error}; what was saved before it is intact") from error


def read_resume_state(path: Path) -> ResumeState:
    """Read the state without its tensors.

    Raises:
        TrainingError: there is none, or it is no such file.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume; start the run without --resume")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return msgspec.json.decode((file.metadata() or {})["state"], type=ResumeState)
    except (safetensors.SafetensorError, msgspec.DecodeError, KeyError, OSError) as error:
        raise TrainingError(f"{path}: not the state of a run: {error}") from error


def load_resume(path: Path, model: AnyModel, optimizer: Optimizer, average: Average | None) -> ResumeState:
    """Put everything back as `save_resume` found it, and return the state."""
    state = read_resume_state(path)
    device = next(model.parameters()).device
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "rng": {}}
    for name, tensor in safetensors.torch.load_file(path).items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parts["model"][name])
    optimizer.load_state_tensors({name: tensor.to(device) for name, tensor in parts["optimizer"].items()})
    if average:
        average.weights = {name: tensor.to(device) for name, tensor in parts["average"].items()}
    torch.set_rng_state(parts["rng"]["cpu"])
    if "cuda" in parts["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["rng"]["cuda"])
    return state
