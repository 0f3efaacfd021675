"""From a text, a machine's speed and a number of minutes to every setting of a run.

The constants below were set by hand, after a few runs on Tiny-Shakespeare, most of one seed, by the loss on its
validation split. C is the budget in floating-point operations, N the weights in hidden matrices, D the
tokens of the text.
"""

import math

import msgspec

from training.config import BudgetConfig, DataConfig, RunConfig, TrainConfig
from training.costs import count_costs
from training.errors import ConfigError
from training.model_config import GPTConfig

USABLE_SHARE = 0.92
"""Share of the minutes that training gets; evaluations and the compiler take the rest."""
COMPILE_FROM_MINUTES = 2.0
"""Runs of at least so many minutes are compiled."""
COMPILED_SPEEDUP = 1.25
"""A compiled step against one without the compiler. Measured: 1.17 and 1.24 at 4 × 128, 1.20 and 1.33 at 6 × 256."""
COMPILER_S = 35.0
"""Seconds that the compiler takes at first; none where its cache has a model of the same shape."""

WEIGHTS_AT_1E14 = 2.0e6
"""Best N where C = 1e14; it grows with the square root of C (Hoffmann et al. 2022, arXiv 2203.15556, approach 1)."""
MAX_EPOCHS = 12.0
"""More passes over a text than this overfit: rather a larger model is trained."""
MAX_WEIGHTS_PER_TOKEN = 10.0
"""Largest N / D; where time is left at this size, the run ends before its minutes."""
DROPOUT_PER_EPOCH = 0.02
"""Dropout for each pass, from `DROPOUT_FROM_EPOCHS` passes on, where N / D is `FULL_DROPOUT` or more. Below, in
proportion less: a smaller model memorizes less."""
FULL_DROPOUT = 2.0
DROPOUT_FROM_EPOCHS = 3.0
MAX_DROPOUT = 0.3

MAX_TEMPERATURE = 1.15
"""Temperature of a model that has seen its text `EPOCHS_TO_CERTAINTY` times or more; with fewer passes, in proportion
less. Large texts, seen for a part of one pass, were not tried."""
EPOCHS_TO_CERTAINTY = 1.5

BIGRAMS_UP_TO = 3e13
"""Runs of fewer operations get a table of bigrams: it lowers the loss by 0.02 to 0.03. Other programs do not know this
layout."""
MAX_BIGRAMS = 2**14
"""Most pairs of tokens for which there is such a table: each has a row of its own."""

HEAD_WIDTH = 64
CONTEXT_LENGTH = 256
MIN_WINDOWS = 16
"""A text must have so many contexts; for a shorter text the context is shorter."""
BATCH_AT_1E14 = 8
"""Best rows of a batch up to C = 1e14; they grow with the square root of C, up to `MAX_BATCH`."""
MAX_BATCH = 64
MIN_STEPS = 400
"""A batch grows only while a run has at least so many steps."""
EVALUATION_SHARE = 0.04
"""Largest share of the time that evaluations may take."""
STEP_PER_READING = 2.7
"""Cost of a compiled step against a forward pass over its tokens without the compiler (runs of 5 and 20 minutes)."""
MAX_EVALUATIONS = 20

BPE_FROM_CHARACTERS = 5_000_000
"""A longer text gets a `bpe` vocabulary of 1024 entries; for each fourfold length, twice as many."""
MAX_DISTINCT_CHARACTERS = 256
"""A text with more different characters gets a `bpe` vocabulary too, if it has `MIN_CHARACTERS_FOR_BPE`."""
MIN_CHARACTERS_FOR_BPE = 100_000
BPE_VOCABULARY, MAX_BPE_VOCABULARY = 1024, 16_384


class TextSize(msgspec.Struct, frozen=True, kw_only=True):
    """What of a prepared text decides."""

    num_train: int
    """Tokens to train on."""
    num_validation: int
    vocab_size: int


