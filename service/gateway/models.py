"""What is served, as the gateway knows it: names, tokenizers and sizes, no weights."""

from collections.abc import Mapping

import msgspec

from service.errors import BadRequest, NotFound
from training.tokenizers.base import Tokenizer


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the gateway knows it: no weights."""

    name: str
    revision: str
    """Hash of the weights."""
    tokenizer: Tokenizer
    context_length: int
    """Tokens that prompt and answer may have together."""
    vocab_size: int


def choose_model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """Return the model `name`; without a name the only one there is.

    Raises:
        BadRequest: no name, and there are several.
        NotFound: no such model.
    """
    names = ", ".join(models)
    if name is None:
        if len(models) > 1:
            raise BadRequest(f"model: name one of {names}", param="model")
        return next(iter(models.values()))
    if name not in models:
        raise NotFound(f"model: no such model here; there is {names}", param="model")
    return models[name]
