"""GPT-2's alphabet: in files, one printable character stands for each byte of a token."""

from training.errors import TokenizerError


def _gpt2_alphabet() -> dict[int, str]:
    """Return the character that stands for each byte: itself if printable, else the next one from U+0100 on.

    Source: `bytes_to_unicode` of GPT-2's encoder.py.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}


_CHARACTER_OF_BYTE = _gpt2_alphabet()
_BYTE_OF_CHARACTER = {ord(character): value for value, character in _CHARACTER_OF_BYTE.items()}


def to_characters(token: bytes) -> str:
    """Return how a file spells `token`."""
    return token.decode("latin-1").translate(_CHARACTER_OF_BYTE)


def to_bytes(characters: str) -> bytes:
    """Return the token that a file spells so.

    Raises:
        TokenizerError: a character that stands for no byte.
    """
    try:
        return characters.translate(_BYTE_OF_CHARACTER).encode("latin-1")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{characters!r} holds a character that stands for no byte") from error
