from collections.abc import Callable

import pytest
import torch
from torch import nn

from training.model_config import RecurrentConfig
from training.models.families import AnyModel
from training.models.recurrent import Recurrent

TORCHS = {
    "rnn": lambda: nn.RNN(32, 32, num_layers=2, nonlinearity="relu", batch_first=True),
    "lstm": lambda: nn.LSTM(32, 32, num_layers=2, batch_first=True),
    "gru": lambda: nn.GRU(32, 32, num_layers=2, batch_first=True),
}


@pytest.mark.parametrize("cell", TORCHS)
@torch.inference_mode()
def test_the_layers_compute_what_torchs_stack_of_layers_computes(
    make_model_of: Callable[..., AnyModel], cell: str
) -> None:
    model = make_model_of(cell, n_hidden=32, tie_embeddings=True, activation="relu" if cell == "rnn" else "tanh")
    theirs = TORCHS[cell]()
    weights = dict(model.layers.named_parameters())
    theirs.load_state_dict({name: weights[f"{name[-1]}.rnn.{name[:-1]}0"] for name in theirs.state_dict()})
    ids = torch.arange(30).view(2, 15)
    expected = theirs(model.embed_tokens(ids))[0] @ model.embed_tokens.weight.T
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cell", TORCHS)
def test_recurrent_matrices_start_orthogonal(cell: str) -> None:
    model = Recurrent(RecurrentConfig(vocab_size=11, cell=cell, n_embd=16, n_hidden=24))
    for layer in model.layers:
        for gate in layer.rnn.weight_hh_l0.detach().split(24):
            torch.testing.assert_close(gate @ gate.T, torch.eye(24), rtol=0, atol=1e-5)


def test_an_lstm_starts_by_remembering() -> None:
    layer = Recurrent(RecurrentConfig(vocab_size=11, cell="lstm", n_embd=16)).layers[0].rnn
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    assert bias.view(4, 16).tolist() == [[value] * 16 for value in (0.0, 1.0, 0.0, 0.0)]
