"""Who holds which page. Pages are numbers here; what stands in them is the affair of `paged_kv`."""

from service.engine.sequence import Sequence


class PagePool:
    """Pages handed to sequences and taken back.

    Args:
        num_pages: Pages there are, 0 … num_pages - 1.
        page_size: Tokens in a page.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))

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

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` the pages that its first `num_tokens` need; all of them, or none and False."""
        missing = self.pages_for(num_tokens) - len(sequence.page_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            sequence.page_table.append(self._free.pop())
        return True

    def release(self, sequence: Sequence) -> None:
        """Take everything back; the sequence has no past from here on."""
        self._free.extend(reversed(sequence.page_table))
        sequence.page_table.clear()
        sequence.num_computed_tokens = 0
