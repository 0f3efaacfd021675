"""`minigpt bench` as a user runs it, on shapes that take no time. No figure is judged; tokens are counted."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from service.__main__ import main
from training.manifest import read_manifest


def table_rows(output: str) -> dict[str, list[str]]:
    """First cell of each row of the printed table → the other cells."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]
    return {first: rest for first, *rest in rows}


def require_head(output: str, raw: dict, mode: str) -> None:
    """The command, to be pasted again, and the machine: printed, and in the JSON."""
    assert raw["command"].startswith(f"minigpt bench {mode} --")
    assert raw["machine"].keys() == {"cpu", "cores", "load", "python", "torch", "date"}
    command, machine = islice(output.splitlines(), 2)
    assert command == f"$ {raw['command']}"
    for fact in ("cpu", "torch", "date"):
        assert raw["machine"][fact] in machine


def test_engine_beside_transformers_and_the_machine(run_bench, tiny):
    output, raw = run_bench("engine", *tiny, "--batch=1,3", "--dtype=fp32", "--against=transformers", "--cpus=0")
    require_head(output, raw, "engine")
    assert raw["machine"]["cores"] == 1
    settings = {"model": "2x32", "dtype": "fp32", "threads": 1, "prompt_tokens": 5, "max_tokens": 4, "rounds": 2}
    assert raw["settings"].items() >= settings.items()
    assert raw["settings"]["peers"].keys() == {"transformers:fp32"}
    assert raw["settings"]["limits"].keys() == {"dtype", "flops", "read_bytes"}
    assert [result["batch"] for result in raw["results"]] == [1, 3]
    for result in raw["results"]:
        for runs in (result["minigpt"], result["peers"]["transformers:fp32"]):
            assert [run["tokens"] for run in runs] == [4 * result["batch"]] * 2
            assert all(run["seconds"] > 0 and len(run["step_s"]) == 3 for run in runs)
        assert all(0 < run["kv_cache_peak_bytes"] <= raw["settings"]["kv_cache_bytes"] for run in result["minigpt"])
    assert table_rows(output).keys() == {"1", "3", ""}


def test_engine_alone(run_bench, tiny):
    output, raw = run_bench("engine", *tiny, "--batch=2", "--against=none", "--kv-cache-mb=1")
    assert raw["results"][0]["peers"] == {}
    assert raw["settings"]["kv_cache_bytes"] <= 2**20
    assert table_rows(output).keys() == {"2"}


def test_an_lstm_beside_a_gpt_of_as_many_parameters(run_bench, tiny):
    output, raw = run_bench("engine", *tiny, "--shape=lstm:2x32", "--batch=1,3")
    assert raw["settings"]["model"] == "lstm-2x32"
    for result in raw["results"]:
        [(name, beside)] = result["peers"].items()
        assert name.startswith("GPT 6x")
        assert [run["tokens"] for run in result["minigpt"]] == [run["tokens"] for run in beside]
    assert table_rows(output).keys() == {"1", "3", ""}


def test_http_beside_the_engine_and_another_server(run_bench, server, checkpoint):
    same = f"--against=same={str(server.client.base_url).rstrip('/')}"
    load = ("--prompt-tokens=5", "--max-tokens=4", "--rounds=2", "--threads=1", "--streams=1,2", "--requests=4")
    output, raw = run_bench("http", f"--checkpoint={checkpoint}", *load, same)
    require_head(output, raw, "http")
    assert [(result["streams"], result["requests"]) for result in raw["results"]] == [(1, 4), (2, 4)]
    for result, tokens in zip(raw["results"], (16, 12), strict=True):
        streams = result["streams"]
        for runs in (result["minigpt"], result["engine"], result["peers"]["same"]):
            assert [run["tokens"] for run in runs] == [tokens, tokens]
        for run in result["minigpt"]:
            assert (len(run["burst_first_token_s"]), len(run["first_token_s"])) == (streams, 4 - streams)
            assert all(seconds > 0 for seconds in run["first_token_s"])
    assert table_rows(output).keys() == {"1", "2", ""}


def test_weights_are_written_for_other_servers(call_bench, tmp_path, checkpoint):
    done = call_bench("weights", "--shape=2x32", "--vocab=64", f"--out={tmp_path / 'out'}", "--gguf=bf16,q8_0")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths == [tmp_path / "out" / name for name in ("2x32", "2x32-bf16.gguf", "2x32-q8_0.gguf")]
    assert read_manifest(paths[0]).vocab_size == 64
    assert all(path.read_bytes()[:4] == b"GGUF" for path in paths[1:])
    done = call_bench("weights", f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}", "--gguf=f32")
    assert done.stdout.split() == [str(tmp_path / "out" / "tiny-f32.gguf")]


def test_train_beside_nanogpts_recipe(run_bench, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 60)
    output, raw = run_bench("train", f"--data={text}", "--steps=2", "--rounds=2", "--threads=1")
    require_head(output, raw, "train")
    [result] = raw["results"]
    for side in ("minigpt", "nanogpt"):
        assert [(run["steps"], run["tokens"]) for run in result[side]] == [(2, 2 * 12 * 64)] * 2
    assert result["minigpt_loss"] is result["nanogpt_loss"] is None
    assert table_rows(output).keys() == {"minigpt", "nanoGPT's recipe"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("engine", "--batch=1,x"), "--batch 1,x"),
        (("engine", "--batch=0"), "--batch 0"),
        (("engine", "--shape=big"), "6x384"),
        (("engine", "--shape=2x33"), "head_dim"),
        (("engine", "--shape=2x32", "--vocab=2"), "--vocab 2"),
        (("engine", "--shape=2x32", "--checkpoint=somewhere"), "--checkpoint"),
        (("engine", "--checkpoint=nowhere"), "nowhere"),
        (("http", "--shape=2x32", "--url=http://127.0.0.1:1", "--streams=1"), "127.0.0.1:1"),
        (("http", "--shape=2x32", "--device=abacus"), "abacus"),
        (("http", "--against=nowhere"), "--against nowhere"),
        (("http", "--shape=2x32", "--against=http://127.0.0.1:1"), "127.0.0.1:1"),
        (("engine", "--against=abacus"), "abacus"),
        (("engine", "--cpus=999"), "--cpus 999"),
        (("engine", "--cpus=x"), "--cpus x"),
        (("weights", "--out=somewhere", "--gguf=q1"), "--gguf q1"),
        (("train", "--to-the-end", "--steps=300"), "--steps 300"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(refused_line, options, word):
    assert word in refused_line(main, "bench", *options)


def test_the_command_line_alone_does_not_load_torch():
    probe = "import sys, service.bench.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
