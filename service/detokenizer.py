"""Token ids to text while they come: never half a character, never what may be the start of a stop string.

The text is a function of token ids, tokenizer and stop strings alone: engine and gateway run this same code and agree.
"""

import codecs
from collections.abc import Iterable, Sequence

from training.tokenizers.base import Tokenizer


class TextStream:
    """The text of one sequence, as far as it can be told.

    The text ends before the stop string that is complete first; of several that are complete at the same character,
    the longest counts. What `push` and `finish` return adds up to the same text however the token ids are split.

    Args:
        tokenizer: Gives the bytes of each token.
        stop: Strings that end the text, none of them empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        """The stop string that was met."""
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._prefixes = frozenset(string[:length] for string in stop for length in range(1, len(string)))
        self._longest = max((len(prefix) for prefix in self._prefixes), default=0)
        self._held = ""

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that `token_ids` settle; nothing once a stop string was met."""
        if self.stopped is not None:
            return ""
        text = self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))
        return self._settle(text) if self._stop else text

    def finish(self) -> str:
        """Return what was held back, now that no more token comes; an incomplete character as U+FFFD."""
        if self.stopped is not None:
            return ""
        settled = self._settle(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return settled + held

    def _settle(self, text: str) -> str:
        text = self._held + text
        found = [(at + len(string), at, string) for string in self._stop if (at := text.find(string)) >= 0]
        if found:
            _, length, self.stopped = min(found)
            self._held = ""
        else:
            length = self._first_doubtful(text)
            self._held = text[length:]
        return text[:length]

    def _first_doubtful(self, text: str) -> int:
        """Return where the longest end of `text` starts that may become a stop string; its length if none does."""
        for at in range(max(0, len(text) - self._longest), len(text)):
            if text[at:] in self._prefixes:
                return at
        return len(text)
