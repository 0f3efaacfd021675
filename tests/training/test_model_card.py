"""The model card tells what a checkpoint is, and nothing of the user's machine."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainConfig, parse_config
from training.models.families import AnyModel
from training.tokenizers.char import CharTokenizer


def save(folder: Path, model: AnyModel, tokenizer: CharTokenizer, config: TrainConfig, **facts: object) -> str:
    save_checkpoint(folder, model, tokenizer, config, **facts)  # type: ignore[arg-type]
    return (folder / "README.md").read_text("utf-8")


@pytest.fixture
def card(
    tmp_path: Path,
    make_model_of: Callable[..., AnyModel],
    tokenizer: CharTokenizer,
    make_config: Callable[..., TrainConfig],
) -> str:
    config = make_config(data={"corpus": '/home/somebody/my "poems".txt'})
    return save(tmp_path / "c", make_model_of("gpt"), tokenizer, config, step=3, tokens=960, validation_loss=1.5)


def test_it_tells_data_loss_and_size(card: str) -> None:
    header = card.split("---\n")[1].splitlines()
    assert {"library_name: transformers", "pipeline_tag: text-generation", "license: other"} <= set(header)
    for told in ('my "poems".txt', "1.5000 nats a character", "960 tokens in 3 steps", "minigpt serve --model"):
        assert told in card
    assert "somebody" not in card


def test_its_settings_make_the_run_again(card: str, make_config: Callable[..., TrainConfig]) -> None:
    settings = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
    assert parse_config(settings, "card") == make_config(data={"corpus": 'my "poems".txt'})


def test_its_program_runs(tmp_path: Path, card: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = card.split("```python\n")[1].split("```")[0].replace("PATH/OF/THIS/FOLDER", str(tmp_path / "c"))
    capsys.readouterr()
    exec(program, {})
    assert "he " in capsys.readouterr().out


def test_a_layout_of_our_own_is_not_said_to_load_elsewhere(
    tmp_path: Path,
    make_model_of: Callable[..., AnyModel],
    tokenizer: CharTokenizer,
    make_config: Callable[..., TrainConfig],
) -> None:
    card = save(tmp_path / "c", make_model_of("lstm"), tokenizer, make_config(), step=1)
    assert "library_name: minigpt" in card
    assert "transformers" not in card


def test_a_user_may_edit_it_and_how_others_generate(tmp_path: Path, card: str) -> None:
    (tmp_path / "c" / "README.md").write_text(f"mine\n{card}")
    (tmp_path / "c" / "generation_config.json").write_text("{}")
    load_checkpoint(tmp_path / "c")
    for name in ("README.md", "generation_config.json"):
        (tmp_path / "c" / name).unlink()
    load_checkpoint(tmp_path / "c")
