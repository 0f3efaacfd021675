"""What the README shows is run: its commands with real processes, its tree and its targets looked up."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service.__main__ import app
from training.data.corpus import load_corpus

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MINIGPT = [sys.executable, "-m", "service"]
ENVIRONMENT = {**os.environ, "no_proxy": "*"}
SMALL = [
    *("model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.context_length=32"),
    *("run.compile=false", "run.sample_tokens=1"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str, block: str | None = None) -> list[list[str]]:
    """The arguments of each line that starts with `program`."""
    lines = "\n".join(blocks("sh") if block is None else [block]).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [arguments for first, *arguments in filter(None, words) if first == program]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_quickstarts_curl_streams_text(server):
    [arguments] = commands("curl")
    aimed = [argument.replace("localhost:8000", server.client.base_url.netloc.decode()) for argument in arguments]
    assert aimed != arguments
    done = subprocess.run(["curl", *aimed], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    *frames, last = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert last == "[DONE]"
    assert any(json.loads(frame)["token_ids"] for frame in frames)
    assert json.loads(frames[-1])["finish_reason"] in {"length", "stop"}


def test_own_text_is_trained_on_sampled_and_served(serving, tmp_path):
    text = "\n".join(load_corpus("pydoc-topics").documents)[:6000]
    (tmp_path / "my.txt").write_text(text, "utf-8")
    [block] = [block for block in blocks("sh") if "--data my.txt" in block and "serve" in block]
    train, sample, serve = commands("minigpt", block)
    train[train.index("--minutes") + 1] = "0.02"
    environment = {**ENVIRONMENT, "MINIGPT_CACHE": str(tmp_path / "cache")}
    for arguments in ([*train, *(f"--set={setting}" for setting in SMALL)], [*sample, "--max-tokens=5"]):
        subprocess.run([*MINIGPT, *arguments], cwd=tmp_path, env=environment, check=True)
    assert serve.pop(0) == "serve"
    with serving(*serve, cwd=tmp_path) as server:
        models = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["mine"]


@pytest.mark.parametrize("arguments", commands("minigpt"), ids=" ".join)
def test_every_command_is_understood(arguments):
    name, *options = arguments
    typer.main.get_command(app).commands[name].make_context(name, options)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("arguments", [*commands("make"), ["bench"], ["clean"], ["check"]], ids=" ".join)
def test_every_target_exists(arguments):
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_path_of_the_tree_exists():
    [tree] = blocks("text")
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        path = ROOT.joinpath(*folders)
        assert path.is_dir() if name.endswith("/") else path.is_file(), path
