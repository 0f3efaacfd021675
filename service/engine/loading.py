"""From a checkpoint folder to an engine: device, arithmetic, and how much memory keys and values get."""

import contextlib
import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import torch

from service.config import EngineSettings
from service.engine.engine import Engine, EngineInfo, Runner, Sampler
from service.engine.kernels import library as kernels
from service.engine.kernels.library import best_level
from service.engine.native import Arithmetic, NativeRunner, kv_dtype, why_not_native
from service.engine.native_sampler import NativeSampler
from service.engine.paged_kv import FLASH_PAGE_SIZE, PagedKV
from service.engine.runner import ModelRunner
from service.engine.sampler import sample
from service.engine.state_pool import PagePool
from service.errors import SettingError
from service.protocol import Claim, Request, SamplingParams
from training.checkpoint import Checkpoint, load_checkpoint
from training.models.base import KVSpec
from training.models.devices import choose_device, has_bf16
from training.models.gpt import GPT
from training.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
MEMORY_SHARE = 0.5
"""Of the free memory that keys and values may take where no setting says how much."""


def load_engine(checkpoint: Path, settings: EngineSettings) -> Engine:
    """Load a checkpoint and make an engine for it.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: the memory for keys and values does not hold one full context, or what is demanded (memory,
            device, dtype, native kernels) is not to be had here.
    """
    loaded = load_model(checkpoint, settings)
    engine = make_engine(cast(GPT, loaded.model), loaded.tokenizer, settings)
    del loaded
    _give_back_memory()
    _warm_up(engine, settings.max_step_tokens)
    return engine


def load_model(checkpoint: Path, settings: EngineSettings) -> Checkpoint:
    """Load a checkpoint, in fp32, to the device that `settings` choose.

    Raises:
        CheckpointError: the folder is refused.
    """
    return load_checkpoint(checkpoint, device=str(choose_device(settings.device)), dtype=torch.float32)


def make_engine(
    model: GPT,
    tokenizer: Tokenizer,
    settings: EngineSettings,
    *,
    num_pages: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Make an engine for a model, on its device; `num_pages` instead of what the settings come to.

    Raises:
        SettingError: see `load_engine`.
    """
    device, spec = model.lm_head.weight.device, model.state_spec
    is_native, arithmetic = _choose(model, settings)
    dtype = kv_dtype(arithmetic)
    page_size = choose_page_size(settings, device)
    num_pages = num_pages or count_pages(spec, settings, dtype, device)
    runner: Runner
    if is_native:
        runner = NativeRunner(model, num_pages, settings.max_step_tokens, arithmetic)
    else:
        runner = _make_torch_runner(model.eval().to(dtype), num_pages, page_size, settings.max_num_seqs)
    return Engine(
        runner,
        _make_sampler(tokenizer, device),
        PagePool(num_pages, page_size, prefix_caching=settings.prefix_caching),
        tokenizer,
        max_context=spec.max_context,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        info=EngineInfo(
            device=str(device),
            kernels=(best_level() or "") if is_native else "torch",
            dtype=arithmetic,
            num_threads=torch.get_num_threads(),
            kv_cache_bytes=num_pages * PagedKV.page_bytes(spec, page_size, dtype),
        ),
        speculates=settings.speculation and is_native,  # elsewhere the last bit hangs on how many tokens a step has
        clock=clock,
    )


def _choose(model: GPT, settings: EngineSettings) -> tuple[bool, Arithmetic]:
    """Return whether the native kernels compute, and in what."""
    device = model.lm_head.weight.device
    page_size = choose_page_size(settings, device)
    obstacle = "kernels = 'torch'" if settings.kernels == "torch" else why_not_native(model, page_size)
    if obstacle is None:
        return True, "int8" if settings.dtype == "auto" else settings.dtype
    if settings.kernels == "native":
        raise SettingError(f"kernels = 'native': {obstacle}; choose auto or torch")
    if settings.dtype == "int8":
        raise SettingError(f"dtype = 'int8': only the native kernels have it, but {obstacle}; choose fp32 or bf16")
    if settings.dtype == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise SettingError(f"dtype = 'bf16': {device} does not have it; choose fp32")
    logger.info("torch computes, not the native kernels: %s", obstacle)
    if settings.dtype != "auto":
        return False, settings.dtype
    # On CPUs fp32: in bf16 the last bit, which libraries round by the shape of a batch, changes tokens too often.
    return False, "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def _make_torch_runner(model: GPT, num_pages: int, page_size: int, max_num_seqs: int) -> Runner:
    weight = model.lm_head.weight
    if weight.device.type == "cuda":
        from service.engine.cuda_graphs import make_cuda_runner  # with it comes torch's compiler, a second on a CPU

        return make_cuda_runner(model, num_pages, page_size, max_num_seqs=max_num_seqs)
    kv = PagedKV(model.state_spec, num_pages, page_size, dtype=weight.dtype, device=weight.device)
    return ModelRunner(model, kv)


def _make_sampler(tokenizer: Tokenizer, device: torch.device) -> Sampler:
    banned = sorted(tokenizer.special_ids - {tokenizer.end_of_text_id})
    if device.type == "cpu" and best_level() is not None:
        return NativeSampler(banned)
    return partial(sample, banned=torch.tensor(banned, dtype=torch.int64, device=device))


def choose_page_size(settings: EngineSettings, device: torch.device) -> int:
    """Return the tokens of a page; where no setting says how many, what the kernels of `device` read in place."""
    return settings.page_size or (FLASH_PAGE_SIZE if device.type == "cuda" else kernels.PAGE_SIZE)


def count_pages(spec: KVSpec, settings: EngineSettings, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many pages of keys and values `settings` come to on this machine.

    Raises:
        SettingError: they do not hold one full context, or are more than there is.
    """
    page_size = choose_page_size(settings, device)
    page_bytes = PagedKV.page_bytes(spec, page_size, dtype)
    context_pages = -(-spec.max_context // page_size)
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
    free_mb = _free_memory(device) // 2**20
    if settings.kv_cache_mb > free_mb:  # the system might promise it all the same, and kill whoever takes it
        raise SettingError(f"kv_cache_mb = {settings.kv_cache_mb}: {free_mb} MiB of memory are free; give less")
    return num_pages


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(int(psutil.virtual_memory().available), free_in_container(CGROUP))


def free_in_container(cgroup: Path) -> int:
    """Return the bytes that a container may still take by its control group (version 2); no end of them without one."""
    try:
        limit, current = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        return int(limit) - int(current)
    except (OSError, ValueError):  # a limit of "max" is none
        return sys.maxsize


def _warm_up(engine: Engine, num_tokens: int) -> None:
    """Compute a full step, so that the first request does not wait for the system to find memory for it."""
    token_ids = (0,) * min(num_tokens, engine.max_context - 1)
    params = SamplingParams(max_tokens=1, seed=0)
    engine.add(Claim(request=Request(id="", model="", revision="", token_ids=token_ids, params=params), epoch=1))
    while engine.has_work:
        engine.step()


def _give_back_memory() -> None:
    """Return to the system what was freed: the kernels have packed the weights, and glibc would keep the room."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
