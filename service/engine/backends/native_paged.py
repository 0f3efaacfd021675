"""The runner of the common case: a GPT of the Qwen3 layout on a CPU, a step in one native call.

It is batch-invariant: a token's logits are the same bits whatever else is in the step, so a seed fixes the text.
"""

from array import array
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Runner
from service.engine.kernels.arena import Arena
from service.engine.kernels.library import require_kernels
from service.engine.kernels.structures import PAGE_SIZE, GPTLayer, GPTModel, GPTStep, Linear
from service.engine.kernels.weights import ComputeDtype, Weights, whole
from service.engine.scheduler import ScheduledChunk
from training.model_config import GPTConfig
from training.models.attention import rotary_table
from training.models.gpt import GPT


def kv_dtype(compute_dtype: ComputeDtype) -> torch.dtype:
    """Return what keys and values are kept in."""
    return torch.float32 if compute_dtype == "fp32" else torch.bfloat16


class NativeRunner(Runner):
    """Runs a model over paged keys and values, natively. Keeps a packed copy of the weights, not the model.

    Args:
        model: One that nothing keeps from it (`choose.why_not_native`).
        num_pages: Pages of keys and values.
        max_step_tokens: Most tokens of a step.
        compute_dtype: Of the products.
        level: One of the kernels' `LEVELS`; `None`: the best.
    """

    def __init__(
        self, model: GPT, num_pages: int, max_step_tokens: int, compute_dtype: ComputeDtype, level: str | None = None
    ) -> None:
        kernels = require_kernels(level)
        config = model.config
        self._step = getattr(kernels, f"minigpt_gpt_{compute_dtype}")
        self._vocab_size = config.vocab_size
        self._num_threads = torch.get_num_threads()
        kept_in, heads = kv_dtype(compute_dtype), (config.n_layer, num_pages, config.kv_heads)
        width = 4 // kept_in.itemsize
        self._arena = Arena()
        self.keys = self._arena.zeros(*heads, config.head_width // width, PAGE_SIZE, width, dtype=kept_in)
        self.values = self._arena.zeros(*heads, PAGE_SIZE // width, config.head_width, width, dtype=kept_in)
        self._weights = Weights(model, self._arena, compute_dtype, kernels.minigpt_panel())
        self._model = self._describe(config)
        self._weights.require_all_read()
        self._scratch = self._make_scratch(config, max_step_tokens)
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._scratch.items()}
        self._logits = self._scratch["logits"]

    @override
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        token_ids: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        pages: list[int] = []
        samples: list[int] = []
        for chunk in chunks:
            sequence, count = chunk.sequence, chunk.num_tokens
            first = sequence.num_computed_tokens
            token_ids += chunk.token_ids
            positions += range(first, first + count)
            tables += (len(pages),) * count
            pages += sequence.page_table
            num_logits = chunk.num_logits
            if num_logits:
                samples += range(len(token_ids) - num_logits, len(token_ids))
        inputs = [array("q", values) for values in (token_ids, positions, tables, pages, samples)]
        addresses = [values.buffer_info()[0] for values in inputs]
        step = GPTStep(len(token_ids), len(samples), self._num_threads, *addresses, **self._pointers)
        self._step(self._model, step)
        return self._logits[: len(samples), : self._vocab_size]

    def _describe(self, config: GPTConfig) -> GPTModel:
        weights = self._weights
        cosine, sine = rotary_table(torch.arange(config.context_length), config.head_width, config.rope_theta)
        layers = [self._describe_layer(index) for index in range(config.n_layer)]
        return GPTModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            H=config.n_head,
            G=config.kv_heads,
            D=config.head_width,
            F=config.hidden_width,
            max_context=whole(config.context_length),
            norm_eps=config.norm_eps,
            embedding=weights.keep(weights.read("model.embed_tokens.weight").to(self.keys.dtype)),
            norm=weights.keep(weights.read("model.norm.weight").float()),
            cosine=weights.keep(cosine),
            sine=weights.keep(sine),
            head=weights.pack_layers("lm_head"),
            layers=(GPTLayer * config.n_layer)(*layers),
        )

    def _describe_layer(self, index: int) -> GPTLayer:
        weights, prefix = self._weights, f"model.layers.{index}."

        def norm(name: str) -> int:
            return weights.keep(weights.read(f"{prefix}{name}.weight").float())

        def pack(*names: str) -> Linear:
            return weights.pack_layers(*(prefix + name for name in names))

        return GPTLayer(
            input_norm=norm("input_layernorm"),
            q_norm=norm("self_attn.q_norm"),
            k_norm=norm("self_attn.k_norm"),
            mlp_norm=norm("post_attention_layernorm"),
            qkv=pack("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            o_proj=pack("self_attn.o_proj"),
            gate_up=pack("mlp.gate_proj", "mlp.up_proj"),
            down_proj=pack("mlp.down_proj"),
            keys=self.keys[index].data_ptr(),
            values=self.values[index].data_ptr(),
        )

    def _make_scratch(self, config: GPTConfig, num_tokens: int) -> dict[str, Tensor]:
        heads, context = config.n_head * config.head_width, self._model.max_context
        widths = {
            "x": config.n_embd,
            "qkv": heads + 2 * config.kv_heads * config.head_width,
            "attended": heads,
            "gate_up": 2 * config.hidden_width,
            "logits": self._model.head.N,
            "q": heads,
            "lanes": max(config.n_embd, heads, config.hidden_width),
            "scales": 1,
        }
        scratch = self._arena.rows(num_tokens, widths)
        return scratch | self._arena.rows(self._num_threads, dict.fromkeys(("scores", "weights"), context))
