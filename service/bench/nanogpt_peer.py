"""nanoGPT's CPU recipe, made again: its settings, its attention, its initial weights, its optimizer.

Source: github.com/karpathy/nanoGPT: README.md ("I only have a macbook"), config/train_shakespeare_char.py, model.py and
train.py.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.batches import Batch
from training.model_config import GPTConfig
from training.models.base import AttentionState
from training.models.gpt import GPT
from training.objectives import cross_entropy

BATCH_SIZE = 12
STEPS = 2000
PEAK_LR, FINAL_LR = 1e-3, 1e-4
WARMUP_STEPS = 100
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
GRAD_CLIP = 1.0
INITIAL_STD = 0.02


def nanogpt_config(vocab_size: int) -> GPTConfig:
    """Return the shape."""
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=64,
        n_layer=4,
        n_head=4,
        n_embd=128,
        activation="gelu",
        norm="layernorm",
        norm_eps=1e-5,
        position="learned",
        qk_norm=False,
        bias=False,
        tie_embeddings=True,
    )


class FusedAttention(nn.Module):
    """nanoGPT's `CausalSelfAttention`: one product for queries, keys and values, and torch's fused attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, _rotary: tuple[Tensor, Tensor] | None, _state: AttentionState | None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        B, T, C = x.shape  # noqa: N806
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


def make_nanogpt(config: GPTConfig, generator: torch.Generator) -> GPT:
    """Return nanoGPT's model of this shape, freshly initialized."""
    model = GPT(config, generator)
    for block in model.model.layers:
        block.self_attn = FusedAttention(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = INITIAL_STD / math.sqrt(2 * config.n_layer) if ends_branch else INITIAL_STD
                parameter.normal_(0.0, std, generator=generator)
    return model


class NanoGPTTrainer:
    """The loop of `train.py`: fp32, eager.

    Args:
        model: What is trained, on the CPU.
        batches: Windows at random places, one batch a step.
    """

    def __init__(self, model: GPT, batches: Iterator[Batch]) -> None:
        self.model = model.train()
        self._batches = batches
        self._step = 0
        decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=BETAS)  # it asks for `fused` on CUDA only

    def train_step(self) -> int:
        """Make one optimizer step; return how many tokens it saw."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._step)
        inputs, targets = next(self._batches)  # (B, T)
        torch.autograd.backward(cross_entropy(self.model(inputs), targets))
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return targets.numel()


def learning_rate(step: int) -> float:
    """Return the rate of a step, counted from 0: a linear rise, then a cosine to a tenth."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / (WARMUP_STEPS + 1)
    progress = min(1.0, (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS))
    return FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1.0 + math.cos(math.pi * progress))
