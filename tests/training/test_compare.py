"""Who takes part in a comparison, under which budget, and how the results are set side by side."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.compare import (
    RATES,
    Budget,
    Result,
    group_by_name,
    list_contestants,
    median_loss,
    read_result,
    table_of,
)
from training.config import Algorithm
from training.costs import count_costs
from training.errors import ConfigError
from training.model_config import GPTConfig, RecurrentConfig


def test_every_combination_takes_part_named_by_what_varies(preset: Path) -> None:
    def names(**options: object) -> list[str]:
        return [contestant.folder_name for contestant in list_contestants([str(preset)], **options)]  # type: ignore[arg-type]

    assert names() == ["tiny-1337"]
    assert names(num_seeds=2) == ["tiny-1337", "tiny-1338"]
    assert names(optimizers=["sgd", "muon"]) == ["sgd-1337", "muon-1337"]
    both = names(optimizers=["sgd", "muon"], activations=["gelu", "relu2"])
    assert both == ["sgd-gelu-1337", "sgd-relu2-1337", "muon-gelu-1337", "muon-relu2-1337"]


def test_an_optimizer_brings_its_rates_and_the_presets_own_keeps_its(preset: Path) -> None:
    preset.write_text(preset.read_text().replace("[optim]", "[optim]\nmatrix_lr = 0.123"))
    listed = list_contestants([str(preset)], optimizers=["muon", "sgd"], overrides=["optim.head_lr=0.5"])
    muon, sgd = (contestant.config.optim for contestant in listed)
    assert (muon.matrix_lr, muon.head_lr) == (0.123, 0.5)
    assert (sgd.algorithm, sgd.matrix_lr, sgd.head_lr) == ("sgd", RATES["sgd"][0], 0.5)
    assert RATES.keys() == set(Algorithm.__args__)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optimizers": ["muonn"]}, "muonn"),
        ({"activations": ["softmax"]}, "softmax"),
        ({"optimizers": ["sgd", "sgd"]}, "twice"),
        ({"overrides": ["budget.steps=3"]}, "budget.steps"),
        ({"overrides": ["model.n_layers=3"]}, "n_layers"),
    ],
    ids=str,
)
def test_what_cannot_take_part_is_named(preset: Path, options: dict[str, list[str]], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        list_contestants([str(preset)], **options)


@pytest.mark.parametrize("given", [{}, {"minutes": 1.0, "tokens": 5}, {"flops": 0.0}, {"minutes": float("nan")}])
def test_a_comparison_has_one_budget(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--minutes, --tokens, --flops"):
        Budget(**given)  # type: ignore[arg-type]


def test_equal_operations_are_fewer_tokens_of_a_larger_model() -> None:
    models = [GPTConfig(vocab_size=65), RecurrentConfig(vocab_size=65)]
    for model in models:
        tokens = Budget(flops=1e14).of(model).tokens
        assert tokens is not None
        assert tokens * count_costs(model).flops_per_token == pytest.approx(1e14, rel=1e-4)
        assert Budget(tokens=7).of(model).tokens == 7
        assert Budget(minutes=2.0).of(model).minutes == 2.0


def result(name: str, seed: int, loss: float) -> Result:
    return Result(
        name=name,
        seed=seed,
        num_parameters=1_000_000,
        tokens=10**6,
        seconds=60.0,
        flops=6e12,
        loss=loss,
        bits_per_byte=loss / 0.7,
    )


@given(st.lists(st.builds(result, st.sampled_from("abc"), st.integers(0, 9), st.floats(0.5, 5)), min_size=1))
def test_the_best_comes_first_and_nobody_is_lost(results: list[Result]) -> None:
    groups = group_by_name(results)
    medians = [median_loss(runs) for runs in groups]
    assert medians == sorted(medians)
    assert sum(map(len, groups)) == len(results)
    assert len(table_of(results).splitlines()) == 2 + len(groups)


def test_the_table_tells_medians_and_ranges() -> None:
    rows = table_of([result("slow", 1, 2.0), result("fast", 1, 1.5), result("fast", 2, 1.4), result("fast", 3, 1.45)])
    assert rows.splitlines()[2].startswith(
        "| fast | 1.4500 (1.4000 to 1.5000) | 2.0714 | 1.00M | 1.00M | 6.00e+12 | 60 |"
    )
    assert rows.splitlines()[3].startswith("| slow | 2.0000 |")


def test_a_result_is_read_from_a_log_that_came_to_its_end(preset: Path, tmp_path: Path) -> None:
    [contestant] = list_contestants([str(preset)], overrides=["model.vocab_size=30"])
    evaluations = [
        {"event": "evaluation", "loss": loss, "nats_per_char": loss, "bits_per_byte": loss / 0.7} for loss in (3, 2, 4)
    ]
    end = {"event": "end", "tokens": 100, "elapsed_s": 5.0, "flops": 1e9}
    assert read_result(contestant, tmp_path) is None
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in evaluations))
    assert read_result(contestant, tmp_path) is None
    log.write_text("".join(json.dumps(event) + "\n" for event in (*evaluations, end)))
    found = read_result(contestant, tmp_path)
    assert found is not None
    assert (found.loss, found.tokens, found.seconds) == (2, 100, 5.0)
    assert found.num_parameters == count_costs(contestant.config.model).num_parameters
