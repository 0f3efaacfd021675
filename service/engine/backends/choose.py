"""The one place that decides what computes a model: which runner, pool and sampler, and in which dtype.

A runner either computes all of a model's config or is refused by name (`why_not_native`, `flash.why_not_flash`).
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, cast

import torch

from service.config import EngineSettings
from service.engine.backends.base import Backend, Runner, Sampler
from service.engine.backends.memory import count_pages
from service.engine.backends.native_paged import NativeRunner, kv_dtype
from service.engine.backends.native_sampler import NativeSampler
from service.engine.backends.native_slots import NativeSlotRunner, SlotModel
from service.engine.backends.paged_kv import FLASH_PAGE_SIZE, PagedKV, PagedState
from service.engine.backends.torch_paged import TorchRunner
from service.engine.backends.torch_sampler import sample
from service.engine.backends.torch_slots import ROWS_ON_CPU, Slots, TorchSlotRunner
from service.engine.interface import EngineInfo
from service.engine.kernels.library import best_level
from service.engine.kernels.structures import ACTIVATIONS, CELLS, PAGE_SIZE
from service.engine.kernels.weights import ComputeDtype
from service.engine.page_pool import PagePool
from service.errors import SettingError
from training.model_config import (
    ConvConfig,
    GPTConfig,
    MLPConfig,
    ModelConfig,
    RecurrentConfig,
    differences,
)
from training.models.base import KVSpec
from training.models.devices import has_bf16
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.models.layouts import departures
from training.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

_SIZES = {"vocab_size", "context_length", "n_layer", "n_embd", "n_hidden", "tie_embeddings", "dropout"}
_COMPUTED: Mapping[type, set[str]] = {
    RecurrentConfig: _SIZES | {"cell", "activation"},
    MLPConfig: _SIZES | {"window", "activation", "direct"},
    ConvConfig: _SIZES | {"kernel_size", "dilation_cycle", "activation", "gate_activation"},
}
"""Fields of which the kernels compute other values than the default; one that is new is not among them."""
_NAMED = {"cell": CELLS, "activation": ACTIVATIONS, "gate_activation": ACTIVATIONS}
"""Fields with a name for a value, and the names that the kernels know."""


def choose_backend(
    model: AnyModel,
    tokenizer: Tokenizer,
    settings: EngineSettings,
    *,
    num_pages: int | None = None,
) -> Backend:
    """Choose and make what computes a model on its device.

    Args:
        model: The model; its weights may be converted in place.
        tokenizer: Tells which ids are never drawn.
        settings: What is demanded.
        num_pages: Pages, or slots, instead of what the settings come to.

    Raises:
        SettingError: the memory for the past does not hold one full context, or what is demanded (memory, device,
            dtype, native kernels) is not to be had here.
    """
    choice = _choose(model, settings)
    if isinstance(model, GPT):
        return _make_paged(model, tokenizer, settings, choice, num_pages)
    return _make_slots(cast(SlotModel, model), tokenizer, settings, choice, num_pages)


def choose_page_size(settings: EngineSettings, device: torch.device) -> int:
    """Return the tokens of a page; where no setting says how many, what the kernels of `device` read in place."""
    return settings.page_size or (FLASH_PAGE_SIZE if device.type == "cuda" else PAGE_SIZE)


def why_not_native(model: AnyModel, page_size: int) -> str | None:
    """Return what keeps the native kernels from running `model` with pages of this size; None if nothing does."""
    config: ModelConfig = model.config
    if model.lm_head.weight.device.type != "cpu":
        return f"they compute on a CPU, not on {model.lm_head.weight.device}"
    if strange := _not_computed(config):
        return f"they do not compute {', '.join(f'{field} = {value!r}' for field, value in strange.items())}"
    head_width = config.head_width if isinstance(config, GPTConfig) else 0
    if any(size % PAGE_SIZE for size in (config.n_embd, config.hidden_width, head_width)):
        return f"n_embd, head_dim and n_hidden must be multiples of {PAGE_SIZE}"
    if isinstance(config, GPTConfig) and page_size != PAGE_SIZE:
        return f"page_size must be {PAGE_SIZE}"
    return None if best_level() else "the package was installed without a C++ compiler (g++)"


def _not_computed(config: ModelConfig) -> dict[str, object]:
    """Return the fields, with their values, that the kernels do not compute."""
    if isinstance(config, GPTConfig):
        return departures(config)
    if type(config) not in _COMPUTED:
        return {"family": type(config).__struct_config__.tag}
    unknown = {
        field: getattr(config, field)
        for field, names in _NAMED.items()
        if hasattr(config, field) and getattr(config, field) not in names
    }
    return unknown | differences(config, type(config)(), but=_COMPUTED[type(config)])


class _Choice(NamedTuple):
    """Which kernels compute."""

    level: str | None
    """Of the native kernels; None: torch computes."""
    dtype: ComputeDtype

    @property
    def is_native(self) -> bool:
        return self.level is not None


def _choose(model: AnyModel, settings: EngineSettings) -> _Choice:
    device = model.lm_head.weight.device
    is_declined = settings.kernels == "torch"
    obstacle = "kernels = 'torch'" if is_declined else why_not_native(model, choose_page_size(settings, device))
    if obstacle is None:
        return _Choice(best_level(), "int8" if settings.dtype == "auto" else settings.dtype)
    if settings.kernels == "native":
        raise SettingError(f"kernels = 'native': {obstacle}; choose auto or torch")
    if settings.dtype == "int8":
        raise SettingError(f"dtype = 'int8': only the native kernels have it, but {obstacle}; choose fp32 or bf16")
    if settings.dtype == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise SettingError(f"dtype = 'bf16': {device} does not have it; choose fp32")
    logger.info("torch computes, not the native kernels: %s", obstacle)
    if settings.dtype != "auto":
        return _Choice(None, settings.dtype)
    # On CPUs fp32: in bf16 the last bit, which libraries round by the shape of a batch, changes tokens too often.
    # And for slots: a state that goes on for ever gathers what rounding does to it.
    can_round = device.type == "cuda" and has_bf16(device) and isinstance(model.state_spec, KVSpec)
    return _Choice(None, "bf16" if can_round else "fp32")


def _make_paged(
    model: GPT, tokenizer: Tokenizer, settings: EngineSettings, choice: _Choice, num_pages: int | None
) -> Backend:
    device, spec = model.lm_head.weight.device, model.state_spec
    dtype, page_size = kv_dtype(choice.dtype), choose_page_size(settings, device)
    page_bytes = PagedKV.page_bytes(spec, page_size, dtype)
    num_pages = num_pages or count_pages(settings, device, page_bytes, -(-spec.max_context // page_size))
    runner: Runner
    if choice.is_native:
        runner = NativeRunner(model, num_pages, settings.max_step_tokens, choice.dtype)
    else:
        runner = _make_torch_runner(model.eval().to(dtype), num_pages, page_size, settings.max_num_seqs)
    return Backend(
        runner,
        _choose_sampler(tokenizer, device),
        PagePool(num_pages, page_size, prefix_caching=settings.prefix_caching),
        # With torch the last bit depends on how many tokens a step has.
        _describe(device, choice, num_pages * page_bytes, batch_invariant=choice.is_native),
        can_speculate=choice.is_native,
    )


def _make_slots(
    model: SlotModel, tokenizer: Tokenizer, settings: EngineSettings, choice: _Choice, num_slots: int | None
) -> Backend:
    device, spec = model.lm_head.weight.device, model.state_spec
    dtype = torch.float32 if choice.is_native else kv_dtype(choice.dtype)
    slot_bytes = Slots.slot_bytes(spec, dtype)
    num_slots = num_slots or min(settings.max_num_seqs, count_pages(settings, device, slot_bytes, 1))
    slots = Slots(spec, num_slots, dtype=dtype, device=device)
    runner: Runner
    if choice.is_native:
        runner = NativeSlotRunner(model, slots, settings.max_step_tokens, choice.dtype)
    else:
        runner = TorchSlotRunner(model.eval().to(dtype), slots, ROWS_ON_CPU if device.type == "cpu" else num_slots)
    is_seen_invariant = choice.is_native or (device.type == "cpu" and choice.dtype == "fp32")
    return Backend(
        runner,
        _choose_sampler(tokenizer, device),
        PagePool(num_slots, spec.max_context, prefix_caching=False),
        _describe(device, choice, num_slots * slot_bytes, batch_invariant=is_seen_invariant),
        can_speculate=False,  # a token that a slot has taken cannot be taken back
    )


def _make_torch_runner(model: GPT, num_pages: int, page_size: int, max_num_seqs: int) -> Runner:
    weight = model.lm_head.weight
    if weight.device.type != "cuda":
        kv = PagedKV(model.state_spec, num_pages, page_size, dtype=weight.dtype, device=weight.device)
        return TorchRunner(model, kv)
    from service.engine.backends.cuda_graphs import GraphRecorder, GraphRunner
    from service.engine.backends.flash import FlashState, why_not_flash  # brings torch's compiler: a second on a CPU

    obstacle = why_not_flash(model.state_spec, page_size, weight.dtype, weight.device)
    if obstacle is not None:
        logger.info("keys and values are gathered, not read in place by flash attention: %s", obstacle)
    kv = PagedKV(model.state_spec, num_pages + 1, page_size, dtype=weight.dtype, device=weight.device)
    attention = FlashState if obstacle is None else PagedState
    return GraphRunner(model, kv, attention, max_num_seqs=max_num_seqs, record=GraphRecorder(weight.device))


def _choose_sampler(tokenizer: Tokenizer, device: torch.device) -> Sampler:
    banned = sorted(tokenizer.special_ids - {tokenizer.end_of_text_id})
    if device.type == "cpu" and best_level() is not None:
        return NativeSampler(banned)
    return partial(sample, banned=torch.tensor(banned, dtype=torch.int64, device=device))


def _describe(device: torch.device, choice: _Choice, kv_cache_bytes: int, *, batch_invariant: bool) -> EngineInfo:
    return EngineInfo(
        device=str(device),
        kernels=choice.level or "torch",
        dtype=choice.dtype,
        num_threads=torch.get_num_threads(),
        kv_cache_bytes=kv_cache_bytes,
        batch_invariant=batch_invariant,
    )
