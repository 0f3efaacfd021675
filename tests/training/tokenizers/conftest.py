import pytest
import tokenizers

from training.data.corpus import load_corpus
from training.tokenizers.base import Tokenizer
from training.tokenizers.loading import train_tokenizer


@pytest.fixture(scope="session")
def documents() -> tuple[str, ...]:
    return load_corpus("pydoc-topics").documents


@pytest.fixture(scope="session", params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest, documents: tuple[str, ...]) -> Tokenizer:
    return train_tokenizer(request.param, documents, 1024 if request.param == "bpe" else None)


@pytest.fixture(scope="session")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """Hugging Face's reading of the file that we write."""
    file = tmp_path_factory.mktemp("peer") / "tokenizer.json"
    tokenizer.save(file)
    return tokenizers.Tokenizer.from_file(str(file))
