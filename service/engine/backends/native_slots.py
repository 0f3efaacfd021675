"""The runner of the families of fixed state on a CPU: recurrent, convolutional and windowed, a step in one native call.

Batch-invariant, as with transformers (`native_paged`).
"""

from array import array
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Runner
from service.engine.backends.torch_slots import Slots
from service.engine.kernels.arena import Arena
from service.engine.kernels.library import require_kernels
from service.engine.kernels.structures import (
    ACTIVATIONS,
    CELLS,
    ConvolutionLayer,
    ConvolutionModel,
    Linear,
    PerceptronModel,
    RecurrentLayer,
    RecurrentModel,
    SlotStep,
    Window,
)
from service.engine.kernels.weights import ComputeDtype, Weights
from service.engine.scheduler import ScheduledChunk
from training.model_config import ConvConfig, MLPConfig, RecurrentConfig
from training.models.convolution import Convolution
from training.models.recurrent import Recurrent
from training.models.window_mlp import WindowMLP

SlotModel = Recurrent | Convolution | WindowMLP
SlotConfig = RecurrentConfig | ConvConfig | MLPConfig


class NativeSlotRunner(Runner):
    """Runs a model over slots, natively. Keeps a packed copy of the weights, not the model.

    Args:
        model: One that nothing keeps from it (`choose.why_not_native`).
        slots: Where the past is kept, in float32.
        max_step_tokens: Most tokens of a step.
        compute_dtype: Of the products.
        level: One of the kernels' `LEVELS`; `None`: the best.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: Slots,
        max_step_tokens: int,
        compute_dtype: ComputeDtype,
        level: str | None = None,
    ) -> None:
        kernels = require_kernels(level)
        arena = Arena()
        self._slots = slots
        self._vocab_size = model.config.vocab_size
        self._num_threads = torch.get_num_threads()
        self._weights = Weights(model, arena, compute_dtype, kernels.minigpt_panel())
        family = type(model.config).__struct_config__.tag
        self._step = getattr(kernels, f"minigpt_{family}_{compute_dtype}")
        self._model = self._describe(model.config)
        self._weights.require_all_read()
        widths = dict.fromkeys(("x", "wide", "side", "lanes"), _widest_product(model))
        self._scratch = arena.rows(max_step_tokens, {**widths, "scales": 1, "logits": self._model.head.N})
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._scratch.items()}
        self._logits = self._scratch["logits"]

    @override
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        self._slots.clear_new(chunks)
        token_ids: list[int] = []
        owners: list[int] = []
        starts: list[int] = []
        samples: list[int] = []
        for index, chunk in enumerate(chunks):
            starts.append(len(token_ids))
            token_ids += chunk.token_ids
            owners += (index,) * chunk.num_tokens
            samples += range(len(token_ids) - chunk.num_logits, len(token_ids))
        slots = [chunk.sequence.page_table[0] for chunk in chunks]
        positions = [chunk.sequence.num_computed_tokens for chunk in chunks]
        inputs = [array("q", values) for values in (token_ids, owners, starts, slots, positions, samples)]
        addresses = [values.buffer_info()[0] for values in inputs]
        counts = (len(chunks), len(token_ids), len(samples), self._num_threads)
        self._step(self._model, SlotStep(*counts, *addresses, **self._pointers))
        return self._logits[: len(samples), : self._vocab_size]

    def _describe(self, config: SlotConfig) -> RecurrentModel | ConvolutionModel | PerceptronModel:
        match config:
            case RecurrentConfig():
                return self._describe_recurrent(config)
            case ConvConfig():
                return self._describe_convolution(config)
            case MLPConfig():
                return self._describe_perceptron(config)

    def _describe_recurrent(self, config: RecurrentConfig) -> RecurrentModel:
        weights = self._weights

        def describe(name: str) -> RecurrentLayer:
            read, kept = (
                weights.pack(*(weights.read(f"{name}.rnn.{part}_{of}_l0") for part in ("weight", "bias")))
                for of in ("ih", "hh")  # torch's names: from what is read, from the state
            )
            return RecurrentLayer(read, kept, self._slots.tensors[name].data_ptr())

        return RecurrentModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            cell=CELLS.index(config.cell),
            activation=ACTIVATIONS.index(config.activation),
            embedding=self._keep("embedding.weight"),
            projection=self._pack_if_there("projection"),
            head=weights.pack_layers("lm_head"),
            layers=(RecurrentLayer * config.n_layer)(*(describe(f"layers.{i}") for i in range(config.n_layer))),
        )

    def _describe_convolution(self, config: ConvConfig) -> ConvolutionModel:
        def describe(name: str, dilation: int) -> ConvolutionLayer:
            return ConvolutionLayer(
                norm=self._keep(f"{name}.norm.weight"),
                norm_bias=self._keep(f"{name}.norm.bias"),
                window=self._window(name, config.kernel_size, dilation),
                convolution=self._weights.pack_layers(f"{name}.convolution"),
                projection=self._weights.pack_layers(f"{name}.projection"),
            )

        layers = [describe(f"layers.{i}", dilation) for i, dilation in enumerate(config.dilations)]
        return ConvolutionModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            activation=ACTIVATIONS.index(config.activation),
            gate_activation=ACTIVATIONS.index(config.gate_activation),
            embedding=self._keep("embedding.weight"),
            norm=self._keep("norm.weight"),
            norm_bias=self._keep("norm.bias"),
            head=self._weights.pack_layers("lm_head"),
            layers=(ConvolutionLayer * config.n_layer)(*layers),
        )

    def _describe_perceptron(self, config: MLPConfig) -> PerceptronModel:
        layers = [self._weights.pack_layers(f"layers.{i}") for i in range(config.n_layer)]
        return PerceptronModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            activation=ACTIVATIONS.index(config.activation),
            embedding=self._keep("embedding.weight"),
            window=self._window("window", config.window, 1),
            output=self._weights.pack_layers("output"),
            direct=self._pack_if_there("direct"),
            head=self._weights.pack_layers("lm_head"),
            layers=(Linear * config.n_layer)(*layers),
        )

    def _keep(self, name: str) -> int:
        return self._weights.keep(self._weights.read(name).float())

    def _pack_if_there(self, layer: str) -> Linear:
        """Pack a product; nothing, where the model has none in this place."""
        return self._weights.pack_layers(layer) if self._weights.has(f"{layer}.weight") else Linear()

    def _window(self, name: str, taps: int, dilation: int) -> Window:
        kept = self._slots.tensors[name]
        return Window(kept.data_ptr(), kept.size(-1), taps, dilation)


def _widest_product(model: SlotModel) -> int:
    """Return the most that a product but the head's reads or gives of a token."""
    tables = {id(model.lm_head.weight), id(model.embed_tokens.weight)}
    matrices = [matrix for matrix in model.parameters() if matrix.dim() == 2 and id(matrix) not in tables]
    return max(model.config.n_embd, *(size for matrix in matrices for size in matrix.shape))
