"""llama.cpp reads the GGUF files: the same ids, the same greedy text. `make check-llama` installs what this needs."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import save_untrained
from tests.training.exchange.vocabularies import TEXT, make_vocabulary
from tests.training.foreign import MAKES
from training.checkpoint import load_checkpoint
from training.exchange.gguf_file import write_gguf
from training.models.gpt import GPT
from training.sample import sample
from training.tokenizers.char import CharTokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make check-llama")

BUNDLED = Path(__file__).parents[3] / "service" / "checkpoints"
F32 = 0
"""GGML's number for it."""
COMMON = "The quick\r\n_fox's 3.11 né€ΩЖ中\t"


@contextmanager
def load(checkpoint: Path, file: Path, **options: object) -> Iterator[Any]:
    """Export to fp32, and read that with llama.cpp, in fp32 throughout."""
    write_gguf(checkpoint, file, "f32")
    exact = {"n_ctx": 256, "type_k": F32, "type_v": F32, "n_threads": 1, "verbose": False}
    llama = llama_cpp.Llama(str(file), **(exact | options))
    try:
        yield llama
    finally:
        llama.close()


@pytest.mark.parametrize("kind", ["char", "bpe", *MAKES])
def test_the_ids_are_the_same(make_gpt: Callable[..., GPT], tmp_path: Path, kind: str) -> None:
    tokenizer = make_vocabulary(kind)
    model = make_gpt(vocab_size=tokenizer.vocab_size)
    letters = st.sampled_from(TEXT) if kind == "char" else st.sampled_from(COMMON) | st.characters(codec="utf-8")
    with load(save_untrained(tmp_path / "c", model, tokenizer), tmp_path / "m.gguf", vocab_only=True) as llama:

        @given(text=st.text(letters, min_size=1))
        @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
        def agree(text: str) -> None:
            normal = unicodedata.normalize("NFC", text) if kind == "qwen" else text  # llama.cpp leaves that to others
            assert llama.tokenize(normal.encode(), add_bos=True, special=False) == tokenizer.encode(text)

        agree()


@pytest.mark.parametrize("shape", [{}, {"n_head": 4, "n_kv_head": 2, "head_dim": 16, "tie_embeddings": True}], ids=str)
@pytest.mark.parametrize("kind", ["char", "bpe", "qwen"])
def test_the_greedy_text_is_the_same(
    make_gpt: Callable[..., GPT], tmp_path: Path, kind: str, shape: dict[str, object]
) -> None:
    tokenizer = make_vocabulary(kind)
    folder = save_untrained(tmp_path / "c", make_gpt(vocab_size=tokenizer.vocab_size, **shape), tokenizer)
    require_same_text(folder, tmp_path / "m.gguf", tokenizer.encode("to be"), 40)


def test_a_vocabulary_of_ascii_alone_is_read(make_gpt: Callable[..., GPT], tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc ")
    folder = save_untrained(tmp_path / "c", make_gpt(vocab_size=tokenizer.vocab_size), tokenizer)
    require_same_text(folder, tmp_path / "m.gguf", tokenizer.encode("a cab"), 20)


def test_the_bundled_checkpoint_writes_the_same_text(tmp_path: Path) -> None:
    folder = next(path for path in BUNDLED.iterdir() if path.is_dir())
    prompt = load_checkpoint(folder).tokenizer.encode("ROMEO:")
    require_same_text(folder, tmp_path / "m.gguf", prompt, 100)


def require_same_text(checkpoint: Path, file: Path, prompt: list[int], num_tokens: int) -> None:
    ours = sample(load_checkpoint(checkpoint).model, prompt, temperature=0.0, generator=torch.Generator())
    with load(checkpoint, file) as llama:
        theirs = llama.generate(prompt, temp=0.0, repeat_penalty=1.0, reset=True)
        assert list(islice(theirs, num_tokens)) == list(islice(ours, num_tokens))