def plan(text: TextSize, flops_per_second: float, minutes: float) -> TrainConfig:
    """Choose size, batch, budget and regularization of a GPT; the learning rates' defaults hold for all of them.

    Args:
        text: To train on.
        flops_per_second: Of training steps on this machine, measured without the compiler.
        minutes: That the run may take; where the text is too small for them it takes less.

    Raises:
        ConfigError: no minutes.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: must be greater than 0")
    compile_model = minutes >= COMPILE_FROM_MINUTES
    speed = flops_per_second * (COMPILED_SPEEDUP if compile_model else 1.0)
    flops = speed * 60 * minutes * USABLE_SHARE
    model = choose_shape(_best_weights(flops, text.num_train), text)
    if flops < BIGRAMS_UP_TO and (text.vocab_size + 1) ** 2 <= MAX_BIGRAMS:
        model = model.replace(ngram_orders=(2,))
    epochs = flops / count_costs(model).flops_per_token / text.num_train
    used = min(1.0, MAX_EPOCHS / epochs)
    num_tokens = used * epochs * text.num_train
    batch_size = _choose_batch(used * flops, num_tokens / model.context_length)
    shape = f"{model.n_layer} × {model.n_embd}{' with bigrams' if model.ngram_orders else ''}"
    return TrainConfig(
        title=f"planned for {minutes:g} minutes: {shape}, about {used * epochs:.1f} passes over the text",
        model=model.replace(vocab_size=0, dropout=_choose_dropout(used * epochs, model, text)),
        run=RunConfig(
            batch_size=batch_size,
            compile=compile_model,
            temperature=_choose_temperature(used * epochs),
            eval_every=_choose_eval_every(num_tokens, text, batch_size * model.context_length),
        ),
        budget=BudgetConfig(minutes=minutes * used),
    )


def probe(config: TrainConfig, text: TextSize) -> TrainConfig:
    """Return a run of which some steps tell the machine's speed."""
    run = config.run.replace(batch_size=BATCH_AT_1E14, accumulate=1, compile=False)
    return config.replace(model=choose_shape(WEIGHTS_AT_1E14, text), run=run)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is going to take, unless its target or its patience ends it."""

    steps: int
    tokens: int
    seconds: float


def estimate(config: TrainConfig, text: TextSize, step_s: float) -> Estimate:
    """Tell how long a run takes, evaluations and compiler included.

    Args:
        config: The run.
        text: To train on.
        step_s: Seconds of a step, measured without the compiler.
    """
    run, budget = config.run, config.budget
    batch_tokens = run.batch_size * run.accumulate * config.model.context_length
    step_s /= COMPILED_SPEEDUP if run.compile else 1.0
    evaluation_s = step_s * text.num_validation / STEP_PER_READING / batch_tokens
    step_s += evaluation_s / run.eval_every
    compiler_s = COMPILER_S if run.compile else 0.0
    if budget.minutes is not None:
        steps = (60 * budget.minutes - compiler_s) / step_s
    elif budget.steps is not None:
        steps = budget.steps
    else:
        steps = (budget.tokens or (budget.epochs or 0) * text.num_train) / batch_tokens
    steps = max(1, math.ceil(steps))
    return Estimate(steps=steps, tokens=steps * batch_tokens, seconds=compiler_s + steps * step_s)


def choose_shape(num_weights: float, text: TextSize) -> GPTConfig:
    """Return the shape of the ladder that is nearest to `num_weights` in its hidden matrices."""
    context = min(CONTEXT_LENGTH, 2 ** max(3, int(math.log2(max(1, text.num_train / MIN_WINDOWS)))))
    shapes = [
        GPTConfig(
            n_layer=_depth(width),
            n_head=width // HEAD_WIDTH,
            n_embd=width,
            context_length=context,
            vocab_size=text.vocab_size,
        )
        for width in range(HEAD_WIDTH, 1025, HEAD_WIDTH)
    ]
    return min(shapes, key=lambda shape: abs(math.log(count_costs(shape).matrices / num_weights)))


def choose_data(config: DataConfig, num_characters: int, num_distinct: int) -> DataConfig:
    """Choose the tokenizer for a text: characters where they are few and the text is short.

    Args:
        config: All other settings.
        num_characters: Length of the text.
        num_distinct: Different characters in it.
    """
    many = num_distinct > MAX_DISTINCT_CHARACTERS and num_characters >= MIN_CHARACTERS_FOR_BPE
    if num_characters < BPE_FROM_CHARACTERS and not many:
        return config.replace(tokenizer="char", vocab_size=None)
    doublings = max(0, int(math.log(num_characters / BPE_FROM_CHARACTERS, 4)))
    return config.replace(tokenizer="bpe", vocab_size=min(MAX_BPE_VOCABULARY, BPE_VOCABULARY * 2**doublings))


def _best_weights(flops: float, num_train: int) -> float:
    """Return N: what C pays for, more where the text has too few tokens for it, but not too many for the text."""
    affordable = WEIGHTS_AT_1E14 * math.sqrt(flops / 1e14)
    instead_of_epochs = flops / (6 * MAX_EPOCHS * num_train)
    return min(max(affordable, instead_of_epochs), MAX_WEIGHTS_PER_TOKEN * num_train)


def _depth(width: int) -> int:
    """Return the layers of a model: four when narrow, six in the middle, then one for each head's width."""
    return 4 if width <= 2 * HEAD_WIDTH else max(6, width // HEAD_WIDTH)


def _choose_dropout(epochs: float, model: GPTConfig, text: TextSize) -> float:
    if epochs < DROPOUT_FROM_EPOCHS:
        return 0.0
    size = min(1.0, count_costs(model).matrices / text.num_train / FULL_DROPOUT)
    return min(MAX_DROPOUT, round(round(DROPOUT_PER_EPOCH * epochs * size / 0.05) * 0.05, 2))


def _choose_temperature(epochs: float) -> float:
    return round(1.0 + (MAX_TEMPERATURE - 1.0) * min(1.0, epochs / EPOCHS_TO_CERTAINTY), 2)


def _choose_batch(flops: float, num_windows: float) -> int:
    best = min(MAX_BATCH, BATCH_AT_1E14 * 2 ** round(math.log2(max(1.0, math.sqrt(flops / 1e14)))))
    return min(best, 2 ** max(0, int(math.log2(max(1.0, num_windows / MIN_STEPS)))))


def _choose_eval_every(num_tokens: float, text: TextSize, batch_tokens: int) -> int:
    between = max(num_tokens / MAX_EVALUATIONS, text.num_validation / STEP_PER_READING / EVALUATION_SHARE)
    return max(1, round(between / batch_tokens))
