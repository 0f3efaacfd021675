import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from training.checkpoint import save_checkpoint
from training.config import BudgetConfig, TrainConfig

CONTEXT_LENGTH = 2048


class Server:
    """A `minigpt serve` process on a free port."""

    def __init__(self, checkpoint: Path, log: Path, *options: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "service", "serve", f"--model=tiny={checkpoint}", "--port=0", *options]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.greeting = self.process.stdout.readline()
        url = re.search(r"http://\S+", self.greeting)
        assert url is not None, log.read_text()
        self.client = httpx.Client(base_url=url[0], timeout=60, trust_env=False)

    def generate(self, **body: object) -> dict:
        return self.client.post("/generate", json=body).raise_for_status().json()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_gpt, tokenizer) -> Path:
    model = make_gpt(context_length=CONTEXT_LENGTH)
    config = TrainConfig(budget=BudgetConfig(steps=1), model=model.config)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, model, tokenizer, config)
    return folder


@pytest.fixture
def start_server(checkpoint, tmp_path) -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*options: str) -> Server:
        servers.append(Server(checkpoint, tmp_path / f"serve-{len(servers)}.log", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
