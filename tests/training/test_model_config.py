import msgspec
import pytest

from tests.conftest import FAMILIES
from training.model_config import ConvConfig, GPTConfig, parse_model_config


def test_without_a_family_it_is_a_gpt() -> None:
    assert parse_model_config({"n_layer": 2}) == GPTConfig(n_layer=2)


@pytest.mark.parametrize("table", FAMILIES.values(), ids=FAMILIES)
def test_a_config_survives_its_table(table: dict[str, object]) -> None:
    config = parse_model_config(table)
    again = msgspec.to_builtins(config)
    assert again["family"] == table["family"]
    assert parse_model_config(again) == config
    for field in ("vocab_size", "context_length", "n_layer", "n_embd", "tie_embeddings", "dropout"):
        assert field in again


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        ("transformer", "n_layer", 1, "Invalid value 'transformer'"),
        ("mlp", "n_layer", 0, "n_layer = 0: at least 1"),
        ("conv", "dropout", 1.0, "dropout = 1.0: 0 ≤ dropout < 1"),
        ("recurrent", "vocab_size", -1, "vocab_size = -1: at least 1"),
        ("recurrent", "cell", "lstmm", "Invalid enum value 'lstmm'"),
        ("recurrent", "n_hidden", 0, "n_hidden = 0: at least 1"),
        ("recurrent", "activation", "relu", "activation = 'relu': cell = 'lstm' has its own"),
        ("recurrent", "activation", "gelu", "Invalid enum value 'gelu'"),
        ("recurrent", "n_head", 4, "unknown field `n_head`"),
        ("mlp", "window", 1, "window = 1: at least 2"),
        ("mlp", "n_hidden", 0, "n_hidden = 0: at least 1"),
        ("mlp", "activation", "swiglu", "Invalid enum value 'swiglu'"),
        ("conv", "kernel_size", 1, "kernel_size = 1: at least 2"),
        ("conv", "dilation_cycle", 0, "dilation_cycle = 0: at least 1"),
        ("conv", "n_hidden", -5, "n_hidden = -5: at least 1"),
        ("conv", "gate_activation", "gate", "Invalid enum value 'gate'"),
        ("gpt", "n_head", 0, "n_head = 0: at least 1"),
    ],
)
def test_bad_values_are_refused_by_name_and_with_the_remedy(
    family: str, field: str, value: object, message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        parse_model_config({"family": family, field: value})


def test_dilations_grow_and_begin_again() -> None:
    config = ConvConfig(n_layer=5, kernel_size=3, dilation_cycle=3)
    assert config.dilations == (1, 3, 9, 1, 3)
    assert config.receptive_field == 1 + 2 * 17
