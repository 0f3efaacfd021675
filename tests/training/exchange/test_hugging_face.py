"""A model of transformers', imported, computes what it computed there; what would be misread is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.foreign import END, MAKES, save_model
from training.checkpoint import load_checkpoint
from training.errors import MinigptError
from training.exchange.hugging_face import import_hf
from training.manifest import read_manifest

DOCUMENTS = ("the quick brown fox jumps over the lazy dog 1234 " * 9, "Der schnelle Fuchs! né €\n\n" * 5)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied, relu": ("gpt2", {"tie_word_embeddings": False, "activation_function": "relu"}),
    "llama": ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama tied": ("smollm", {"tie_word_embeddings": True}),
    "llama, attention biased": ("llama3", {"attention_bias": True}),
    "llama, mlp biased": ("llama3", {"mlp_bias": True}),
    "qwen3": ("qwen", {}),
    "qwen3 tied, biased": ("qwen", {"tie_word_embeddings": True, "attention_bias": True}),
    "in shards": ("qwen", {"max_shard_size": "30KB"}),
    "half": ("llama3", {"save_dtype": torch.float16}),
}


def theirs(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_the_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    make, changes = SHAPES[name]
    save_model(tmp_path / "hf", make, DOCUMENTS, **changes)
    assert (tmp_path / "hf" / "model.safetensors").exists() == (name != "in shards")
    manifest = import_hf(tmp_path / "hf", tmp_path / "ours")
    loaded = load_checkpoint(tmp_path / "ours")
    size = loaded.tokenizer.vocab_size
    ids = torch.randint(size, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(tmp_path / "hf")(ids).logits[..., :size]  # the rest are rows that no token has
    torch.testing.assert_close(loaded.model(ids), expected, rtol=0, atol=1e-4)
    assert manifest == read_manifest(tmp_path / "ours")
    assert (manifest.corpus, manifest.step, manifest.validation_loss) == ("", 0, None)
    assert manifest.dtype == ("float16" if name == "half" else "float32")


@pytest.mark.parametrize("make", ["llama3", "qwen"])
@torch.inference_mode()
def test_what_was_imported_goes_back(tmp_path: Path, make: str) -> None:
    save_model(tmp_path / "hf", make, DOCUMENTS)
    import_hf(tmp_path / "hf", tmp_path / "ours")
    ids = torch.arange(40).view(1, 40)
    before, after = (theirs(tmp_path / name) for name in ("hf", "ours"))
    assert type(before) is type(after)
    torch.testing.assert_close(after(ids).logits, before(ids).logits[..., : after.config.vocab_size])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.eos_token == END[make]
    assert tokenizer.encode("the fox, né") == load_checkpoint(tmp_path / "ours").tokenizer.encode("the fox, né")


@pytest.fixture(scope="module", params=MAKES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of transformers', and what was imported from it."""
    both = tmp_path_factory.mktemp(request.param)
    save_model(both / "hf", request.param, DOCUMENTS)
    import_hf(both / "hf", both / "ours")
    return both / "hf", both / "ours"


def test_the_ids_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folders[0]), load_checkpoint(folders[1]).tokenizer
    again = AutoTokenizer.from_pretrained(folders[1])

    @given(text=st.text() | st.text(alphabet="the fox\r\n 's1é"))
    def agree(text: str) -> None:
        ids = ours.encode(text)
        assert theirs.encode(text) == again.encode(text) == ids

    agree()


def test_the_first_of_several_ends_a_text(tmp_path: Path) -> None:
    tokenizer = save_model(tmp_path / "hf", "qwen", DOCUMENTS)
    edit_json(tmp_path / "hf" / "config.json", eos_token_id=[tokenizer.token_to_id(END["qwen"]), 3])
    import_hf(tmp_path / "hf", tmp_path / "ours")
    assert load_checkpoint(tmp_path / "ours").tokenizer.end_of_text_id == tokenizer.token_to_id(END["qwen"])


def test_where_the_config_is_silent_the_tokenizer_names_the_end(tmp_path: Path) -> None:
    tokenizer = save_model(tmp_path / "hf", "qwen", DOCUMENTS)
    edit_json(tmp_path / "hf" / "config.json", eos_token_id=None)
    (tmp_path / "hf" / "generation_config.json").unlink()
    import_hf(tmp_path / "hf", tmp_path / "ours")
    assert load_checkpoint(tmp_path / "ours").tokenizer.end_of_text_id == tokenizer.token_to_id(END["qwen"])


