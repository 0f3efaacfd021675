"""Merges of other makes: the ranks that tiktoken needs, and whether it then does with them what `tokenizers` does."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise

from training.errors import TokenizerError

Merge = tuple[bytes, bytes]


def make_ranks(merges: Iterable[Merge], id_of: Mapping[bytes, int], *, whole_words: bool) -> dict[bytes, int]:
    """Return tiktoken's ranks: the bytes, then what the merges make, in their order.

    Args:
        merges: Pairs of tokens, the first one first to be merged.
        id_of: The vocabulary.
        whole_words: Whether a word that is a token is taken before any merge: then every token has a rank.

    Raises:
        TokenizerError: a byte, or what a merge makes, is not in the vocabulary.
    """
    order = dict.fromkeys(bytes([value]) for value in range(256))
    order |= dict.fromkeys(left + right for left, right in merges)
    if whole_words:
        order |= dict.fromkeys(id_of)
    if missing := next((token for token in order if token not in id_of), None):
        raise TokenizerError(f"{missing!r} is not in its vocabulary: every byte must be, and what each merge makes")
    return {token: rank for rank, token in enumerate(order)}


def require_same_words(merges: Sequence[Merge], vocab: Collection[bytes], *, whole_words: bool) -> None:
    """Refuse merges with which tiktoken would give other tokens than `tokenizers`.

    tiktoken joins any neighbours whose bytes together are a token, `tokenizers` listed pairs only. That comes to the
    same where every pair is listed (as in vocabularies that come from tiktoken), and where each token is made by one
    merge that its own bytes lead to: its parts are then never left side by side as any other pair.

    Raises:
        TokenizerError: neither holds; or words are taken whole in one of the two only.
    """
    if whole_words and _lists_every_pair(merges, vocab):
        return
    place = {merge: number for number, merge in enumerate(merges)}
    for (left, right), number in place.items():
        if _merge_bytes(left + right, place, number) != [left, right]:
            raise TokenizerError(f"merge of {left!r} and {right!r}: other merges keep its bytes from ever coming to it")


def _lists_every_pair(merges: Sequence[Merge], vocab: Collection[bytes]) -> bool:
    grouped = [(token, set(pairs)) for token, pairs in groupby(merges, key=lambda merge: merge[0] + merge[1])]
    every = (({(token[:i], token[i:]) for i in range(1, len(token))}, pairs) for token, pairs in grouped)
    return len({token for token, _ in grouped}) == len(grouped) and all(
        {(left, right) for left, right in possible if left in vocab and right in vocab} == pairs
        for possible, pairs in every
    )


def _merge_bytes(token: bytes, place: Mapping[Merge, int], before: int) -> list[bytes]:
    """Apply to the bytes of `token` the merges that come before number `before`, the earliest first."""
    parts = [bytes([value]) for value in token]
    while True:
        places = [place.get(pair, before) for pair in pairwise(parts)]
        earliest = min(places, default=before)
        if earliest >= before:
            return parts
        at = places.index(earliest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
