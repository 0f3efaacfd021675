"""A small vocabulary of each kind that a checkpoint may have."""

from tests.training.foreign import END, MAKES, content_of, make_tokenizer
from training.tokenizers.base import Tokenizer
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer
from training.tokenizers.imported import ImportedTokenizer

TEXT = "to be, or not to be: that is the question — né €5\n"


def make_vocabulary(kind: str) -> Tokenizer:
    if kind in MAKES:
        peer = make_tokenizer(kind, [TEXT], 300)
        return ImportedTokenizer.read_new(content_of(peer), peer.token_to_id(END[kind]))
    return BpeTokenizer.train([TEXT], 270) if kind == "bpe" else CharTokenizer.train([TEXT])
