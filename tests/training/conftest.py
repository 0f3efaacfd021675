from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import TrainConfig, parse_config
from training.data.corpus import Corpus
from training.data.prepare import PreparedData, encode_splits
from training.tokenizers.char import CharTokenizer

TEXT = "the quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def prepared() -> PreparedData:
    corpus = Corpus(name="fox", documents=(TEXT,))
    return encode_splits(config_of().data, corpus, CharTokenizer.train([TEXT]))


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    return config_of


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A tiny run as a TOML file, with everything on that has a state: dropout, both optimizers, the average."""
    file = tmp_path / "tiny.toml"
    file.write_text(
        """
        [budget]
        steps = 12
        [model]
        n_layer = 1
        n_head = 2
        n_embd = 16
        context_length = 16
        dropout = 0.1
        [optim]
        ema_decay = 0.9
        [run]
        batch_size = 2
        eval_every = 2
        sample_tokens = 4
        dtype = "fp32"
        device = "cpu"
        """
    )
    return file


def config_of(**tables: dict[str, object]) -> TrainConfig:
    gpt = {} if "family" in tables.get("model", {}) else {"n_layer": 1, "n_head": 2}
    tiny: dict[str, dict[str, object]] = {
        "budget": {"steps": 8},
        "model": {"n_embd": 16, "context_length": 16, "dropout": 0.1} | gpt,
        "optim": {"ema_decay": 0.9},
        "run": {"batch_size": 2, "eval_every": 4, "sample_tokens": 4, "dtype": "fp32", "device": "cpu"},
    }
    for name, values in tables.items():
        tiny[name] = values if name == "budget" else tiny.get(name, {}) | values
    return parse_config(tiny, "test")
