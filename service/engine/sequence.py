"""One sequence while it is being continued: its tokens, how far they are computed, and where its past is kept."""

from service.detokenizer import TextStream
from service.grammar import Matcher
from service.protocol import Claim, End, FinishReason, Request, TokenLogprobs
from training.tokenizers.base import Tokenizer


class Sequence:
    """A request in the engine.

    Args:
        claim: The request, and the tokens that an earlier worker logged; they count as generated.
        tokenizer: Tells the text, in which stop strings are looked for.
        now: Seconds, monotonic; when the engine took it.
    """

    def __init__(self, claim: Claim, tokenizer: Tokenizer, now: float) -> None:
        self.request: Request = claim.request
        self.token_ids: list[int] = [*claim.request.token_ids, *claim.token_ids]
        """Prompt and generated tokens."""
        self.num_computed_tokens = 0
        """Tokens whose past is in the pool; the rest is still to be computed."""
        self.page_table: list[int] = []
        """Pages that hold the past, in order of position."""
        self.page_keys: list[bytes] = []
        """What stands in its full pages, as far as the pool was asked; they stay when the pages go."""
        self.num_cached_tokens: int | None = None
        """Tokens of the prompt that were in the cache when the sequence was first admitted; `None` before."""
        self.matcher: Matcher | None = None
        """Of its grammar, at the end of the tokens."""
        self.prompt_logprobs: list[TokenLogprobs] = []
        """Of the prompt's tokens but the first, as far as they are scored."""
        self.first_token_at: float | None = None
        # Whoever logged the first token told them with it.
        self._scores_prompt = claim.request.params.prompt_logprobs and not claim.token_ids
        self._added_at = now
        self._end_of_text_id = tokenizer.end_of_text_id
        self._text = TextStream(tokenizer, claim.request.params.stop)
        self._text.push(claim.token_ids)

    @property
    def id(self) -> str:
        """Of the request."""
        return self.request.id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.token_ids)

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated(self) -> int:
        """How many tokens follow the prompt; also the position at which the next random number is drawn."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_to_compute(self) -> int:
        """Tokens not yet computed: 1 while decoding, more before and in a prefill."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether tokens of the prompt are still to be scored; the logits of all that is computed are wanted then."""
        return self._scores_prompt and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    def append(self, token_id: int, now: float) -> FinishReason | None:
        """Take the next token; return why the sequence ends with it, if it does."""
        self.token_ids.append(token_id)
        self.first_token_at = self.first_token_at or now
        params = self.request.params
        if params.stop:
            self._text.push((token_id,))
        if self.matcher is not None:
            self.matcher.take((token_id,))
        is_complete = self.matcher is not None and self.matcher.is_complete
        if token_id == self._end_of_text_id or self._text.stopped is not None or is_complete:
            return "stop"
        return "length" if self.num_generated >= params.max_tokens else None

    def end(self, reason: FinishReason, now: float, error: str | None = None) -> End:
        """Return the end of this sequence."""
        first = self.first_token_at
        return End(
            finish_reason=reason,
            stop_reason=self._text.stopped if reason == "stop" else None,
            error=error,
            prefill_s=(now if first is None else first) - self._added_at,
            decode_s=0.0 if first is None else now - first,
            cached_tokens=self.num_cached_tokens or 0,
        )
