"""The engine: requests join and leave between steps, and each step computes a little of all of them."""

import time
from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Backend
from service.engine.backends.grammar import constrain
from service.engine.backends.logprobs import Drawn, score_prompts
from service.engine.interface import EngineInfo, StepEngine, StepOutput, StepStats
from service.engine.scheduler import ScheduledChunk, Scheduler
from service.engine.sequence import Sequence
from service.engine.speculation import Speculation
from service.grammar import Grammars
from service.grammar_errors import GrammarError
from service.protocol import Claim, End, FinishReason, TokenLogprobs
from training.tokenizers.base import Tokenizer


class Engine(StepEngine):
    """Continues sequences.

    Args:
        backend: What computes.
        tokenizer: Of the model.
        max_context: Positions that the model has.
        max_num_seqs: Sequences in one step.
        max_step_tokens: Tokens in one step.
        speculates: Whether a sequence that is alone may have its next tokens guessed.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        max_num_seqs: int,
        max_step_tokens: int,
        speculates: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.last_step = StepStats()
        self._scheduler = Scheduler(backend.pool, max_num_seqs, max_step_tokens)
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer)
        self._speculation = Speculation() if speculates else None
        self.max_context = max_context
        """Positions of prompt and answer together."""
        self._max_num_seqs = max_num_seqs
        self._sequences: dict[str, Sequence] = {}
        self._refused: list[StepOutput] = []
        """Ends of what could not be taken, for the next step to return."""
        self._clock = clock

    @property
    def info(self) -> EngineInfo:
        """What computes."""
        return self.backend.info

    @property
    @override
    def capacity(self) -> int:
        return max(0, self._max_num_seqs - len(self._sequences))

    @property
    @override
    def has_work(self) -> bool:
        return bool(self._sequences or self._refused)

    @override
    def add(self, claim: Claim) -> None:
        sequence = Sequence(claim, self._tokenizer, self._clock())
        problem = self._problem(claim) or self._start_grammar(sequence)
        if problem is not None:
            self._refused.append(StepOutput(sequence.id, (), sequence.end("error", self._clock(), problem)))
            return
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)

    @override
    def abort(self, request_id: str) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    @override
    def step(self) -> list[StepOutput]:
        speculation, alone = self._speculation, self._decoding_alone()
        draft = speculation.guess(alone) if speculation and alone else ()
        began = self._clock()
        chunks = self._scheduler.schedule(draft)
        made = self._compute(chunks) if chunks else []
        if speculation and alone and chunks:
            speculation.measure(bool(chunks[0].draft), len(made), self._clock() - began)
        outputs, self._refused = self._refused + made, []
        self.last_step = StepStats(
            batch_size=len(chunks),
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            kv_cache_usage=self.backend.pool.usage,
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

    def _decoding_alone(self) -> Sequence | None:
        """Return the only sequence there is, if it decodes: then its next tokens may be guessed."""
        if len(self._sequences) != 1:
            return None
        [sequence] = self._sequences.values()
        return sequence if sequence.num_to_compute == 1 else None

    def _compute(self, chunks: list[ScheduledChunk]) -> list[StepOutput]:
        logits = self.backend.runner.run(chunks)
        if chunks[0].draft:
            return self._check_draft(chunks[0], logits)
        logits = score_prompts(logits, chunks)
        at_end = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        return self._draw(at_end, logits) if at_end else []

    def _check_draft(self, chunk: ScheduledChunk, logits: Tensor) -> list[StepOutput]:
        """Draw one token after the other while they are those that were guessed; row i tells what follows guess i."""
        outputs: list[StepOutput] = []
        for row, guess in enumerate((*chunk.draft, None)):
            self.backend.pool.share(chunk.sequence, 1)
            chunk.sequence.num_computed_tokens += 1
            outputs += self._draw([chunk.sequence], logits[row : row + 1])
            if outputs[-1].end is not None or outputs[-1].token_ids != (guess,):
                break
        return outputs

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> list[StepOutput]:
        """Draw the next token of each sequence from its row of `logits`, `(S, V)`."""
        drawn = Drawn(logits, sequences)
        constrain(logits, sequences)
        token_ids = self.backend.sampler(logits, sequences)
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
        self.backend.pool.discard(sequence)
        return self._end(sequence, "error", "the model's logits are not finite")

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> End:
        """Let a sequence go."""
        self.abort(sequence.id)
        return sequence.end(reason, self._clock(), error)
