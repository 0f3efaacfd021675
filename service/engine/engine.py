"""The engine: requests join and leave between steps, and each step computes a little of all of them."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from service.engine.grammar import constrain
from service.engine.logprobs import Drawn, score_prompts
from service.engine.scheduler import Scheduler, Work
from service.engine.sequence import Sequence
from service.engine.speculation import Speculation
from service.engine.state_pool import PagePool
from service.grammar import Grammars
from service.grammar_errors import GrammarError
from service.protocol import Claim, End, FinishReason, TokenLogprobs
from training.tokenizers.base import Tokenizer


class StepOutput(NamedTuple):
    """What a step made of one sequence."""

    id: str
    token_ids: tuple[int, ...]
    end: End | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One of each of `token_ids`, where the request wants them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but the first, once, where the request wants them."""


class StepStats(NamedTuple):
    """What the last step was."""

    batch_size: int = 0
    num_tokens: int = 0
    kv_cache_usage: float = 0.0
    num_preempted: int = 0
    num_queried_tokens: int = 0
    """Of the sequences that began: looked up in the prefix cache."""
    num_found_tokens: int = 0
    """Of these: not computed again."""


class Runner(Protocol):
    """What computes a step."""

    def run(self, works: list[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""


class Sampler(Protocol):
    """What draws tokens."""

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        """Draw the next token of each sequence from its row of `logits` `(S, V)`; None where they are not finite."""


class EngineInfo(NamedTuple):
    """What computes, and with what."""

    device: str
    kernels: str
    """`torch`, or which of the native ones."""
    dtype: str
    """Arithmetic of the products."""
    num_threads: int
    kv_cache_bytes: int
    """Most that keys and values, or recurrent states, may take."""
    exact: bool
    """Whether a token's logits are the same bits whatever else is computed."""

    def __str__(self) -> str:
        megabytes = round(self.kv_cache_bytes / 2**20)
        return f"{self.kernels} kernels in {self.dtype} on {self.device}, {megabytes} MiB of state"


class Engine:
    """Continues sequences.

    Args:
        runner: Computes logits.
        sampler: Draws tokens from them.
        pool: Pages, as many as the runner's storage has.
        tokenizer: Of the model.
        max_context: Positions that the model has.
        max_num_seqs: Sequences in one step.
        max_step_tokens: Tokens in one step.
        info: What computes.
        speculates: Whether a sequence that is alone may have its next tokens guessed.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        pool: PagePool,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        max_num_seqs: int,
        max_step_tokens: int,
        info: EngineInfo,
        speculates: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.last_step = StepStats()
        self._runner = runner
        self._sampler = sampler
        self._pool = pool
        self._scheduler = Scheduler(pool, max_num_seqs, max_step_tokens)
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer)
        self._speculation = Speculation() if speculates else None
        self.max_context = max_context
        """Positions of prompt and answer together."""
        self._max_num_seqs = max_num_seqs
        self._sequences: dict[str, Sequence] = {}
        self._news: list[StepOutput] = []
        self._clock = clock

    @property
    def room(self) -> int:
        """How many more requests would be computed at once."""
        return max(0, self._max_num_seqs - len(self._sequences))

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._sequences or self._news)

    def add(self, claim: Claim) -> None:
        """Take a request; one that cannot be computed ends with an error at the next step."""
        sequence = Sequence(claim, self._tokenizer, self._clock())
        problem = self._problem(claim) or self._start_grammar(sequence)
        if problem is not None:
            self._news.append(StepOutput(sequence.id, (), sequence.end("error", self._clock(), problem)))
            return
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request and free its pages; unknown: no error."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    def step(self) -> list[StepOutput]:
        """Compute one step; return the sequences with news."""
        speculation = self._guess()
        began = self._clock()
        works = self._scheduler.schedule()
        made = self._compute(works) if works else []
        if speculation is not None and works:
            speculation.measure(works[0].num_tokens > 1, len(made), self._clock() - began)
        outputs, self._news = self._news + made, []
        self.last_step = StepStats(
            batch_size=len(works),
            num_tokens=sum(work.num_tokens for work in works),
            kv_cache_usage=self._pool.usage,
            num_preempted=self._scheduler.num_preempted,
            num_queried_tokens=self._scheduler.num_queried_tokens,
            num_found_tokens=self._scheduler.num_found_tokens,
        )
        return outputs

    def _problem(self, claim: Claim) -> str | None:
        request = claim.request
        if not request.token_ids or request.cost > self.max_context:
            return f"{request.cost} tokens do not fit a context of {self.max_context}"
        if not all(0 <= token_id < self._tokenizer.vocab_size for token_id in request.token_ids):
            return f"a token id is outside the vocabulary of {self._tokenizer.vocab_size}"
        if request.id in self._sequences:
            return "a request of this id is being computed"
        return None

    def _start_grammar(self, sequence: Sequence) -> str | None:
        """Give a sequence that has a grammar its matcher; return what is wrong with the grammar."""
        grammar = sequence.request.params.grammar
        if grammar is not None:
            try:
                sequence.matcher = self._grammars.start(grammar)
            except GrammarError as error:
                return str(error)
            sequence.matcher.take(sequence.generated)
        return None

    def _guess(self) -> Speculation | None:
        """Let a sequence that decodes alone have its next tokens guessed; return who is to know how that went."""
        if self._speculation is None or len(self._sequences) > 1:
            return None
        alone = next((s for s in self._sequences.values() if s.num_to_compute == 1), None)
        if alone is None:
            return None
        self._speculation.guess(alone)
        return self._speculation

    def _compute(self, works: list[Work]) -> list[StepOutput]:
        logits = self._runner.run(works)
        if works[0].sequence.draft:
            return self._check_draft(works[0].sequence, logits)
        logits = score_prompts(logits, works)
        at_end = [work.sequence for work in works if work.reaches_end]
        for sequence, num_tokens in works:
            sequence.num_computed_tokens += num_tokens
        return self._draw(at_end, logits) if at_end else []

    def _check_draft(self, sequence: Sequence, logits: Tensor) -> list[StepOutput]:
        """Draw one token after the other while they are those that were guessed; row i tells what follows guess i."""
        outputs = []
        draft, sequence.draft = sequence.draft, []
        for row, guess in enumerate((*draft, None)):
            self._pool.share(sequence, 1)
            sequence.num_computed_tokens += 1
            outputs += self._draw([sequence], logits[row : row + 1])
            if outputs[-1].end is not None or outputs[-1].token_ids != (guess,):
                break
        return outputs

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> list[StepOutput]:
        """Draw the next token of each sequence from its row of `logits`, `(S, V)`."""
        drawn = Drawn(logits, sequences)
        constrain(logits, sequences)
        token_ids = self._sampler(logits, sequences)
        return [self._take(*each) for each in zip(sequences, token_ids, drawn.tell(token_ids), strict=True)]

    def _take(self, sequence: Sequence, token_id: int | None, logprobs: tuple[TokenLogprobs, ...]) -> StepOutput:
        """Append a token; let the sequence go if it ends here."""
        if token_id is None:
            return StepOutput(sequence.id, (), self._fail(sequence))
        prompt_logprobs = () if sequence.num_generated else tuple(sequence.prompt_logprobs)
        if not sequence.request.params.max_tokens:  # the prompt was to be scored, no more
            return StepOutput(sequence.id, (), self._end(sequence, "length"), (), prompt_logprobs)
        reason = sequence.append(token_id, self._clock())
        end = None if reason is None else self._end(sequence, reason)
        return StepOutput(sequence.id, (token_id,), end, logprobs, prompt_logprobs)

    def _fail(self, sequence: Sequence) -> End:
        """End a sequence of which no token could be drawn."""
        if sequence.matcher is not None and sequence.matcher.dead_end is not None:
            return self._end(sequence, "error", f"after {sequence.num_generated} tokens, {sequence.matcher.dead_end}")
        self._pool.discard(sequence)
        return self._end(sequence, "error", "the model's logits are not finite")

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> End:
        """Let a sequence go."""
        self.abort(sequence.id)
        return sequence.end(reason, self._clock(), error)
