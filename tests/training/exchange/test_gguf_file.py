"""A GGUF file holds what the checkpoint holds, under the names that llama.cpp reads."""

from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.checkpoints import save_untrained
from tests.training.exchange.vocabularies import TEXT, make_vocabulary
from tests.training.foreign import MAKES
from training.errors import CheckpointError, ConfigError
from training.exchange.gguf_file import write_gguf
from training.tokenizers.base import Tokenizer
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer


def read(file: Path) -> tuple[gguf.GGUFReader, dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(file)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "stored", "tolerance"), [("f32", Kind.F32, 0), ("bf16", Kind.BF16, 2**-8), ("q8_0", Kind.Q8_0, 1 / 50)]
)
def test_every_weight_is_read_back(make_gpt, tokenizer, tmp_path, kind, stored, tolerance, tied):
    model = make_gpt(n_head=4, n_kv_head=2, head_dim=16, tie_embeddings=tied)
    write_gguf(save_untrained(tmp_path / "model", model, tokenizer), tmp_path / "model.gguf", kind)
    _, tensors = read(tmp_path / "model.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    parameters = dict(model.named_parameters())
    assert len(tensors) == len(parameters)
    for name, parameter in parameters.items():
        tensor = tensors[names.get_name(name, (".weight",))]
        assert tensor.tensor_type == (stored if parameter.dim() == 2 else Kind.F32)
        read_back = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        torch.testing.assert_close(read_back, parameter.detach(), rtol=0, atol=tolerance * parameter.abs().max().item())


def test_the_shape_stands_in_the_header(make_gpt, tokenizer, tmp_path):
    model = make_gpt(n_head=4, n_kv_head=2, head_dim=16)
    write_gguf(save_untrained(tmp_path / "model", model, tokenizer), tmp_path / "model.gguf", "bf16")
    reader, _ = read(tmp_path / "model.gguf")
    told = {
        name: reader.get_field(f"qwen3.{name}").contents()
        for name in ("block_count", "context_length", "attention.head_count_kv")
    }
    assert told == {"block_count": 2, "context_length": 64, "attention.head_count_kv": 2}
    assert reader.get_field("qwen3.attention.key_length").contents() == 16
    assert reader.get_field("general.architecture").contents() == "qwen3"


def read_vocabulary(make_gpt, folder: Path, tokenizer: Tokenizer) -> dict:
    model = make_gpt(vocab_size=tokenizer.vocab_size)
    write_gguf(save_untrained(folder / "model", model, tokenizer), folder / "model.gguf", "f32")
    reader, _ = read(folder / "model.gguf")
    prefix = "tokenizer.ggml."
    return {
        name.removeprefix(prefix): field.contents() for name, field in reader.fields.items() if name.startswith(prefix)
    }


@pytest.mark.parametrize("kind", ["char", "bpe", *MAKES])
def test_ids_stand_for_the_same_bytes(make_gpt, tmp_path, kind):
    tokenizer = make_vocabulary(kind)
    told = read_vocabulary(make_gpt, tmp_path, tokenizer)
    tokens, kinds = told["tokens"], told["token_type"]
    byte_of = {letter: byte for byte, letter in gguf.vocab.bytes_to_unicode().items()}
    assert len(tokens) == len(set(tokens)) == tokenizer.vocab_size
    for id_, (token, type_) in enumerate(zip(tokens, kinds, strict=True)):
        if type_ == gguf.TokenType.NORMAL:
            assert bytes(byte_of[letter] for letter in token) == tokenizer.token_bytes(id_)
        assert (id_ in tokenizer.special_ids) == (type_ not in (gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED))
    ends = [told[f"{name}_token_id"] for name in ("bos", "eos")]
    assert ends[1] == tokenizer.end_of_text_id
    assert told["add_bos_token"] == (kind == "llama3")
    assert tokenizer.encode("")[:1] == (ends[:1] if kind == "llama3" else [])
    assert not told["add_eos_token"]
    assert ("unknown_token_id" in told) == (kind == "char")
    names = {"llama3": "llama-bpe", "qwen": "qwen2", "smollm": "smollm"}
    assert told["pre"] == names.get(kind, "gpt-2")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_merges_lead_to_the_same_ids(make_gpt, tmp_path, kind):
    tokenizer = make_vocabulary(kind)
    told = read_vocabulary(make_gpt, tmp_path, tokenizer)
    assert merge(TEXT, told["tokens"], told["merges"]) == tokenizer.encode(TEXT)


@pytest.mark.parametrize("plain", [CharTokenizer("ab"), BpeTokenizer([])], ids=["char", "bpe"])
def test_a_vocabulary_without_merges_has_one_that_never_fires(make_gpt, tmp_path, plain):
    told = read_vocabulary(make_gpt, tmp_path, plain)
    assert len(told["merges"]) == 1
    assert merge("abba", told["tokens"], told["merges"]) == plain.encode("abba")


def merge(text: str, tokens: list[str], merges: list[str]) -> list[int]:
    """Byte-level BPE, the plainest way: as long as there are pairs to merge, the earliest of them first."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    letters = gguf.vocab.bytes_to_unicode()
    parts = [letters[byte] for byte in text.encode()]
    while True:
        ranked = [(ranks[pair], i) for i, pair in enumerate(map(" ".join, pairwise(parts))) if pair in ranks]
        if not ranked:
            return [tokens.index(part) for part in parts]
        _, i = min(ranked)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


@pytest.mark.parametrize(
    ("family", "shape", "named"),
    [
        ("gpt", {"position": "learned"}, r"model_type 'minigpt' \(position = 'learned'\)"),
        ("gpt", {"qk_norm": False}, r"model_type 'llama' \(qk_norm = False\)"),
        ("lstm", {}, r"model_type 'minigpt' \(family = 'recurrent'\)"),
    ],
)
def test_another_layout_is_refused(make_model_of, tokenizer, tmp_path, family, shape, named):
    folder = save_untrained(tmp_path / "model", make_model_of(family, **shape), tokenizer)
    with pytest.raises(CheckpointError, match=named):
        write_gguf(folder, tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_widths_that_make_no_blocks_are_refused(make_gpt, tokenizer, tmp_path):
    folder = save_untrained(tmp_path / "model", make_gpt(n_embd=48, head_dim=16), tokenizer)
    with pytest.raises(ConfigError, match="choose bf16"):
        write_gguf(folder, tmp_path / "model.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_refused(make_gpt, tokenizer, tmp_path):
    folder = save_untrained(tmp_path / "model", make_gpt(), tokenizer)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_gguf(folder, tmp_path / "nowhere" / "model.gguf", "f32")
