"""What every test has: models and checkpoints small enough for a test, servers, requests.

No test waits for a time: each waits for what is to happen. All such waits have one bound, `PATIENCE_S` of
tests/fleet/waiting.py, which the environment variable `MINIGPT_TEST_PATIENCE` sets; a test that hangs elsewhere is
ended by pytest's `timeout` in pyproject.toml. tests/README.md tells how the tests are organised.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.checkpoints import save_untrained
from tests.claims import make_request as make_small_request
from tests.fleet.client import frames
from tests.fleet.redis_server import RedisServer, find_programs
from tests.fleet.waiting import PATIENCE_S
from training.model_config import parse_model_config
from training.models.families import AnyModel, make_model
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

# Tests run side by side: threads that spin while they wait starve the others, here and in the processes of a test,
# and what an example takes, to make or to run, says nothing.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("beside_others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside_others")
WITH_FIXTURES = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
"""Of properties whose fixtures no example changes: one will do for all of them."""

SHAPES = {
    "qwen3": {},
    "ngrams": {"ngram_orders": (2, 3), "ngram_rows": 1500},
    "grouped": {"n_head": 4, "n_kv_head": 2, "head_dim": 16},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": True,
    },
}
SLOT_FAMILIES = {
    "rnn": {"family": "recurrent", "cell": "rnn", "n_layer": 2, "n_hidden": 48},
    "lstm": {"family": "recurrent", "cell": "lstm", "n_layer": 2},
    "gru": {"family": "recurrent", "cell": "gru", "n_layer": 2, "n_hidden": 48, "tie_embeddings": False},
    "mlp": {"family": "mlp", "window": 7, "n_layer": 2, "n_hidden": 48},
    "conv": {"family": "conv", "n_layer": 5, "kernel_size": 2, "dilation_cycle": 3, "n_hidden": 48},
}
"""Shapes of the families whose state has a fixed size."""
FAMILIES = {"gpt": {"family": "gpt", "n_layer": 2, "n_head": 2}, **SLOT_FAMILIES}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that runs tests which are coroutines; gateways run in uvloop as well (`in_each_loop`)."""
    return "asyncio"


@pytest.fixture
def beside() -> Iterator[Callable[..., Future]]:
    """A function that makes a call on another thread, and returns what is to come of it."""
    with ThreadPoolExecutor(4) as threads:
        yield threads.submit


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    beside = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
    file = Path(os.environ.get("MINIGPT_TINYSHAKESPEARE", beside))
    if not file.is_file():
        pytest.skip("tinyshakespeare is missing")
    return file


@pytest.fixture
def refused_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run a command line; return the one line on standard error with which it refuses, exit status 2."""

    def run(main: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["minigpt", *arguments])
        monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
        with pytest.raises(SystemExit) as ended:
            main()
        [line] = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture(scope="session")
def tokenizer() -> CharTokenizer:
    return CharTokenizer("abcdefghijklmnopqrstuvwxyz .,\né€")


@pytest.fixture(scope="session")
def make_model_of(tokenizer: CharTokenizer) -> Callable[..., AnyModel]:
    """A tiny model of a family (a name in FAMILIES), in evaluation mode.

    Its every weight is random: initial zeros would hide what a branch does.
    """

    def make(family: str, seed: int = 0, **shape: object) -> AnyModel:
        small = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "n_embd": 32}
        model = make_model(parse_model_config(small | FAMILIES[family] | shape))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
        return model.eval()

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family, for `make_model_of`."""
    return request.param


@pytest.fixture(params=SLOT_FAMILIES)
def slot_family(request: pytest.FixtureRequest) -> str:
    """The name of each family whose state has a fixed size, for `make_model_of`."""
    return request.param


@pytest.fixture(scope="session")
def make_gpt(make_model_of: Callable[..., AnyModel]) -> Callable[..., GPT]:
    """A tiny GPT in evaluation mode whose every weight is random."""
    return functools.partial(make_model_of, "gpt")


@pytest.fixture(params=SHAPES)
def gpt(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    """One model of each family."""
    return make_gpt(**SHAPES[request.param])


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_gpt: Callable[..., GPT], tokenizer: CharTokenizer
) -> Path:
    """A tiny GPT with a long context, as a folder."""
    return save_untrained(tmp_path_factory.mktemp("checkpoints") / "tiny", make_gpt(context_length=2048), tokenizer)


class Server:
    """A `minigpt serve` process on a free port, once it has said where."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None, log.read_text()
        self.client = httpx.Client(base_url=url[0], timeout=PATIENCE_S, trust_env=False)

    def generate(self, **body: object) -> dict:
        return self.client.post("/generate", json=body).raise_for_status().json()

    def stream(self, **body: object) -> Iterator[dict]:
        """Yield the frames of a stream, as they come."""
        with self.client.stream("POST", "/generate", json={**body, "stream": True}) as response:
            yield from frames(response.raise_for_status().iter_lines())

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Server]]:
    """Serve with arguments of one's own."""

    @contextmanager
    def serve(*arguments: str, cwd: Path | None = None) -> Iterator[Server]:
        log = tmp_path_factory.mktemp("serve") / "log"
        command = [sys.executable, "-m", "service", "serve", *arguments, "--port=0"]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=cwd) as process,
        ):
            try:
                server = Server(process, log)
                with server.client:
                    yield server
            finally:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGINT)

    return serve


@pytest.fixture(scope="session")
def server(serving: Callable[..., AbstractContextManager[Server]], checkpoint: Path) -> Iterator[Server]:
    """A server with two workers that every test may use and must leave serving."""
    with serving(f"--model=tiny={checkpoint}", "--workers=2", "--log-format=json", "--log-level=debug") as running:
        yield running


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory):
    """A function that returns a running server of this name; skips where the machine lacks it."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def start(name: str) -> RedisServer:
            program = find_programs().get(name)
            if program is None:
                pytest.skip(f"no {name} server here")
            return running.enter_context(RedisServer(tmp_path_factory.mktemp(name), program=program))

        yield start


@pytest.fixture(scope="session")
def make_request():
    """A function that makes a request; its cost is `num_prompt` + `max_tokens`, other fields as they are named."""
    return make_small_request
