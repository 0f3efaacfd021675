"""One sequence of an answer: its tokens made text, from the position of its reader on."""

import msgspec

from service.detokenizer import TextStream
from service.errors import Diverged
from service.gateway.logprobs import Logprobs
from service.gateway.stream_position import START, StreamPosition
from service.protocol import End, Request, Update
from training.tokenizers.base import Tokenizer


class Delta(msgspec.Struct, frozen=True):
    """What came of one choice since its last delta."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: Logprobs | None
    end: End | None
    position: StreamPosition
    """Where its reader stands now."""


class Choice:
    """One sequence of an answer.

    Its text up to a position depends on the tokens up to there alone: every reader that goes on after a position reads
    what the first one did.

    Args:
        request: What the queue has of it.
        index: Its number among the choices of the answer.
        tokenizer: Makes text of its tokens.
        after: What its reader has already.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer, after: StreamPosition = START) -> None:
        self.request = request
        self.after = after
        self.num_tokens = 0
        self.queued_s = 0.0
        self.end: End | None = None
        self._index = index
        self._text = TextStream(tokenizer, request.params.stop)
        self._is_resumed = after != START
        self._unsent_text = tokenizer.decode(request.token_ids) if request.echo and not self._is_resumed else ""
        self._unsent_ids: list[int] = []
        self._tells_prompt = request.params.prompt_logprobs and not self._is_resumed
        self._unsent_logprobs = self._first_logprobs()

    def take(self, update: Update) -> Delta | None:
        """Add `update`; return the delta that can be sent now, `None` while all its text is in doubt.

        Raises:
            Diverged: these are not the tokens that its reader has a part of.
        """
        self.num_tokens += len(update.token_ids)
        self.queued_s = update.queued_s
        self.end = update.end
        if self._is_resumed:
            self._require_same()
        text = self._read(update)
        if not text and update.end is None:
            return None
        position = StreamPosition(self.num_tokens, update.end is not None)
        delta = Delta(
            self._index, self._unsent_text + text, self._unsent_ids, self._unsent_logprobs, update.end, position
        )
        self._unsent_text, self._unsent_ids = "", []
        self._unsent_logprobs = None if self._unsent_logprobs is None else Logprobs()
        return delta

    def _read(self, update: Update) -> str:
        """Return the text that `update` settles and that the reader lacks; keep its ids and log-probabilities."""
        num_known = max(0, self.after.num_tokens - update.base)
        if num_known:
            self._text.push(update.token_ids[:num_known])
        token_ids = update.token_ids[num_known:]
        self._unsent_ids += token_ids
        if self._unsent_logprobs is not None:
            self._unsent_logprobs.add(update.prompt_logprobs if self._tells_prompt else ())
            self._unsent_logprobs.add(update.logprobs[num_known:])
        text = self._text.push(token_ids)
        if update.end is not None and not self.after.has_end:
            text += self._text.finish()
        return text

    def _require_same(self) -> None:
        read = self.after
        is_shorter = self.end is not None and self.num_tokens < read.num_tokens
        is_longer = read.has_end and self.num_tokens > read.num_tokens
        if is_shorter or is_longer:
            raise Diverged("what was read of this stream is not what it has now: ask anew")

    def _first_logprobs(self) -> Logprobs | None:
        if self.request.params.logprobs is None:
            return None
        logprobs = Logprobs()
        if self._tells_prompt:
            logprobs.add_first(self.request.token_ids)
        return logprobs
