"""Users of a fleet as they are: short and long prompts, streams and whole answers, some who leave, some who are wrong.

Every answer is checked to its last token; any failure makes locust's exit status 1. The gateways are those of
MINIGPT_URLS, comma between them. Besides its own figures locust shows, of streams, `time to first token` (ms) and
`tokens/s` (in the columns of milliseconds; their lengths are tokens).
"""

import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from locust import FastHttpUser, between, events, task
from locust.clients import ResponseContextManager
from locust.env import Environment

from tests.fleet.client import Body, Streamed
from tests.fleet.client import events as read_events

SHORT = ("ROMEO:\n", "To be, or not", "Once upon a midnight", "O gentle", "What news on the Rialto?", "KING:\nI")
WORDS = ("now is the winter of our discontent", "made glorious summer", "by this sun of York", "and all the clouds")
WRONG: tuple[tuple[str | dict[str, Any], int], ...] = (
    ("{", 400),
    ({}, 400),
    ({"prompt": 1}, 400),
    ({"prompt": "x", "temperature": -1}, 400),
    ({"prompt": "x", "no_such_field": 1}, 400),
    ({"prompt": "x", "model": "no such model"}, 404),
    ({"prompt": "x", "max_tokens": 10**6}, 422),
    ("x" * 300_000, 413),
)
"""Bodies that must be refused, and how."""


@events.quitting.add_listener
def tell_failures(environment: Environment, **_: object) -> None:
    """Say what failed, and how often."""
    for error in environment.stats.errors.values():
        sys.stderr.write(f"{error.occurrences} × {error.name}: {error.error}\n")


class Reader(FastHttpUser):
    """Asks one gateway, again and again, with little time between."""

    wait_time = between(0, 0.1)

    def __init__(self, environment: Environment) -> None:
        self.rng = random.Random()
        self.host = self.rng.choice(os.environ["MINIGPT_URLS"].split(","))
        super().__init__(environment)

    @task(10)
    def read_stream(self) -> None:
        """A short question, its answer read as it comes."""
        self._stream("short stream", self._ask(self.rng.choice(SHORT)))

    @task(3)
    def read_long_stream(self) -> None:
        """A prompt that fills half of the context; none is like another."""
        prompt = " ".join(self.rng.choices(WORDS, k=4))
        self._stream("long stream", self._ask(prompt, 64))

    @task(4)
    def wait_for_answer(self) -> None:
        """An answer in one piece."""
        body = self._ask(self.rng.choice(SHORT))
        with self.client.post("/generate", name="whole answer", json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {response.text}")
                return
            answer = response.json()
            [choice] = answer["choices"]
            if choice["finish_reason"] not in ("stop", "length"):
                response.failure(f"finish reason {choice['finish_reason']}")
            elif answer["usage"]["completion_tokens"] != len(choice["token_ids"]):
                response.failure(f"usage counts {answer['usage']}, there are {len(choice['token_ids'])} tokens")

    @task(2)
    def leave(self) -> None:
        """Has read enough after a few frames, and goes."""
        body = self._ask(self.rng.choice(SHORT)) | {"max_tokens": 128}
        with self._open("left stream", body) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            for _ in zip(range(self.rng.randint(1, 5)), self._frames(response, Streamed()), strict=False):
                pass
            if response._response._sock is not None:  # else the answer came to its end meanwhile
                response._response._sock.close()

    @task(1)
    def be_wrong(self) -> None:
        """Sends what must be refused."""
        body, status = self.rng.choice(WRONG)
        data = body if isinstance(body, str) else msgspec.json.encode(body)
        with self.client.post("/generate", name="bad request", data=data, catch_response=True) as response:
            if response.status_code == status:
                response.success()
            else:
                response.failure(f"status {response.status_code} instead of {status}")

    def _ask(self, prompt: str, most: int = 128) -> Body:
        return {"prompt": prompt, "max_tokens": self.rng.randint(8, most), "seed": self.rng.getrandbits(63)}

    def _open(self, name: str, body: Body) -> ResponseContextManager:
        body = {**body, "stream": True}
        return self.client.post("/generate", name=name, json=body, stream=True, catch_response=True)

    def _stream(self, name: str, body: Body) -> None:
        began = time.perf_counter()
        first = 0.0
        got = Streamed()
        with self._open(name, body) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            try:
                for _ in self._frames(response, got):
                    first = first or time.perf_counter()
                got.check_whole()
            except AssertionError as error:
                response.failure(str(error))
                return
            self._tell("time to first token", (first - began) * 1000, 0)
            self._tell("tokens/s", len(got.token_ids) / (time.perf_counter() - began), len(got.token_ids))

    def _frames(self, response: ResponseContextManager, got: Streamed) -> Iterator[None]:
        lines = iter(lambda: response._response.readline(b"\n"), b"")
        for event_id, data in read_events(line.decode().rstrip() for line in lines):
            got.take(event_id, data)
            yield

    def _tell(self, name: str, value: float, num_tokens: int) -> None:
        self.environment.events.request.fire(
            request_type="SSE", name=name, response_time=value, response_length=num_tokens, exception=None, context={}
        )
