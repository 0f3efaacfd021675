"""The runner of the common case: a GPT of the Qwen3 layout in fp32 on a CPU, a step in one native call.

A token's logits are the same bits whatever else is in the step, so a seed fixes the text exactly.
"""

import ctypes
from collections.abc import Sequence as Ordered

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.kernels.library import PAGE_SIZE, Layer, Model, Step, load_kernels
from service.engine.scheduler import Work
from training.config import ModelConfig
from training.models.attention import rotary_table
from training.models.gpt import GPT
from training.models.layouts import is_portable


def why_not_native(model: GPT, page_size: int) -> str | None:
    """Return what keeps the kernels from running `model` with pages of this size; None if nothing does."""
    config, weight = model.config, model.lm_head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"they compute in fp32 on a CPU, not in {weight.dtype} on {weight.device}"
    if not is_portable(config):
        return "the model is not of the Qwen3 layout"
    if any(size % PAGE_SIZE for size in (config.n_embd, config.head_width, config.hidden_width)):
        return f"n_embd, head_dim and n_hidden must be multiples of {PAGE_SIZE}"
    if page_size != PAGE_SIZE:
        return f"page_size must be {PAGE_SIZE}"
    return None if load_kernels() else "the package was installed without a C++ compiler (g++)"


class NativeRunner:
    """Runs a model over paged keys and values, natively.

    Args:
        model: One that nothing keeps from it (`why_not_native`).
        num_pages: Pages of keys and values.
        max_step_tokens: Most tokens of a step.
    """

    def __init__(self, model: GPT, num_pages: int, max_step_tokens: int) -> None:
        kernels = load_kernels()
        if kernels is None:
            raise RuntimeError("no kernels: ask why_not_native first")
        config = model.config
        self._step = kernels.minigpt_step
        self._vocab_size = config.vocab_size
        heads = (config.n_layer, num_pages, config.kv_heads)
        self.keys = torch.zeros(*heads, config.head_width, PAGE_SIZE)  # a vector holds one element of 16 keys
        self.values = torch.zeros(*heads, PAGE_SIZE, config.head_width)
        self._kept: list[Tensor] = []  # what the pointers below point to
        self._model = self._describe(model)
        self._room = self._scratch(config, max_step_tokens)
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._room.items()}

    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        spans = [(work.sequence.num_computed_tokens, work.num_tokens) for work in works]
        token_ids = [id_ for (s, n), (first, _) in zip(works, spans, strict=True) for id_ in s.token_ids[first:][:n]]
        positions = [position for first, count in spans for position in range(first, first + count)]
        starts = np.cumsum([0, *(len(work.sequence.page_table) for work in works[:-1])])
        ends = np.cumsum([work.num_tokens for work in works])
        inputs = [
            np.asarray(token_ids, dtype=np.int64),
            np.asarray(positions, dtype=np.int64),
            np.repeat(starts, [work.num_tokens for work in works]).astype(np.int64),
            np.asarray([page for work in works for page in work.sequence.page_table], dtype=np.int64),
            np.asarray(
                [at for w, end in zip(works, ends, strict=True) for at in range(end - w.num_logits, end)], np.int64
            ),
        ]
        counts = (len(token_ids), len(inputs[-1]), torch.get_num_threads())
        step = Step(*counts, *(array.ctypes.data for array in inputs), **self._pointers)
        self._step(ctypes.byref(self._model), ctypes.byref(step))
        return self._room["logits"][: step.num_samples, : self._vocab_size]

    def _describe(self, model: GPT) -> Model:
        config = model.config
        cosine, sine = rotary_table(torch.arange(config.context_length), config.head_width, config.rope_theta)
        layers = [self._describe_layer(block, index) for index, block in enumerate(model.model.layers)]
        return Model(
            n_layer=config.n_layer,
            C=config.n_embd,
            H=config.n_head,
            G=config.kv_heads,
            D=config.head_width,
            F=config.hidden_width,
            V=_whole(config.vocab_size),
            max_context=_whole(config.context_length),
            norm_eps=config.norm_eps,
            embedding=self._keep(model.model.embed_tokens.weight),
            norm=self._keep(model.get_parameter("model.norm.weight")),
            head=self._keep(_pack(model.lm_head.weight)),
            cosine=self._keep(cosine),
            sine=self._keep(sine),
            layers=(Layer * config.n_layer)(*layers),
        )

    def _describe_layer(self, block: nn.Module, index: int) -> Layer:
        def weight(name: str) -> Tensor:
            return block.get_parameter(f"{name}.weight")

        qkv = torch.cat([weight(f"self_attn.{letter}_proj") for letter in "qkv"])
        gate_up = torch.cat([weight("mlp.gate_proj"), weight("mlp.up_proj")])
        return Layer(
            input_norm=self._keep(weight("input_layernorm")),
            qkv=self._keep(_pack(qkv)),
            q_norm=self._keep(weight("self_attn.q_norm")),
            k_norm=self._keep(weight("self_attn.k_norm")),
            o_proj=self._keep(_pack(weight("self_attn.o_proj"))),
            mlp_norm=self._keep(weight("post_attention_layernorm")),
            gate_up=self._keep(_pack(gate_up)),
            down_proj=self._keep(_pack(weight("mlp.down_proj"))),
            keys=self.keys[index].data_ptr(),
            values=self.values[index].data_ptr(),
        )

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()

    def _scratch(self, config: ModelConfig, num_tokens: int) -> dict[str, Tensor]:
        heads, width = config.n_head, config.head_width
        shapes = {
            "x": (config.n_embd,),
            "normed": (config.n_embd,),
            "qkv": ((heads + 2 * config.kv_heads) * width,),
            "attended": (heads * width,),
            "hidden": (config.hidden_width,),
            "gate_up": (2 * config.hidden_width,),
            "scores": (heads, self._model.max_context),
            "logits": (self._model.V,),
        }
        return {name: torch.empty(num_tokens, *shape) for name, shape in shapes.items()}


def _whole(size: int) -> int:
    """Round up to whole vectors."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _pack(weight: Tensor) -> Tensor:
    """Lay a `(N, K)` matrix out as panels of 16 outputs, `(N / 16, K, 16)`, the last one filled with zeros."""
    padded = F.pad(weight.detach(), (0, 0, 0, _whole(weight.size(0)) - weight.size(0)))
    return padded.view(-1, PAGE_SIZE, weight.size(1)).transpose(1, 2).contiguous()
