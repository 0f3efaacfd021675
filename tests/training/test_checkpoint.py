import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.errors import CheckpointError, MinigptError
from training.manifest import former, read_manifest, resolve_checkpoint
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

CONFIG = TrainConfig(budget=BudgetConfig(steps=1))
IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def folder(tmp_path: Path, make_gpt: Callable[..., GPT], tokenizer: CharTokenizer) -> Path:
    save_checkpoint(tmp_path / "run" / "checkpoint", make_gpt(), tokenizer, CONFIG, step=3, validation_loss=1.5)
    return tmp_path / "run" / "checkpoint"


@torch.inference_mode()
def test_saved_and_loaded_gives_the_same_logits(gpt: GPT, tokenizer: CharTokenizer, tmp_path: Path) -> None:
    manifest = save_checkpoint(tmp_path / "c", gpt, tokenizer, CONFIG, step=7, validation_loss=1.25)
    loaded = load_checkpoint(tmp_path / "c")
    assert torch.equal(loaded.model(IDS), gpt(IDS))
    assert loaded.manifest == manifest == read_manifest(tmp_path / "c")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("né")) == "né"
    assert loaded.manifest.revision.startswith("sha256:")


def test_transformers_reads_the_tokenizer_and_keeps_every_character(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_checkpoint(folder).tokenizer
    text = "one\n\n two, né  €"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


def test_bf16_weights_load_as_what_was_rounded(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    model = make_gpt()
    save_checkpoint(tmp_path / "c", model, tokenizer, CONFIG, dtype=torch.bfloat16)
    loaded = load_checkpoint(tmp_path / "c").model
    for mine, stored in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine.bfloat16().float(), stored)


def test_a_runs_folder_means_the_checkpoint_in_it(folder: Path) -> None:
    assert resolve_checkpoint(folder.parent) == folder
    assert resolve_checkpoint(folder) == folder


def test_a_death_between_the_two_renames_leaves_a_checkpoint(folder: Path) -> None:
    folder.rename(former(folder))
    assert load_checkpoint(folder.parent).manifest.step == 3
    assert load_checkpoint(folder).manifest.step == 3


def test_saving_again_replaces_the_whole(folder: Path, make_gpt: Callable[..., GPT], tokenizer: CharTokenizer) -> None:
    save_checkpoint(folder, make_gpt(seed=1), tokenizer, CONFIG, step=9)
    assert read_manifest(folder).step == 9
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-5] if damage == "truncate" else content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99},
        {"surprise": 1},
        {"files": {}},
        {"files": {"../../etc/passwd": "", "model.safetensors": "", "config.json": "", "tokenizer.json": ""}},
        {"vocab_size": "many"},
    ],
    ids=str,
)
def test_a_foreign_manifest_is_refused(folder: Path, change: dict[str, object]) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"manifest\.json") as refused:
        load_checkpoint(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_manifest_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(folder)


def test_a_missing_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no minigpt checkpoint"):
        load_checkpoint(tmp_path)


def test_weights_of_another_shape_are_refused(
    folder: Path, make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    save_checkpoint(other, make_gpt(n_layer=1), tokenizer, CONFIG)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = read_manifest(other).files["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(folder)


def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MinigptError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "c", make_gpt(), tokenizer, CONFIG)
