"""`minigpt export` and `minigpt import`, as they are typed."""

from pathlib import Path

import gguf
import pytest
from typer.testing import CliRunner, Result

from tests.training.foreign import save_model
from training.__main__ import app
from training.errors import MinigptError
from training.manifest import read_manifest

TEXT = "the quick brown fox jumps over the lazy dog 1234. " * 40


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def require_refusal(done: Result, *named: str) -> None:
    """`training.command_line` makes one line and exit status 2 of it."""
    assert isinstance(done.exception, MinigptError)
    assert "\n" not in str(done.exception)
    for part in named:
        assert part in str(done.exception)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    save_model(folder, "qwen", [TEXT])
    return folder


def test_import_then_sample_evaluate_and_export(hf: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    done = run("import", "--from", "hf", hf, "--out", ours, "--context", "32")
    assert done.exit_code == 0, done.output
    assert f"minigpt serve --model {ours}" in done.stdout
    assert read_manifest(ours).context_length == 32
    assert run("sample", ours, "the ", "--max-tokens", "5").stdout.startswith("the ")
    (tmp_path / "text.txt").write_text(TEXT)
    evaluated = run("evaluate", ours, "--data", tmp_path / "text.txt")
    assert "bits a byte" in evaluated.stdout, evaluated.exception
    require_refusal(run("evaluate", ours), "--data")
    require_refusal(run("evaluate", ours, "--data", tmp_path / "text.txt", "--window", "999999"), "--window 999999")
    require_refusal(run("import", "--from", "hf", hf, "--out", ours), "there already")
    exported = run("export", ours, "--to", "gguf", "--out", tmp_path / "model.gguf", "--dtype", "f32")
    assert exported.exit_code == 0, exported.output
    assert gguf.GGUFReader(tmp_path / "model.gguf").get_field("qwen3.context_length").contents() == 32


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
def test_export_writes_the_type_that_is_asked_for(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    done = run("export", checkpoint, "--to", "gguf", "--out", tmp_path / "model.gguf", "--dtype", dtype)
    assert done.exit_code == 0, done.output
    types = {tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types == {"f32", dtype}


def test_bad_input_is_refused_and_nothing_written(checkpoint: Path, tmp_path: Path) -> None:
    require_refusal(run("export", "nowhere", "--to", "gguf", "--out", tmp_path / "a"), "nowhere")
    require_refusal(run("export", checkpoint, "--to", "gguf", "--out", tmp_path / "b" / "c"), "cannot write", "--out")
    require_refusal(run("import", "--from", "hf", "nowhere", "--out", tmp_path / "d"), "config.json")
    require_refusal(run("import", "--from", "hf", checkpoint, "--out", tmp_path / "e"), "minigpt serve")
    assert list(tmp_path.iterdir()) == []
