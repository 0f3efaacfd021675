"""Each value of every field of a config: other programs compute what we do, or the way to them is refused by name.

The same on the way back: a model of theirs is computed as they do, or refused by the name of the field.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from tests.every_config import CONFIGS, EVERY, shape_of
from tests.training.foreign import save_model
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.errors import CheckpointError
from training.exchange.gguf_file import write_gguf
from training.exchange.hugging_face import import_hf
from training.model_config import GPTConfig, ModelConfig
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.models.layouts import OWN_MODEL_TYPE
from training.tokenizers.char import CharTokenizer

Save = Callable[[str, str, object], tuple[Path, AnyModel]]
IDS = torch.arange(30)[None]
OURS = [case for case in EVERY if case[1] != "vocab_size"]
"""A checkpoint's vocabulary is its tokenizer's."""


@pytest.fixture
def save(make_model_of: Callable[..., AnyModel], tokenizer: CharTokenizer, tmp_path: Path) -> Save:
    """Make a model with one field away from its default; save it as a checkpoint."""

    def make(family: str, field: str, value: object) -> tuple[Path, AnyModel]:
        model = make_model_of(family, **shape_of(family, field, value))
        config = TrainConfig(budget=BudgetConfig(steps=1), model=model.config)
        save_checkpoint(tmp_path / "ours", model, tokenizer, config)
        return tmp_path / "ours", model

    return make


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(("family", "field", "value"), OURS)
@torch.inference_mode()
def test_a_checkpoint_brings_it_back(save: Save, family: str, field: str, value: object) -> None:
    folder, model = save(family, field, value)
    assert_same(load_checkpoint(folder).model(IDS), model(IDS))


@pytest.mark.parametrize(("family", "field", "value"), OURS)
@torch.inference_mode()
def test_transformers_computes_it_or_refuses_it_by_name(save: Save, family: str, field: str, value: object) -> None:
    folder, model = save(family, field, value)
    if json.loads((folder / "config.json").read_text())["model_type"] == OWN_MODEL_TYPE:
        with pytest.raises(ValueError, match=OWN_MODEL_TYPE):
            AutoConfig.from_pretrained(folder)
    else:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert_same(theirs(IDS).logits, model(IDS))


@pytest.mark.parametrize(("family", "field", "value"), OURS)
@torch.inference_mode()
def test_a_gguf_file_says_it_or_it_is_refused_by_name(save: Save, family: str, field: str, value: object) -> None:
    folder, model = save(family, field, value)
    file = folder.with_name("model.gguf")
    try:
        write_gguf(folder, file, "f32")
    except CheckpointError as refusal:
        named = str(refusal)
    else:
        assert_same(read_gguf(file)(IDS), model(IDS))
        return
    assert (f"{field} = {value!r}" if family == "gpt" else "family = ") in named
    assert not file.exists()


def read_gguf(file: Path) -> GPT:
    """Make a Qwen3 of nothing but what the file says."""
    reader = gguf.GGUFReader(file)

    def field(name: str) -> Any:
        return reader.get_field(f"qwen3.{name}").contents()

    weights = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    config = GPTConfig(
        vocab_size=field("vocab_size"),
        context_length=field("context_length"),
        n_layer=field("block_count"),
        n_embd=field("embedding_length"),
        n_hidden=field("feed_forward_length"),
        n_head=field("attention.head_count"),
        n_kv_head=field("attention.head_count_kv"),
        head_dim=field("attention.key_length"),
        norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base"),
        tie_embeddings="output.weight" not in weights,
    )
    model = GPT(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
    named = {name: weights[names.get_name(name, (".weight",))] for name, _ in model.named_parameters()}
    model.load_state_dict(named, strict=not config.tie_embeddings)
    return model


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model of transformers': its config, and for each field other values."""

    config: type[PretrainedConfig]
    others: Mapping[str, tuple[object, ...]]

    def own_fields(self) -> set[str]:
        """What the config has beyond that of every model: all that may change what is computed."""
        return self.config().to_dict().keys() - PretrainedConfig().to_dict().keys()


LLAMA = {
    "hidden_size": (64,),
    "intermediate_size": (80,),
    "num_hidden_layers": (3,),
    "num_attention_heads": (8,),
    "num_key_value_heads": (1, 4),
    "head_dim": (32,),
    "hidden_act": ("gelu", "relu"),
    "max_position_embeddings": (48,),
    "initializer_range": (0.5,),
    "rms_norm_eps": (0.01,),
    "use_cache": (False,),
    "tie_word_embeddings": (True,),
    "rope_parameters": (
        {"rope_theta": 500.0, "rope_type": "default"},
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
    ),
    "attention_bias": (True,),
    "attention_dropout": (0.5,),
}
FOREIGN = {
    "llama3": Foreign(LlamaConfig, {**LLAMA, "mlp_bias": (True,), "pretraining_tp": (2,)}),
    "qwen": Foreign(
        Qwen3Config,
        {
            **LLAMA,
            "use_sliding_window": (True,),
            "sliding_window": (4,),
            "max_window_layers": (0,),
            "layer_types": (["sliding_attention", "full_attention"],),
        },
    ),
    "gpt2": Foreign(
        GPT2Config,
        {
            "n_positions": (48,),
            "n_embd": (64,),
            "n_layer": (3,),
            "n_head": (4,),
            "n_inner": (80,),
            "activation_function": ("gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"),
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), (0.5,)),
            "layer_norm_epsilon": (0.01,),
            "initializer_range": (0.5,),
            "summary_type": ("last",),
            "summary_use_proj": (False,),
            "summary_activation": ("tanh",),
            "summary_proj_to_labels": (False,),
            "scale_attn_weights": (False,),
            "scale_attn_by_inverse_layer_idx": (True,),
            "reorder_and_upcast_attn": (True,),
            "use_cache": (False,),
            "add_cross_attention": (True,),
            "tie_word_embeddings": (False,),
        },
    ),
}
OF_THE_VOCABULARY = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Fields that tests of the tokenizers walk."""


def foreign_cases() -> Iterator[tuple[str, str, object]]:
    for make, foreign in FOREIGN.items():
        for field, values in foreign.others.items():
            yield from ((make, field, value) for value in values)


@pytest.mark.parametrize("make", FOREIGN)
def test_every_field_of_theirs_is_walked(make: str) -> None:
    foreign = FOREIGN[make]
    assert foreign.own_fields() - OF_THE_VOCABULARY == foreign.others.keys()


@pytest.mark.parametrize(("make", "field", "value"), list(foreign_cases()))
@torch.inference_mode()
def test_what_is_imported_is_computed_or_refused_by_name(tmp_path: Path, make: str, field: str, value: object) -> None:
    window = {"use_sliding_window": True, "sliding_window": 4} if field in ("layer_types", "max_window_layers") else {}
    window |= {"sliding_window": 4} if field == "use_sliding_window" else {}
    save_model(tmp_path / "theirs", make, ("the quick brown fox 1234 " * 9,), **window, **{field: value})
    try:
        import_hf(tmp_path / "theirs", tmp_path / "ours")
    except CheckpointError as refusal:
        named = str(refusal)
    else:
        model = load_checkpoint(tmp_path / "ours").model
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
        assert_same(model(IDS), theirs(IDS).logits[..., : model.config.vocab_size])
        return
    assert any(name in named for name in (field, *window, "rope_type")), named


def test_every_family_is_walked() -> None:
    assert set(CONFIGS.values()) == set(ModelConfig.__args__)
    assert {family for family, _, _ in EVERY} == CONFIGS.keys()
