"""Wire types: what gateway, queue and worker say to each other. Encoded as MessagePack; no torch, no HTTP here."""

import enum
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
Priority = Literal["high", "normal", "bulk"]


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen message."""


class Grammar(Wire, frozen=True, kw_only=True):
    """What the generated text must be."""

    kind: Literal["regex", "json_schema"]
    source: str
    """The expression, or the schema as JSON."""


class SamplingParams(Wire, frozen=True, kw_only=True):
    """How the next token is drawn. Ranges are checked where a request enters (`gateway.schemas`)."""

    max_tokens: int
    seed: int
    """0 ≤ seed < 2^63. With `choice` and a position it fixes every random number of this sequence."""
    choice: int = 0
    """Index of this sequence among the `n` of its prompt."""
    temperature: float = 1.0
    """0: the likeliest token."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    """Strings that end the text; the text ends before them."""
    grammar: Grammar | None = None
    logprobs: int | None = None
    """Likeliest ids told beside each generated token, with log-probabilities; 0: the token alone; `None`: nothing."""
    prompt_logprobs: bool = False
    """Whether the same is told of the prompt's tokens; takes `logprobs`."""


class Request(Wire, frozen=True, kw_only=True):
    """One sequence to be continued. `n` choices of `k` prompts are n × k of these."""

    id: str
    model: str
    revision: str
    """Hash of the weights that must answer: a stream never changes its model half-way."""
    token_ids: tuple[int, ...]
    params: SamplingParams
    deadline_s: float | None = None
    """Seconds from its submission after which nobody waits for the answer."""
    tenant: str = ""
    """Whose it is; nothing cached for one tenant is ever used for another."""
    priority: Priority = "normal"
    num_choices: int = 1
    """Requests that its answer is made of: theirs are the ids `<id of the answer>-<k>`, k from 0."""
    echo: bool = False
    """Whether the text of the answer begins with the prompt."""

    @property
    def cost(self) -> int:
        """Tokens that this request may occupy."""
        return len(self.token_ids) + self.params.max_tokens


class Idempotency(Wire, frozen=True, kw_only=True):
    """What makes a second submission of the same thing join the first; a tenant has its own keys."""

    key: str
    digest: str
    """Of everything that was asked for: the same key with another digest is a mistake of the client's."""


class End(Wire, frozen=True, kw_only=True):
    """How a sequence ended, and what it took."""

    finish_reason: FinishReason
    stop_reason: str | None = None
    """The stop string that was met; `None` for the end-of-text token."""
    error: str | None = None
    """One line for the client; with `finish_reason` "error"."""
    deadline_passed: bool = False
    quarantined: bool = False
    """Given up because too many workers died with it; with `finish_reason` "error"."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cached_tokens: int = 0


class Claim(Wire, frozen=True, kw_only=True):
    """A request handed to a worker, with the tokens that earlier workers logged."""

    request: Request
    epoch: int
    """Grows with each hand-over; what an older epoch emits is refused."""
    token_ids: tuple[int, ...] = ()


class TokenLogprobs(Wire, frozen=True, kw_only=True):
    """How likely one token was before it came, in nats, from the model's own logits: before any bias or filter."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids, likeliest first."""


class Emission(Wire, frozen=True, kw_only=True):
    """What one step added to one request."""

    id: str
    epoch: int
    base: int
    """Tokens logged before these."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of `token_ids`, where the request wants them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but the first, once, where the request wants them."""
    end: End | None = None


class EmitStatus(enum.Enum):
    """What the queue answers to an emission."""

    OK = "ok"
    CANCEL = "cancel"
    """The client is gone or the deadline has passed: stop computing. Nothing was appended."""
    FENCED = "fenced"
    """The request is another worker's now, or has ended."""
    GAP = "gap"
    """`base` is not where the log ends, and what is there differs."""


class Update(Wire, frozen=True, kw_only=True):
    """What a watcher of a request sees: tokens from `base` on, and at last its end."""

    id: str
    base: int
    token_ids: tuple[int, ...]
    end: End | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    queued_s: float = 0.0
    """Seconds from submit to the first claim."""


class QueueStats(Wire, frozen=True, kw_only=True):
    """What waits and what runs."""

    waiting: int
    running: int
    waiting_tokens: int
    """Sum of `cost` over the waiting requests."""
    workers: int
    """Workers whose lease holds."""
    drain_tokens_per_s: float
    """Measured rate at which queued cost ends; 0 while unknown."""
    revisions: frozenset[str] = frozenset()
    """Revisions of the models that these workers serve."""
    resumed: int = 0
    """Claims, so far, of requests that another worker had before."""
    fenced: int = 0
    """Emissions refused, so far, because the request was another worker's or had ended."""
    quarantined: int = 0
    """Requests ended, so far, because too many workers died with them."""


class DeadRequest(Wire, frozen=True, kw_only=True):
    """What is kept of a quarantined request, for whoever looks into it: never its prompt."""

    id: str
    tenant: str
    model: str
    revision: str
    attempts: int
    ended: float
    """Unix time, in seconds."""