@pytest.mark.parametrize("make", ["gpt2", "qwen"])
@torch.inference_mode()
def test_a_shorter_context_keeps_the_first_positions(tmp_path: Path, make: str) -> None:
    save_model(tmp_path / "hf", make, DOCUMENTS)
    assert import_hf(tmp_path / "hf", tmp_path / "ours", context_length=24).context_length == 24
    ours, ids = load_checkpoint(tmp_path / "ours"), torch.arange(24).view(1, 24)
    expected = theirs(tmp_path / "hf")(ids).logits[..., : ours.tokenizer.vocab_size]
    torch.testing.assert_close(ours.model(ids), expected, rtol=0, atol=1e-4)
    with pytest.raises(MinigptError, match="64 positions"):
        import_hf(tmp_path / "hf", tmp_path / "longer", context_length=65)


def test_gpt2s_first_files_are_read(tmp_path: Path) -> None:
    """The tokenizer in two files, the weights without their prefix and with their masks."""
    tokenizer = save_model(tmp_path / "hf", "gpt2", DOCUMENTS)
    import_hf(tmp_path / "hf", tmp_path / "now")
    tokenizer.model.save(str(tmp_path / "hf"))
    (tmp_path / "hf" / "tokenizer.json").unlink()
    weights = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(2)}
    safetensors.torch.save_file(weights, tmp_path / "hf" / "model.safetensors")
    import_hf(tmp_path / "hf", tmp_path / "first")
    now, first = (load_checkpoint(tmp_path / name) for name in ("now", "first"))
    assert all(torch.equal(now.model.state_dict()[name], tensor) for name, tensor in first.model.state_dict().items())
    assert first.tokenizer.encode("the fox's") == now.tokenizer.encode("the fox's")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-9])


def point_outside(folder: Path) -> None:
    drop("model.safetensors")(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere"}}))


def misspell_prefix(folder: Path) -> None:
    template = {"type": "TemplateProcessing", "single": [{"Special": 1}, {"Sequence": {}}], "special_tokens": {}}
    edit_json(folder / "tokenizer.json", post_processor=template)


def damage(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def with_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def with_manifest(folder: Path) -> None:
    (folder / "manifest.json").touch()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "hf"
    save_model(folder, "qwen", DOCUMENTS)
    return folder


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (config(model_type="qwen3_moe"), "model_type 'qwen3_moe'"),
        (config(model_type="minigpt"), "model_type"),
        (config(hidden_act="relu"), "hidden_act = 'relu'"),
        (config(use_sliding_window=True), "use_sliding_window = True"),
        (config(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "rope_type = 'yarn'"),
        (config(quantization_config={"quant_method": "gptq"}), "quantization_config"),
        (config(rope_parameters="yarn"), "config.json: "),
        (config(rope_theta="high", rope_parameters=None), "config.json: "),
        (config(model_type=["qwen3"]), "config.json: "),
        (config(num_attention_heads=3), "n_kv_head"),
        (config(hidden_size="wide"), "n_embd"),
        (config(hidden_size=48), "model.safetensors: does not hold"),
        (config(num_hidden_layers=3), "model.layers.2"),
        (config(vocab_size=100), "vocab_size of config.json is 100"),
        (config(eos_token_id=7), "token id 7"),
        (damage("config.json"), "config.json: truncated"),
        (damage("tokenizer.json"), "tokenizer.json: truncated"),
        (drop("config.json"), "config.json: No such file"),
        (drop("tokenizer.json"), "SentencePiece"),
        (drop("model.safetensors"), "no model.safetensors"),
        (with_sentencepiece, "SentencePiece"),
        (with_manifest, "minigpt serve --model"),
        (pickle_weights, r"pytorch_model.bin: pickled .*save_pretrained"),
        (lose_a_weight, "model.layers.1.mlp.up_proj.weight"),
        (cut_weights, "model.safetensors"),
        (point_outside, "names no files of this folder"),
        (misspell_prefix, "tokenizer.json: a field is missing or wrong"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(saved, folder)
    spoil(folder)
    with pytest.raises(MinigptError, match=named) as refused:
        import_hf(folder, tmp_path / "ours")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_folder_that_is_there_is_not_overwritten(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    with pytest.raises(MinigptError, match="there already"):
        import_hf(saved, tmp_path / "ours")
    assert list((tmp_path / "ours").iterdir()) == []
