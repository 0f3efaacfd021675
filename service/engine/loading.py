"""From a checkpoint folder to an engine: device, arithmetic, and how much memory keys and values get."""

import logging
from pathlib import Path

import psutil
import torch

from service.config import EngineSettings
from service.engine.engine import Engine, Runner
from service.engine.native import NativeRunner, why_not_native
from service.engine.paged_kv import PagedKV
from service.engine.runner import ModelRunner
from service.engine.state_pool import PagePool
from service.errors import SettingError
from training.checkpoint import Checkpoint, load_checkpoint
from training.models.base import KVSpec
from training.models.devices import choose_device, choose_dtype
from training.models.gpt import GPT
from training.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.5
"""Of the free memory that keys and values may take where no setting says how much."""


def load_engine(checkpoint: Path, settings: EngineSettings) -> Engine:
    """Load a checkpoint and make an engine for it.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: the memory for keys and values does not hold one full context, or native kernels are demanded
            that cannot serve here.
    """
    loaded = load_model(checkpoint, settings)
    return make_engine(loaded.model, loaded.tokenizer, settings)


def load_model(checkpoint: Path, settings: EngineSettings) -> Checkpoint:
    """Load a checkpoint to the device and in the arithmetic that `settings` choose.

    Raises:
        CheckpointError: the folder is refused.
    """
    device = choose_device(settings.device)
    # In bf16 the last bit of a sum, which a library's products round by the shape of a batch, changes tokens too often.
    automatic = settings.dtype == "auto" and device.type == "cpu"
    dtype = choose_dtype("fp32" if automatic else settings.dtype, device)
    return load_checkpoint(checkpoint, device=str(device), dtype=dtype)


def make_engine(model: GPT, tokenizer: Tokenizer, settings: EngineSettings, *, num_pages: int | None = None) -> Engine:
    """Make an engine for a model, on its device and in its dtype; `num_pages` instead of what the settings come to."""
    weight = model.lm_head.weight
    spec = model.state_spec
    num_pages = num_pages or count_pages(spec, settings, weight.dtype, weight.device)
    return Engine(
        _make_runner(model.eval(), num_pages, settings),
        PagePool(num_pages, settings.page_size),
        tokenizer,
        max_context=spec.max_context,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        device=weight.device,
    )


def _make_runner(model: GPT, num_pages: int, settings: EngineSettings) -> Runner:
    obstacle = None if settings.kernels == "torch" else why_not_native(model, settings.page_size)
    if settings.kernels != "torch" and obstacle is None:
        return NativeRunner(model, num_pages, settings.max_step_tokens)
    if settings.kernels == "native":
        raise SettingError(f"kernels = 'native': {obstacle}; choose auto or torch")
    if obstacle is not None:
        logger.info("torch computes, not the native kernels: %s", obstacle)
    weight = model.lm_head.weight
    kv = PagedKV(model.state_spec, num_pages, settings.page_size, dtype=weight.dtype, device=weight.device)
    return ModelRunner(model, kv)


def count_pages(spec: KVSpec, settings: EngineSettings, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many pages of keys and values `settings` come to on this machine.

    Raises:
        SettingError: they do not hold one full context.
    """
    page_bytes = PagedKV.page_bytes(spec, settings.page_size, dtype)
    context_pages = -(-spec.max_context // settings.page_size)
    if settings.kv_cache_mb is None:
        within_memory = int(MEMORY_SHARE * _free_memory(device)) // page_bytes
        return max(context_pages, min(context_pages * settings.max_num_seqs, within_memory))
    num_pages = settings.kv_cache_mb * 2**20 // page_bytes
    if num_pages < context_pages:
        need_mb = -(-context_pages * page_bytes // 2**20)
        raise SettingError(
            f"kv_cache_mb = {settings.kv_cache_mb}: one context of {spec.max_context} tokens takes {need_mb} MiB; "
            f"give at least that"
        )
    return num_pages


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
