"""The runner of the families of fixed state on a CPU: recurrent, convolutional and windowed, a step in one native call.

As with transformers (`native`), a token's logits are the same bits whatever else is in the step.
"""

from array import array
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor, nn

from service.engine.kernels.arena import Arena
from service.engine.kernels.library import (
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
    require_kernels,
)
from service.engine.kernels.weights import Arithmetic, Weights
from service.engine.recurrent_slots import Slots
from service.engine.scheduler import Work
from training.models.convolution import Convolution
from training.models.recurrent import Recurrent
from training.models.window_mlp import WindowMLP

SlotModel = Recurrent | Convolution | WindowMLP
_OF_A_CELL = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
"""Of torch's recurrent layers: from what is read, from the state."""


class NativeSlotRunner:
    """Runs a model over slots, natively. Keeps a packed copy of the weights, not the model.

    Args:
        model: One that nothing keeps from it (`native.why_not_native`).
        slots: Where the past is kept, in float32.
        max_step_tokens: Most tokens of a step.
        arithmetic: Of the products.
        level: One of the kernels' `LEVELS`; `None`: the best.
    """

    def __init__(
        self, model: SlotModel, slots: Slots, max_step_tokens: int, arithmetic: Arithmetic, level: str | None = None
    ) -> None:
        kernels = require_kernels(level)
        arena = Arena()
        self._slots = slots
        self._vocab_size = model.config.vocab_size
        self._num_threads = torch.get_num_threads()
        self._weights = Weights(arena, arithmetic, kernels.minigpt_panel())
        family = type(model.config).__struct_config__.tag
        self._step = getattr(kernels, f"minigpt_{family}_{arithmetic}")
        self._model = self._describe(model)
        widths = dict.fromkeys(("x", "wide", "side", "lanes"), _widest_product(model))
        self._scratch = arena.rows(max_step_tokens, {**widths, "scales": 1, "logits": self._model.head.N})
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._scratch.items()}
        self._logits = self._scratch["logits"]

    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        self._slots.clear_new(works)
        token_ids: list[int] = []
        owners: list[int] = []
        starts: list[int] = []
        samples: list[int] = []
        for index, work in enumerate(works):
            starts.append(len(token_ids))
            token_ids += work.token_ids
            owners += (index,) * work.num_tokens
            samples += range(len(token_ids) - work.num_logits, len(token_ids))
        slots = [work.sequence.page_table[0] for work in works]
        positions = [work.sequence.num_computed_tokens for work in works]
        inputs = [array("q", values) for values in (token_ids, owners, starts, slots, positions, samples)]
        addresses = [values.buffer_info()[0] for values in inputs]
        counts = (len(works), len(token_ids), len(samples), self._num_threads)
        self._step(self._model, SlotStep(*counts, *addresses, **self._pointers))
        return self._logits[: len(samples), : self._vocab_size]

    def _describe(self, model: SlotModel) -> RecurrentModel | ConvolutionModel | PerceptronModel:
        match model:
            case Recurrent():
                return self._describe_recurrent(model)
            case Convolution():
                return self._describe_convolution(model)
            case WindowMLP():
                return self._describe_perceptron(model)

    def _describe_recurrent(self, model: Recurrent) -> RecurrentModel:
        config = model.config

        def describe(name: str) -> RecurrentLayer:
            weights = [model.get_parameter(f"{name}.rnn.{kind}_l0") for kind in _OF_A_CELL]
            state = self._slots.tensors[name].data_ptr()
            return RecurrentLayer(self._weights.pack(*weights[:2]), self._weights.pack(*weights[2:]), state)

        return RecurrentModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            cell=CELLS.index(config.cell),
            activation=ACTIVATIONS.index(config.activation),
            embedding=self._keep(model.embed_tokens.weight),
            projection=self._pack(model.projection),
            head=self._pack(model.lm_head),
            layers=(RecurrentLayer * config.n_layer)(*(describe(f"layers.{i}") for i in range(config.n_layer))),
        )

    def _describe_convolution(self, model: Convolution) -> ConvolutionModel:
        config = model.config

        def describe(name: str, dilation: int) -> ConvolutionLayer:
            return ConvolutionLayer(
                norm=self._keep(model.get_parameter(f"{name}.norm.weight")),
                norm_bias=self._keep(model.get_parameter(f"{name}.norm.bias")),
                window=self._window(name, config.kernel_size, dilation),
                convolution=self._pack(model.get_submodule(f"{name}.convolution")),
                projection=self._pack(model.get_submodule(f"{name}.projection")),
            )

        layers = [describe(f"layers.{i}", dilation) for i, dilation in enumerate(config.dilations)]
        return ConvolutionModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            activation=ACTIVATIONS.index(config.activation),
            gate_activation=ACTIVATIONS.index(config.gate_activation),
            embedding=self._keep(model.embed_tokens.weight),
            norm=self._keep(model.get_parameter("norm.weight")),
            norm_bias=self._keep(model.get_parameter("norm.bias")),
            head=self._pack(model.lm_head),
            layers=(ConvolutionLayer * config.n_layer)(*layers),
        )

    def _describe_perceptron(self, model: WindowMLP) -> PerceptronModel:
        config = model.config
        return PerceptronModel(
            n_layer=config.n_layer,
            C=config.n_embd,
            F=config.hidden_width,
            activation=ACTIVATIONS.index(config.activation),
            embedding=self._keep(model.embed_tokens.weight),
            window=self._window("window", config.window, 1),
            output=self._pack(model.output),
            direct=self._pack(model.direct),
            head=self._pack(model.lm_head),
            layers=(Linear * config.n_layer)(*map(self._pack, model.layers)),
        )

    def _keep(self, tensor: Tensor) -> int:
        return self._weights.keep(tensor.float())

    def _pack(self, linear: nn.Module | None) -> Linear:
        """Pack a product; nothing, where the model has none in this place."""
        return self._weights.pack(linear.weight, linear.bias) if isinstance(linear, nn.Linear) else Linear()

    def _window(self, name: str, taps: int, dilation: int) -> Window:
        kept = self._slots.tensors[name]
        return Window(kept.data_ptr(), kept.size(-1), taps, dilation)


def _widest_product(model: SlotModel) -> int:
    """Return the most that a product but the head's reads or gives of a token."""
    tables = {id(model.lm_head.weight), id(model.embed_tokens.weight)}
    matrices = [matrix for matrix in model.parameters() if matrix.dim() == 2 and id(matrix) not in tables]
    return max(model.config.n_embd, *(size for matrix in matrices for size in matrix.shape))
