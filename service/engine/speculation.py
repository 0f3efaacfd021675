"""Prompt lookup: guess the next tokens from what followed the last time, and let one step check them all.

Every guess is checked against the token that is drawn anyway, from the same logits and the same random number; so it
changes when tokens come, never which.

Source: Leviathan et al. 2023 (arXiv 2211.17192), with the text itself as the draft model (Saxena 2023, prompt lookup).
"""

from service.engine.sequence import Sequence

MATCH = 3
"""Tokens that must agree with an earlier place in the text."""
MAX_DRAFT = 3
"""Tokens guessed at once: with the one that is known, as many as the kernels compute for little more than one."""
MEMORY = 0.95
"""Of what was measured before, after each step."""
MARGIN = 1.05
"""How many times as fast it must be."""
PERIOD = 256
"""Steps in which each way is tried at least once, whatever was measured: texts change."""
NUM_PROBES = 8
"""Of them, the first ones, that guess where they can; the last one does not."""


class PromptLookup:
    """Where the text of one sequence has been before."""

    def __init__(self) -> None:
        self._follower: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def guess(self, token_ids: list[int], count: int) -> list[int]:
        """Return up to `count` tokens that followed the last time that the text ended as it does now."""
        for end in range(max(self._num_indexed, MATCH), len(token_ids)):
            self._follower[tuple(token_ids[end - MATCH : end])] = end
        self._num_indexed = len(token_ids)
        at = self._follower.get(tuple(token_ids[-MATCH:]))
        return [] if at is None else token_ids[at : at + count]


class Speculation:
    """Decides, by what it measures, whether a sequence that is alone has its next tokens guessed.

    Several sequences share the reading of the weights already: there a guess costs as much as a token.
    """

    def __init__(self) -> None:
        self._lookup: tuple[Sequence, PromptLookup] | None = None
        self._plain, self._guessed = _Rate(), _Rate()
        self._num_steps = 0

    def guess(self, sequence: Sequence) -> tuple[int, ...]:
        """Return guesses at what follows `sequence`; none where they do not promise to be faster."""
        self._num_steps += 1
        if not self._is_worth_a_look():
            return ()
        if self._lookup is None or self._lookup[0] is not sequence:
            self._lookup = sequence, PromptLookup()
        num_left = sequence.request.params.max_tokens - sequence.num_generated - 1
        draft = self._lookup[1].guess(sequence.token_ids, min(MAX_DRAFT, num_left))
        return tuple(draft) if len(draft) == MAX_DRAFT else ()

    def measure(self, guessed: bool, num_tokens: int, seconds: float) -> None:
        """Take note of what one step of a sequence that is alone brought, with a draft or without."""
        (self._guessed if guessed else self._plain).add(num_tokens, seconds)

    def _is_worth_a_look(self) -> bool:
        phase = self._num_steps % PERIOD
        if phase <= NUM_PROBES:
            return phase > 0
        return self._guessed.tokens_per_s > MARGIN * self._plain.tokens_per_s > 0


class _Rate:
    """Tokens per second, lately."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self._tokens = MEMORY * self._tokens + num_tokens
        self._seconds = MEMORY * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0
