from pathlib import Path

import pytest

from training.config import list_presets, load_config, override_config
from training.errors import ConfigError


def test_every_preset_is_valid_and_says_what_it_is() -> None:
    presets = list_presets()
    assert {"best", "nanogpt-cpu"} <= presets.keys()
    assert all(config.title for config in presets.values())


def test_overrides_replace_single_values() -> None:
    config = load_config("best", ["model.n_layer=2", "data.corpus=pydoc-topics", "optim.betas=[0.8, 0.9]"])
    assert (config.model.n_layer, config.data.corpus, config.optim.betas) == (2, "pydoc-topics", (0.8, 0.9))
    assert override_config(config, ["run.seed=5"]).run.seed == 5


def test_a_new_budget_replaces_the_presets() -> None:
    budget = load_config("best", ["budget.minutes=2", "budget.patience=3"]).budget
    assert (budget.minutes, budget.tokens, budget.steps, budget.patience) == (2, None, None, 3)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.n_layers=2", "n_layers"),
        ("modle.n_layer=2", "modle"),
        ("model.n_layer=two", "n_layer"),
        ("model.n_layer=0", "n_layer"),
        ("model.n_head=5", "n_head"),
        ("model.n_kv_head=3", "n_kv_head"),
        ("model.head_dim=7", "head_dim"),
        ("model.dropout=1", "dropout"),
        ("optim.matrix_lr=0", "matrix_lr"),
        ("optim.decay_fraction=0.99", "warmup_fraction"),
        ("optim.ema_decay=1.0", "ema_decay"),
        ("run.batch_size=0", "batch_size"),
        ("run.dtype=fp8", "dtype"),
        ("budget.steps=0", "steps"),
        ("budget.patience=0", "patience"),
        ("budget.target_loss=0", "target_loss"),
        ("run.batches=stream", "batches"),
        ("run.calibration_fraction=0.6", "calibration_fraction"),
        ("data.validation_fraction=1", "validation_fraction"),
        ("data.vocab_size=1024", "vocab_size"),
        ("data.tokenizer=bpe", "vocab_size"),
        ("n_layer=2", "table.key=value"),
        ("model.n_layer", "table.key=value"),
        ("title.x=1", "title"),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")) as refused:
        load_config("best", [override])
    assert "\n" not in str(refused.value)


def test_a_preset_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ConfigError, match="nanogpt-cpu"):
        load_config("nanogpt")


def test_a_file_is_a_preset_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[budget]\nsteps = 3\n[model]\nn_layer = 1\n")
    assert load_config(str(file)).model.n_layer == 1
    file.write_text("[budget\n")
    with pytest.raises(ConfigError, match="TOML"):
        load_config(str(file))
    file.write_text("[budget]\nsteps = 3\ntokens = 4\n")
    with pytest.raises(ConfigError, match="exactly one"):
        load_config(str(file))
