"""`minigpt serve` as a user runs it: real processes, a real (tiny) model, real connections."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from service.engine.kernels.library import best_level
from tests.fleet.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def body(tokenizer) -> dict:
    """A request that takes long: its text cannot end early."""
    never = {str(tokenizer.end_of_text_id): -100}
    return {"prompt": "once upon", "max_tokens": 600, "seed": 11, "temperature": 1.0, "logit_bias": never}


def run_serve(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "service", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def require_refusal(done: subprocess.CompletedProcess, *words: str) -> None:
    """One line that says `error:`, exit status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def counter(server, name: str) -> float:
    """Sum of the counter `name` over its labels."""
    lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, lines))


def test_workers_killed_in_mid_stream_change_no_token(server, body):
    undisturbed = server.generate(**body)["choices"][0]
    assert len(undisturbed["token_ids"]) == 600
    reading = server.stream(**body)
    seen = [next(reading)]
    for worker in server.workers():
        worker.kill()
    seen += reading
    token_ids = [token_id for frame in seen for token_id in frame["token_ids"]]
    assert "ended by signal 9" in server.log.read_text()
    assert token_ids == undisturbed["token_ids"]
    assert "".join(frame["text"] for frame in seen) == undisturbed["text"]
    assert seen[-1]["finish_reason"] == undisturbed["finish_reason"]
    assert counter(server, "minigpt_requests_resumed_total") >= 1


def test_sigterm_finishes_what_runs_and_leaves_nothing_behind(serving, checkpoint, body):
    with serving(f"--model={checkpoint}", f"--drain-s={PATIENCE_S}") as server:
        workers = server.workers()
        reading = server.stream(**body)
        seen = [next(reading)]
        server.process.send_signal(signal.SIGTERM)
        seen += reading
        assert sum(len(frame["token_ids"]) for frame in seen) == 600
        assert server.process.wait(PATIENCE_S) == 0
        assert not any(worker.is_running() for worker in workers)
        with pytest.raises(httpx.ConnectError):
            server.client.get("/readyz")


def test_a_second_signal_cuts_what_runs_and_leaves_nothing_behind(serving, checkpoint, body):
    with serving(f"--model={checkpoint}", "--drain-s=1000") as server:
        workers = server.workers()
        # More than fits into any buffer: before it is read it cannot end.
        reading = server.stream(**{**body, "max_tokens": 2000, "n": 16, "logprobs": 20})
        next(reading)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            list(reading)
        assert server.process.wait(PATIENCE_S) == 1
        assert not any(worker.is_running() for worker in workers)
        assert "Traceback" not in server.log.read_text()


def test_a_killed_server_leaves_no_worker(serving, checkpoint):
    with serving(f"--model={checkpoint}") as server:
        workers = server.workers()
        server.process.kill()
        assert psutil.wait_procs(workers, timeout=PATIENCE_S)[1] == []


def test_requests_at_once_answer_as_if_alone_and_are_all_counted(server, body):
    before = counter(server, "minigpt_generated_tokens_total")
    bodies = [{**body, "max_tokens": 40, "seed": seed} for seed in range(6)]

    def tokens_of(body: dict) -> list[int]:
        return server.generate(**body)["choices"][0]["token_ids"]

    alone = [tokens_of(body) for body in bodies]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(tokens_of, bodies))
    assert together == alone
    assert counter(server, "minigpt_generated_tokens_total") == before + 480
    assert counter(server, "minigpt_step_seconds_count") > 0
    assert "once upon" not in server.log.read_text()


def test_a_missing_checkpoint_is_refused(tmp_path):
    require_refusal(run_serve(f"--model={tmp_path / 'nothing'}"), "nothing", "minigpt train")


def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    require_refusal(run_serve(f"--model={folder}"), "model.safetensors")


def test_a_port_in_use_is_refused(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        require_refusal(run_serve(f"--model={checkpoint}", f"--port={port}"), f"127.0.0.1:{port}", "--port")


def test_a_host_that_is_none_is_refused(checkpoint):
    require_refusal(run_serve(f"--model={checkpoint}", "--host=no.such.host.invalid"), "no.such.host.invalid")


def test_two_models_of_one_name_are_refused(checkpoint):
    require_refusal(run_serve(f"--model={checkpoint}", f"--model={checkpoint}"), "NAME=FOLDER")


@pytest.mark.parametrize(
    ("option", "field"),
    [("--port=70000", "port"), ("--max-num-seqs=0", "max_num_seqs"), ("--lease-s=0", "lease_s")],
)
def test_a_setting_out_of_range_is_refused(checkpoint, option, field):
    require_refusal(run_serve(f"--model={checkpoint}", option), field)


def test_what_only_a_worker_can_refuse_ends_the_server_too(checkpoint):
    require_refusal(run_serve(f"--model={checkpoint}", "--port=0", "--device=abacus"), "abacus")


def test_what_computes_is_told(server):
    [line] = {
        line for line in server.client.get("/metrics").text.splitlines() if line.startswith("minigpt_engine_info{")
    }
    kernels = best_level() or "torch"
    assert line.endswith(" 1.0")
    assert f'kernels="{kernels}"' in line
    assert f'dtype="{"fp32" if kernels == "torch" else "int8"}"' in line
    assert f'batch_invariant="{str(kernels != "torch").lower()}"' in line
    assert f"{kernels} kernels in " in server.log.read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert kernels in shown.stdout
