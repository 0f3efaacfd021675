"""Each parameter belongs to one group of the optimizer, by what it is a part of: not by what it is called."""

from collections.abc import Callable

import pytest
from torch import nn

from tests.conftest import SHAPES
from training.models.families import AnyModel

MakeModel = Callable[..., AnyModel]


@pytest.mark.parametrize("tied", [False, True])
def test_tables_head_matrices_and_the_rest(make_model_of: MakeModel, family: str, tied: bool) -> None:
    model = make_model_of(family, tie_embeddings=tied)
    groups = {name: model.group_of(name) for name, _ in model.named_parameters()}
    assert [name for name, group in groups.items() if group == "embed"] == [
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    assert [name for name, group in groups.items() if group == "head"] == [] if tied else ["lm_head.weight"]
    assert {model.get_parameter(name).dim() for name, group in groups.items() if group == "matrix"} == {2}
    assert {model.get_parameter(name).dim() for name, group in groups.items() if group == "other"} <= {1}


def test_every_table_of_a_gpt_is_one(make_model_of: MakeModel) -> None:
    model = make_model_of("gpt", **SHAPES["ngrams"], position="learned")
    tables = [name for name, _ in model.named_parameters() if model.group_of(name) == "embed"]
    assert tables == [
        "model.embed_tokens.weight",
        "model.embed_positions.weight",
        "model.embed_ngrams.tables.2.weight",
        "model.embed_ngrams.tables.3.weight",
    ]


def test_a_name_decides_nothing(make_model_of: MakeModel) -> None:
    model = make_model_of("gpt")
    model.add_module("embedder", nn.Linear(4, 4))
    assert [model.group_of(f"embedder.{name}") for name in ("weight", "bias")] == ["matrix", "other"]
