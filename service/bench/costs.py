"""What computing a model takes, whoever does it."""

import msgspec
import torch

from service.engine.backends.paged_kv import PagedKV
from service.engine.backends.torch_slots import Slots
from training.costs import count_costs as count_weights
from training.model_config import ModelConfig
from training.models.base import SlotSpec
from training.models.families import make_model

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one model in one dtype."""

    layer_weights: int
    """In the matrices of all layers."""
    head_weights: int
    weight_bytes: int
    """Of one weight."""
    kv_bytes: int
    """Keys and values of one token."""
    slot_bytes: int
    """State of one sequence, however long."""

    def flops(self, batch: int, prompt_tokens: int, max_tokens: int) -> int:
        """Return the multiplications and additions by weights for whole answers; of a prompt only its last logits."""
        positions = prompt_tokens + max_tokens - 1
        return 2 * batch * (self.layer_weights * positions + self.head_weights * max_tokens)

    def step_bytes(self, batch: int, prompt_tokens: int, max_tokens: int) -> float:
        """Return what a step that only decodes reads: weights once, and the past half-way through the answers."""
        weights = (self.layer_weights + self.head_weights) * self.weight_bytes
        return weights + batch * (self.slot_bytes + self.kv_bytes * (prompt_tokens + max_tokens / 2))


def count_costs(config: ModelConfig, dtype: str) -> Costs:
    """Count for a model of any family, without its biases.

    Args:
        config: Its shape.
        dtype: fp32, bf16 or int8.
    """
    with torch.device("meta"):
        spec = make_model(config).state_spec
    weights, kept_in = count_weights(config), torch.float32 if dtype == "fp32" else torch.bfloat16
    return Costs(
        layer_weights=weights.matrices,
        head_weights=weights.head,
        weight_bytes=WEIGHT_BYTES[dtype],
        kv_bytes=0 if isinstance(spec, SlotSpec) else PagedKV.page_bytes(spec, 1, kept_in),
        slot_bytes=Slots.slot_bytes(spec, kept_in) if isinstance(spec, SlotSpec) else 0,
    )
