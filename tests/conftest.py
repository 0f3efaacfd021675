import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.config import ModelConfig
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

torch.set_num_threads(1)  # tests run side by side; threads that spin while they wait starve the others

SHAPES = {
    "qwen3": {},
    "grouped": {"n_head": 4, "n_kv_head": 2, "head_dim": 6},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": True,
    },
}


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    beside = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
    file = Path(os.environ.get("MINIGPT_TINYSHAKESPEARE", beside))
    if not file.is_file():
        pytest.skip("tinyshakespeare is missing")
    return file


@pytest.fixture(scope="session")
def tokenizer() -> CharTokenizer:
    return CharTokenizer("abcdefghijklmnopqrstuvwxyz .,\né€")


@pytest.fixture(scope="session")
def make_gpt(tokenizer: CharTokenizer) -> Callable[..., GPT]:
    """A tiny GPT in evaluation mode whose every weight is random: initial zeros would hide what a branch does."""

    def make(seed: int = 0, **shape: object) -> GPT:
        small = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "n_layer": 2, "n_head": 2, "n_embd": 24}
        model = GPT(ModelConfig(**(small | shape)))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
        return model.eval()

    return make


@pytest.fixture(params=SHAPES)
def gpt(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    """One model of each family."""
    return make_gpt(**SHAPES[request.param])
