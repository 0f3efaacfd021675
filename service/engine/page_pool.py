"""Who holds which page, and what stands in the full ones. Pages are numbers here; `backends` store them."""

from array import array
from collections import OrderedDict
from hashlib import blake2b

from service.engine.sequence import Sequence

KEY_BYTES = 16
"""128 bits: that two contents ever share a key by chance is out of the question."""


class PagePool:
    """Pages handed to sequences and taken back; several may hold a full one whose content they have in common.

    A page that nobody holds keeps its content until it is needed for another: the least recently held one goes first,
    and of one sequence the last page first, for without it the pages before are still of use.

    Args:
        num_pages: Pages there are, 0 … num_pages - 1.
        page_size: Tokens in a page.
        prefix_caching: Whether full pages are found again.
    """

    def __init__(self, num_pages: int, page_size: int, *, prefix_caching: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._prefix_caching = prefix_caching
        self._num_holders = [0] * num_pages
        self._free = OrderedDict.fromkeys(range(num_pages))
        """Pages that nobody holds; the first is needed next."""
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the pages that are held, 0 to 1."""
        return 1.0 - len(self._free) / self.num_pages

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages `num_tokens` fill."""
        return -(-num_tokens // self.page_size)

    def in_full_pages(self, num_tokens: int) -> int:
        """Return how many of the first `num_tokens` stand in full pages."""
        return num_tokens - num_tokens % self.page_size

    def looks_up(self, sequence: Sequence) -> bool:
        """Return whether pages for `sequence` are looked for in the cache: where all logits are wanted, none is."""
        return self._prefix_caching and not sequence.request.params.prompt_logprobs

    def admit(self, sequence: Sequence) -> bool:
        """Give `sequence`, which holds none, the pages of all its known tokens; all of them, or none and False.

        Full ones that are cached count as computed; but the last token never does, for its logits are wanted.
        """
        found = self._find(sequence)
        num_unheld = sum(not self._num_holders[page] for page in found)
        if self.pages_for(len(sequence.token_ids)) - len(found) > len(self._free) - num_unheld:
            return False
        for page in found:
            self._num_holders[page] += 1
            self._free.pop(page, None)
        sequence.page_table += found
        sequence.num_computed_tokens = len(found) * self.page_size
        return self.grow(sequence, len(sequence.token_ids))

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` the pages that its first `num_tokens` need; all of them, or none and False."""
        missing = self.pages_for(num_tokens) - len(sequence.page_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            page, _ = self._free.popitem(last=False)
            self._forget(page)
            self._num_holders[page] = 1
            sequence.page_table.append(page)
        return True

    def share(self, sequence: Sequence, num_tokens: int) -> None:
        """Let others find the pages that the next `num_tokens` of `sequence` fill. They must be computed in this step.

        Others may use them in the same step: each layer appends the keys and values of all its tokens, then attends.
        """
        first = sequence.num_computed_tokens // self.page_size
        last = (sequence.num_computed_tokens + num_tokens) // self.page_size
        if first == last or not self._prefix_caching:
            return
        for page, key in zip(sequence.page_table[first:last], self._keys(sequence, last)[first:], strict=True):
            if key not in self._page_of:  # else another sequence has computed the same
                self._page_of[key] = page
                self._key_of[page] = key

    def discard(self, sequence: Sequence) -> None:
        """Let nobody find the pages of `sequence` any more: what stands in them is not to be trusted."""
        for page in sequence.page_table:
            self._forget(page)

    def release(self, sequence: Sequence) -> None:
        """Take everything back; the sequence has no past from here on."""
        for page in reversed(sequence.page_table):
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                self._free[page] = None
                self._free.move_to_end(page, last=page in self._key_of)
        sequence.page_table.clear()
        sequence.num_computed_tokens = 0

    def _find(self, sequence: Sequence) -> list[int]:
        """Return the cached pages that hold the beginning of `sequence`, without its last token."""
        pages: list[int] = []
        if self.looks_up(sequence):
            for key in self._keys(sequence, (len(sequence.token_ids) - 1) // self.page_size):
                if key not in self._page_of:
                    break
                pages.append(self._page_of[key])
        return pages

    def _keys(self, sequence: Sequence, num_pages: int) -> list[bytes]:
        """Return the keys of the first `num_pages` pages: equal only where the tenant and all tokens so far are."""
        keys, size = sequence.page_keys, self.page_size
        for first in range(len(keys) * size, num_pages * size, size):
            # `person` keeps the two kinds of text apart: no tenant can be named so that it has the key of a page.
            before = keys[-1] if keys else _digest(sequence.request.tenant.encode(), b"tenant")
            keys.append(_digest(before + array("q", sequence.token_ids[first : first + size]).tobytes(), b"page"))
        return keys[:num_pages]

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]


def _digest(text: bytes, kind: bytes) -> bytes:
    return blake2b(text, digest_size=KEY_BYTES, person=kind).digest()
