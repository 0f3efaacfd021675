"""The state of a run in one file, replaced by one rename: there is no moment at which it is half-written."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from training.checkpoint import sync
from training.config import TrainConfig
from training.distributed import Ranks
from training.errors import TrainingError
from training.settings import Settings

Parts = Mapping[str, Mapping[str, Tensor]]
"""Part of a run, such as `optimizer` → name → tensor."""


class ResumeState(Settings, frozen=True, kw_only=True):
    """Everything of a run that is no tensor."""

    config: TrainConfig
    corpus_sha256: str
    step: int = 0
    """Steps made; with the seed it is also the position in the data."""
    tokens: int = 0
    elapsed_s: float = 0.0
    data_s: float = 0.0
    """Of it, waiting for batches."""
    evaluation_s: float = 0.0
    """Of it, reading the whole validation split."""
    best_loss: float | None = None
    """Lowest whole-validation loss so far, nats a token."""
    evaluations_without_best: int = 0


def save_resume(path: Path, state: ResumeState, parts: Parts) -> None:
    """Write `state` and every tensor that the next step depends on.

    Raises:
        TrainingError: no permission, or no room; the file before it stays.
    """
    tensors = {f"{part}/{name}": tensor.detach() for part, named in parts.items() for name, tensor in named.items()}
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, aside, metadata={"state": msgspec.json.encode(state).decode()})
        sync(aside)
        aside.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        aside.unlink(missing_ok=True)
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


def read_resume_parts(path: Path, device: torch.device) -> Parts:
    """Return the tensors as `save_resume` was given them, on `device`; a part without any is empty."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in safetensors.torch.load_file(path, device=str(device)).items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return parts


def rng_tensors(ranks: Ranks) -> dict[str, Tensor]:
    """Return the states of torch's random numbers, a row for each process; every process must ask."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: torch.stack(ranks.gather(state)) for name, state in states.items()}


def load_rng_tensors(tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Go on with the random numbers of this process; one that was not there before keeps its own."""
    for name, set_state in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
        available = name == "cpu" or torch.cuda.is_available()
        if name in tensors and available and ranks.rank < len(tensors[name]):
            set_state(tensors[name][ranks.rank].cpu())
