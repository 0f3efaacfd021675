"""What `plan` chooses: within bounds for every text, machine and budget, and as tuned where it was tuned."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import BudgetConfig, DataConfig, TrainConfig
from training.costs import count_costs
from training.errors import ConfigError
from training.model_config import GPTConfig
from training.planning import (
    COMPILER_S,
    MAX_DROPOUT,
    MAX_EPOCHS,
    MAX_WEIGHTS_PER_TOKEN,
    STEP_PER_READING,
    TextSize,
    choose_data,
    estimate,
    plan,
    probe,
)

TINYSHAKESPEARE = TextSize(num_train=1_003_854, num_validation=111_540, vocab_size=67)
TEXTS = st.builds(
    TextSize,
    num_train=st.integers(200, 10**10),
    num_validation=st.integers(20, 10**9),
    vocab_size=st.integers(3, 65_536),
)
SPEEDS = st.floats(1e8, 1e15)
MINUTES = st.floats(0.01, 100_000)


@given(TEXTS, SPEEDS, MINUTES)
def test_every_plan_is_a_run_that_fits_text_and_time(text: TextSize, speed: float, minutes: float) -> None:
    planned = plan(text, speed, minutes)
    assert isinstance(planned.model, GPTConfig)
    assert planned.model.vocab_size == 0
    assert planned.model.context_length * 8 <= max(64, text.num_train)
    assert 0 <= planned.model.dropout <= MAX_DROPOUT
    assert planned.budget.minutes is not None
    assert 0 < planned.budget.minutes <= minutes
    assert planned.run.batch_size & (planned.run.batch_size - 1) == 0
    smallest = count_costs(plan(text, 1.0, 0.01).model).matrices
    assert count_costs(planned.model).matrices <= max(2 * MAX_WEIGHTS_PER_TOKEN * text.num_train, smallest)


@given(TEXTS, SPEEDS, MINUTES, st.floats(1, 100))
def test_more_time_never_makes_a_smaller_model(text: TextSize, speed: float, minutes: float, factor: float) -> None:
    sizes = [count_costs(plan(text, speed, m).model).matrices for m in (minutes, minutes * factor)]
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize(("flops", "shape"), [(1.5e13, (4, 128)), (1e14, (6, 192)), (4e14, (6, 256))])
def test_shapes_are_those_of_the_tuned_presets(flops: float, shape: tuple[int, int]) -> None:
    planned = plan(TINYSHAKESPEARE, flops / 60 / 0.92, 1.0)
    assert (planned.model.n_layer, planned.model.n_embd) == shape


def test_a_short_text_ends_early_and_drops_out_more() -> None:
    short = TextSize(num_train=50_000, num_validation=5_000, vocab_size=67)
    planned, roomy = plan(short, 1e11, 20.0), plan(TINYSHAKESPEARE, 1e11, 5.0)
    assert planned.budget.minutes is not None
    assert planned.budget.minutes < 20
    assert planned.model.dropout > roomy.model.dropout
    assert roomy.budget.minutes == 5.0
    assert f"{MAX_EPOCHS:.1f} passes" in planned.title


def test_bigrams_are_for_short_runs_where_each_pair_has_a_row() -> None:
    many_letters = TextSize(num_train=1_003_854, num_validation=111_540, vocab_size=1000)
    assert plan(TINYSHAKESPEARE, 1e11, 1.0).model.ngram_orders == (2,)
    assert plan(TINYSHAKESPEARE, 1e11, 20.0).model.ngram_orders == ()
    assert plan(many_letters, 1e11, 1.0).model.ngram_orders == ()


def test_the_more_passes_the_higher_the_temperature() -> None:
    huge = TextSize(num_train=10**10, num_validation=10**8, vocab_size=67)
    temperatures = [plan(huge, 1e9, 1.0).run.temperature, plan(TINYSHAKESPEARE, 1e11, 10.0).run.temperature]
    assert temperatures == [1.0, 1.15]


def test_minutes_must_be_some() -> None:
    for minutes in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="--minutes"):
            plan(TINYSHAKESPEARE, 1e11, minutes)


@pytest.mark.parametrize(
    ("num_characters", "num_distinct", "chosen"),
    [
        (1_000_000, 65, ("char", None)),
        (1_000_000, 5_000, ("bpe", 1024)),
        (10_000, 5_000, ("char", None)),
        (6_000_000, 65, ("bpe", 1024)),
        (25_000_000, 65, ("bpe", 2048)),
        (10**12, 65, ("bpe", 16_384)),
    ],
)
def test_tokenizer(num_characters: int, num_distinct: int, chosen: tuple[str, int | None]) -> None:
    data = choose_data(DataConfig(corpus="my.txt"), num_characters, num_distinct)
    assert (data.tokenizer, data.vocab_size) == chosen
    assert data.corpus == "my.txt"


@pytest.mark.parametrize("unit", [{"steps": 1000}, {"tokens": 4096 * 1000}, {"epochs": 4096 * 1000 / 1_003_854}])
def test_estimates_of_one_length_agree_in_every_unit(unit: dict[str, float]) -> None:
    config = TrainConfig(budget=BudgetConfig(**unit))
    expected = estimate(config, TINYSHAKESPEARE, 0.5)
    assert expected.steps == 1000
    assert expected.tokens == 4096 * 1000
    evaluations = 4 * 0.5 * TINYSHAKESPEARE.num_validation / STEP_PER_READING / 4096
    assert expected.seconds == pytest.approx(500 + evaluations)


def test_a_budget_of_minutes_takes_them() -> None:
    config = TrainConfig(budget=BudgetConfig(minutes=10))
    compiled = config.replace(run=config.run.replace(compile=True))
    for run in (config, compiled):
        assert estimate(run, TINYSHAKESPEARE, 0.01).seconds == pytest.approx(600, abs=0.1)
    assert estimate(compiled, TINYSHAKESPEARE, 60.0).seconds > COMPILER_S


def test_the_probe_is_small_and_not_compiled() -> None:
    asked = TrainConfig(budget=BudgetConfig(steps=1))
    run = probe(asked.replace(run=asked.run.replace(compile=True, accumulate=4)), TINYSHAKESPEARE).run
    assert (run.compile, run.accumulate) == (False, 1)
