"""From a checkpoint folder to an engine that is ready."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from service.config import EngineSettings
from service.engine.backends.choose import choose_backend
from service.engine.backends.memory import give_back_memory
from service.engine.engine import Engine
from service.protocol import Claim, Request, SamplingParams
from training.checkpoint import Checkpoint, load_checkpoint
from training.models.devices import choose_device
from training.models.families import AnyModel
from training.tokenizers.base import Tokenizer


def load_engine(checkpoint: Path, settings: EngineSettings) -> Engine:
    """Load a checkpoint and make an engine for it.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: see `choose_backend`.
    """
    loaded = load_model(checkpoint, settings)
    engine = make_engine(loaded.model, loaded.tokenizer, settings)
    del loaded
    give_back_memory()
    _warm_up(engine, settings.max_step_tokens)
    return engine


def load_model(checkpoint: Path, settings: EngineSettings) -> Checkpoint:
    """Load a checkpoint, in fp32, to the device that `settings` choose.

    Raises:
        CheckpointError: the folder is refused.
    """
    return load_checkpoint(checkpoint, device=str(choose_device(settings.device)), dtype=torch.float32)


def make_engine(
    model: AnyModel,
    tokenizer: Tokenizer,
    settings: EngineSettings,
    *,
    num_pages: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Make an engine for a model, on its device; `num_pages` as in `choose_backend`.

    Raises:
        SettingError: see `choose_backend`.
    """
    backend = choose_backend(model, tokenizer, settings, num_pages=num_pages)
    return Engine(
        backend,
        tokenizer,
        max_context=model.state_spec.max_context,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        speculates=settings.speculation and backend.can_speculate,
        clock=clock,
    )


def _warm_up(engine: Engine, num_tokens: int) -> None:
    """Compute a full step, so that the first request does not wait for the system to find memory for it."""
    token_ids = (0,) * min(num_tokens, engine.max_context - 1)
    params = SamplingParams(max_tokens=1, seed=0)
    engine.add(Claim(request=Request(id="", model="", revision="", token_ids=token_ids, params=params), epoch=1))
    while engine.has_work:
        engine.step()
