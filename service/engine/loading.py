"""From a checkpoint folder to an engine: device, arithmetic, and what keeps the past of its sequences."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch

from service.config import EngineSettings
from service.engine.engine import Engine, EngineInfo, Runner, Sampler
from service.engine.kernels import library as kernels
from service.engine.kernels.library import best_level
from service.engine.kernels.weights import Arithmetic
from service.engine.memory import count_pages, give_back_memory
from service.engine.native import NativeRunner, kv_dtype, why_not_native
from service.engine.native_sampler import NativeSampler
from service.engine.native_slots import NativeSlotRunner, SlotModel
from service.engine.paged_kv import FLASH_PAGE_SIZE, PagedKV
from service.engine.recurrent_slots import ROWS_ON_CPU, SlotRunner, Slots
from service.engine.runner import ModelRunner
from service.engine.sampler import sample
from service.engine.state_pool import PagePool
from service.errors import SettingError
from service.protocol import Claim, Request, SamplingParams
from training.checkpoint import Checkpoint, load_checkpoint
from training.models.base import KVSpec
from training.models.devices import choose_device, has_bf16
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)


def load_engine(checkpoint: Path, settings: EngineSettings) -> Engine:
    """Load a checkpoint and make an engine for it.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: the memory for the past does not hold one full context, or what is demanded (memory, device,
            dtype, native kernels) is not to be had here.
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
    """Make an engine for a model, on its device; `num_pages` (or slots) instead of what the settings come to.

    Raises:
        SettingError: see `load_engine`.
    """
    if isinstance(model, GPT):
        parts = _make_with_pages(model, settings, num_pages)
    else:
        parts = _make_with_slots(cast(SlotModel, model), settings, num_pages)
    return Engine(
        parts.runner,
        _make_sampler(tokenizer, model.lm_head.weight.device),
        parts.pool,
        tokenizer,
        max_context=model.state_spec.max_context,
        max_num_seqs=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        info=parts.info,
        speculates=settings.speculation and parts.can_speculate,
        clock=clock,
    )


class _Parts(NamedTuple):
    """What differs from one kind of state to the other."""

    runner: Runner
    pool: PagePool
    info: EngineInfo
    can_speculate: bool


def _make_with_pages(model: GPT, settings: EngineSettings, num_pages: int | None) -> _Parts:
    device, spec = model.lm_head.weight.device, model.state_spec
    is_native, arithmetic = _choose(model, settings)
    dtype, page_size = kv_dtype(arithmetic), choose_page_size(settings, device)
    page_bytes = PagedKV.page_bytes(spec, page_size, dtype)
    num_pages = num_pages or count_pages(settings, device, page_bytes, -(-spec.max_context // page_size))
    runner: Runner
    if is_native:
        runner = NativeRunner(model, num_pages, settings.max_step_tokens, arithmetic)
    else:
        runner = _make_torch_runner(model.eval().to(dtype), num_pages, page_size, settings.max_num_seqs)
    pool = PagePool(num_pages, page_size, prefix_caching=settings.prefix_caching)
    level = (best_level() or "") if is_native else "torch"
    info = _describe(device, level, arithmetic, num_pages * page_bytes, exact=is_native)
    return _Parts(runner, pool, info, can_speculate=is_native)  # else the last bit hangs on how many tokens a step has


def _make_with_slots(model: SlotModel, settings: EngineSettings, num_slots: int | None) -> _Parts:
    device, spec = model.lm_head.weight.device, model.state_spec
    is_native, arithmetic = _choose(model, settings)
    dtype = torch.float32 if is_native else kv_dtype(arithmetic)
    slot_bytes = Slots.slot_bytes(spec, dtype)
    num_slots = num_slots or min(settings.max_num_seqs, count_pages(settings, device, slot_bytes, 1))
    slots = Slots(spec, num_slots, dtype=dtype, device=device)
    runner: Runner
    if is_native:
        runner = NativeSlotRunner(model, slots, settings.max_step_tokens, arithmetic)
    else:
        runner = SlotRunner(model.eval().to(dtype), slots, ROWS_ON_CPU if device.type == "cpu" else num_slots)
    pool = PagePool(num_slots, spec.max_context, prefix_caching=False)
    level = (best_level() or "") if is_native else "torch"
    exact = is_native or (device.type == "cpu" and arithmetic == "fp32")  # with torch, where it has been seen
    info = _describe(device, level, arithmetic, num_slots * slot_bytes, exact=exact)
    return _Parts(runner, pool, info, can_speculate=False)  # a token that a slot has taken cannot be taken back


def _describe(
    device: torch.device, level: str, arithmetic: Arithmetic, kv_cache_bytes: int, *, exact: bool
) -> EngineInfo:
    return EngineInfo(
        device=str(device),
        kernels=level,
        dtype=arithmetic,
        num_threads=torch.get_num_threads(),
        kv_cache_bytes=kv_cache_bytes,
        exact=exact,
    )


def _choose(model: AnyModel, settings: EngineSettings) -> tuple[bool, Arithmetic]:
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
    # And for slots: a state that goes on for ever gathers what rounding does to it.
    can_round = device.type == "cuda" and has_bf16(device) and isinstance(model.state_spec, KVSpec)
    return False, "bf16" if can_round else "fp32"


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


def _warm_up(engine: Engine, num_tokens: int) -> None:
    """Compute a full step, so that the first request does not wait for the system to find memory for it."""
    token_ids = (0,) * min(num_tokens, engine.max_context - 1)
    params = SamplingParams(max_tokens=1, seed=0)
    engine.add(Claim(request=Request(id="", model="", revision="", token_ids=token_ids, params=params), epoch=1))
    while engine.has_work:
        engine.step()
