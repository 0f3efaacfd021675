"""The runner of the common case: a GPT of the Qwen3 layout on a CPU, a step in one native call.

A token's logits are the same bits whatever else is in the step, so a seed fixes the text exactly.
"""

from array import array
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor, nn

from service.engine.kernels.arena import Arena
from service.engine.kernels.library import PAGE_SIZE, GPTLayer, GPTModel, GPTStep, best_level, require_kernels
from service.engine.kernels.weights import Arithmetic, Weights, whole
from service.engine.scheduler import Work
from training.model_config import GPTConfig
from training.models.attention import rotary_table
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.models.layouts import is_portable


def why_not_native(model: AnyModel, page_size: int) -> str | None:
    """Return what keeps the kernels from running `model` with pages of this size; None if nothing does."""
    config = model.config
    if model.lm_head.weight.device.type != "cpu":
        return f"they compute on a CPU, not on {model.lm_head.weight.device}"
    if isinstance(config, GPTConfig) and not is_portable(config):
        return "the model is not of the Qwen3 layout"
    head_width = config.head_width if isinstance(config, GPTConfig) else 0
    if any(size % PAGE_SIZE for size in (config.n_embd, config.hidden_width, head_width)):
        return f"n_embd, head_dim and n_hidden must be multiples of {PAGE_SIZE}"
    if isinstance(config, GPTConfig) and page_size != PAGE_SIZE:
        return f"page_size must be {PAGE_SIZE}"
    return None if best_level() else "the package was installed without a C++ compiler (g++)"


def kv_dtype(arithmetic: Arithmetic) -> torch.dtype:
    """Return what keys and values are kept in."""
    return torch.float32 if arithmetic == "fp32" else torch.bfloat16


class NativeRunner:
    """Runs a model over paged keys and values, natively. Keeps a packed copy of the weights, not the model.

    Args:
        model: One that nothing keeps from it (`why_not_native`).
        num_pages: Pages of keys and values.
        max_step_tokens: Most tokens of a step.
        arithmetic: Of the products.
        level: One of the kernels' `LEVELS`; `None`: the best.
    """

    def __init__(
        self, model: GPT, num_pages: int, max_step_tokens: int, arithmetic: Arithmetic, level: str | None = None
    ) -> None:
        kernels = require_kernels(level)
        config = model.config
        self._step = getattr(kernels, f"minigpt_gpt_{arithmetic}")
        self._vocab_size = config.vocab_size
        self._num_threads = torch.get_num_threads()
        kept_in, heads = kv_dtype(arithmetic), (config.n_layer, num_pages, config.kv_heads)
        width = 4 // kept_in.itemsize
        self._arena = Arena()
        self.keys = self._arena.zeros(*heads, config.head_width // width, PAGE_SIZE, width, dtype=kept_in)
        self.values = self._arena.zeros(*heads, PAGE_SIZE // width, config.head_width, width, dtype=kept_in)
        self._weights = Weights(self._arena, arithmetic, kernels.minigpt_panel())
        self._model = self._describe(model)
        self._scratch = self._make_scratch(config, max_step_tokens)
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._scratch.items()}
        self._logits = self._scratch["logits"]

    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        token_ids: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        pages: list[int] = []
        samples: list[int] = []
        for work in works:
            sequence, count = work
            first = sequence.num_computed_tokens
            token_ids += work.token_ids
            positions += range(first, first + count)
            tables += (len(pages),) * count
            pages += sequence.page_table
            num_logits = work.num_logits
            if num_logits:
                samples += range(len(token_ids) - num_logits, len(token_ids))
        inputs = [array("q", values) for values in (token_ids, positions, tables, pages, samples)]
        addresses = [values.buffer_info()[0] for values in inputs]
        step = GPTStep(len(token_ids), len(samples), self._num_threads, *addresses, **self._pointers)
        self._step(self._model, step)
        return self._logits[: len(samples), : self._vocab_size]

    def _describe(self, model: GPT) -> GPTModel:
        config, keep, pack = model.config, self._weights.keep, self._weights.pack
        cosine, sine = rotary_table(torch.arange(config.context_length), config.head_width, config.rope_theta)
        layers = [self._describe_layer(block, index) for index, block in enumerate(model.model.layers)]
        return GPTModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            H=config.n_head,
            G=config.kv_heads,
            D=config.head_width,
            F=config.hidden_width,
            max_context=whole(config.context_length),
            norm_eps=config.norm_eps,
            embedding=keep(model.model.embed_tokens.weight.to(self.keys.dtype)),
            norm=keep(model.get_parameter("model.norm.weight").float()),
            cosine=keep(cosine),
            sine=keep(sine),
            head=pack(model.lm_head.weight),
            layers=(GPTLayer * config.n_layer)(*layers),
        )

    def _describe_layer(self, block: nn.Module, index: int) -> GPTLayer:
        keep, pack = self._weights.keep, self._weights.pack

        def weight(*names: str) -> Tensor:
            return torch.cat([block.get_parameter(f"{name}.weight") for name in names])

        return GPTLayer(
            input_norm=keep(weight("input_layernorm").float()),
            q_norm=keep(weight("self_attn.q_norm").float()),
            k_norm=keep(weight("self_attn.k_norm").float()),
            mlp_norm=keep(weight("post_attention_layernorm").float()),
            qkv=pack(weight("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            o_proj=pack(weight("self_attn.o_proj")),
            gate_up=pack(weight("mlp.gate_proj", "mlp.up_proj")),
            down_proj=pack(weight("mlp.down_proj")),
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
