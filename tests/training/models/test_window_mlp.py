from collections.abc import Callable

import torch

from training.model_config import MLPConfig
from training.models.families import AnyModel
from training.models.window_mlp import WindowMLP


@torch.inference_mode()
def test_a_prediction_reads_exactly_the_window(make_model_of: Callable[..., AnyModel]) -> None:
    model = make_model_of("mlp")
    window = model.config.window
    ids = torch.arange(30).unsqueeze(0) % model.config.vocab_size
    for distance, is_read in ((window - 1, True), (window, False)):
        changed = ids.clone()
        changed[0, 20 - distance] += 1
        assert torch.equal(model(ids)[0, 20], model(changed)[0, 20]) is not is_read


@torch.inference_mode()
def test_it_is_bengios_equation() -> None:
    model = WindowMLP(MLPConfig(vocab_size=11, n_embd=4, n_hidden=6, window=3), torch.Generator().manual_seed(0)).eval()
    ids = torch.tensor([[5, 2, 7]])
    x = model.embed_tokens(ids).flatten()
    y = model.direct(x) + model.output(torch.tanh(model.layers[0](x)))
    torch.testing.assert_close(model(ids)[0, -1], model.embed_tokens.weight @ y)


def test_the_direct_connections_can_be_left_out(make_model_of: Callable[..., AnyModel]) -> None:
    assert make_model_of("mlp", direct=False).direct is None
