"""A client as one should be: it reads a stream to its end, through whatever breaks, and believes nothing unchecked."""

import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from tests.fleet.waiting import PATIENCE_S

RETRY_S = 0.05
"""Seconds between two attempts of a client that nobody told how long to wait."""
RETRIED = (429, 503)
Body = dict[str, Any]


class Refused(Exception):
    """The server said no, and meant it: a status that no retry mends."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}: {response.text}")
        self.status = response.status_code
        self.code = response.json()["error"]["code"]


@dataclass
class Streamed:
    """What has come of one stream of one choice; a token that comes twice, or not in its place, fails at once."""

    id: str | None = None
    url: str = ""
    """Of the gateway where it was last read."""
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    error: str | None = None
    """Code of the error that ended it."""
    is_whole: bool = False
    """Whether `[DONE]` came."""
    last_event_id: str = ""
    """Of the last frame."""
    num_breaks: int = 0
    """How often its connection broke, or a gateway sent it away, before it was whole."""
    longest_silence_s: float = 0.0
    """Between two frames."""
    _heard_at: float | None = None

    def take(self, event_id: str | None, data: str) -> None:
        """Add an event."""
        if data == "[DONE]":
            self.is_whole = True
            return
        frame = msgspec.json.decode(data)
        if "error" in frame:
            self.error = frame["error"]["code"]
            return
        assert self.finish_reason is None, f"a frame after the end: {data}"
        self._listen()
        self.token_ids += frame["token_ids"]
        self.finish_reason = frame["finish_reason"]
        self.id = self.id or frame["id"]
        place = f"{len(self.token_ids)}{'e' if self.finish_reason else ''}"
        assert event_id == f"{self.id}-{place}", f"frame {event_id} at {place} of the stream {self.id}"
        self.last_event_id = event_id
        self.text += frame["text"]
        self.usage = frame.get("usage")

    def check_whole(self) -> None:
        """Fail unless it has come to its one end, with all of its tokens counted."""
        assert self.is_whole, f"cut after {len(self.token_ids)} tokens"
        assert self.error is None, f"ended by {self.error} after {len(self.token_ids)} tokens"
        assert self.finish_reason is not None
        assert self.usage is not None
        assert self.usage["completion_tokens"] == len(self.token_ids)

    def _listen(self) -> None:
        now = time.monotonic()
        if self._heard_at is not None:
            self.longest_silence_s = max(self.longest_silence_s, now - self._heard_at)
        self._heard_at = now


class Client:
    """Talks to any of several gateways; goes on at the next where one fails.

    Args:
        urls: Of the gateways.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self._http = httpx.Client(timeout=PATIENCE_S, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def generate(self, body: Body, key: str | None = None) -> dict[str, Any]:
        """Return the answer in one piece, from the first gateway; asks again where that is told to help.

        Raises:
            Refused: there is none.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        until = time.monotonic() + PATIENCE_S
        while True:
            response = self._http.post(f"{self.urls[0]}/generate", json=body, headers=headers)
            if response.status_code == 200:
                return msgspec.json.decode(response.content)
            if response.status_code not in RETRIED or time.monotonic() > until:
                raise Refused(response)
            time.sleep(RETRY_S)

    def stream(
        self,
        body: Body,
        *,
        got: Streamed | None = None,
        on_frame: Callable[[Streamed], object] = lambda _: None,
        outlives_client: bool = True,
    ) -> Streamed:
        """Read an answer to its end, however often that takes another connection or another gateway.

        Args:
            body: What is asked for.
            got: Where to put what comes; whoever has it sees the stream grow.
            on_frame: Called after each frame; what it raises ends the reading.
            outlives_client: Whether it goes on when its connection breaks: then it has an idempotency key.

        Raises:
            Refused: the server does not want it.
            AssertionError: it did not come to an end.
        """
        got = Streamed() if got is None else got
        headers = {"Idempotency-Key": uuid.uuid4().hex} if outlives_client else {}
        until = time.monotonic() + PATIENCE_S
        lacking: set[str] = set()
        for url in itertools.cycle(self.urls):
            try:
                if self._read(url, body, headers, got, on_frame):
                    return got
            except httpx.TransportError:
                pass
            except Refused as refusal:
                lacking.add(url)
                if refusal.status != 404 or lacking >= set(self.urls):  # else another may have its revision
                    raise
            got.num_breaks += 1
            assert time.monotonic() < until, f"{got.id}: no end after {len(got.token_ids)} tokens ({got.error})"
            time.sleep(RETRY_S)
        raise AssertionError("no gateway to ask")

    def stored(self, answer_id: str) -> Streamed:
        """Return a stream as the queue has it, from its first token to its end, from the last gateway."""
        got = Streamed()
        with self._http.stream("GET", f"{self.urls[-1]}/streams/{answer_id}") as response:
            _read_events(response, got, lambda _: None)
        return got

    def _read(
        self, url: str, body: Body, headers: dict[str, str], got: Streamed, on_frame: Callable[[Streamed], object]
    ) -> bool:
        """Read on over one connection; return whether the stream is over."""
        got.url, got.error, got.is_whole = url, None, False
        if got.id is None:
            opened = self._http.stream("POST", f"{url}/generate", json={**body, "stream": True}, headers=headers)
        else:
            resume = {"Last-Event-ID": got.last_event_id}
            opened = self._http.stream("GET", f"{url}/streams/{got.id}", headers=resume)
        with opened as response:
            if response.status_code in RETRIED:
                return False
            _read_events(response, got, on_frame)
        return got.is_whole and got.error != "unavailable"


def _read_events(response: httpx.Response, got: Streamed, on_frame: Callable[[Streamed], object]) -> None:
    if response.status_code != 200:
        response.read()
        raise Refused(response)
    for event_id, data in events(response.iter_lines()):
        got.take(event_id, data)
        on_frame(got)


def events(lines: Iterable[str]) -> Iterator[tuple[str | None, str]]:
    """Yield the id and the data of each event of a stream."""
    event_id = None
    for line in lines:
        kind, _, value = line.partition(": ")
        if kind == "id":
            event_id = value
        elif kind == "data":
            yield event_id, value
            event_id = None


def frames(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the frames of a stream; what follows `[DONE]` is not read."""
    for _, data in events(lines):
        if data == "[DONE]":
            return
        yield msgspec.json.decode(data)


class Oracle:
    """What a body is answered when nothing goes wrong: asked once of a server that nobody disturbs.

    Args:
        url: Of that server.
    """

    def __init__(self, url: str) -> None:
        self._client = Client([url])
        self._known: dict[bytes, dict[str, Any]] = {}

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()

    def choice(self, body: Body) -> dict[str, Any]:
        """Return the undisturbed choice: its `token_ids`, `text` and `finish_reason`."""
        key = msgspec.json.encode(body, order="deterministic")
        if key not in self._known:
            [self._known[key]] = self._client.generate(body)["choices"]
        return self._known[key]

    def check(self, body: Body, got: Streamed) -> None:
        """Fail unless `got` is, whole and token for token, the undisturbed answer."""
        got.check_whole()
        self.check_beginning(body, got)
        wanted = self.choice(body)
        assert (len(got.token_ids), got.finish_reason) == (len(wanted["token_ids"]), wanted["finish_reason"])
        assert got.text == wanted["text"]

    def check_beginning(self, body: Body, got: Streamed) -> None:
        """Fail where `got` has another token than the undisturbed answer."""
        pairs = zip(got.token_ids, self.choice(body)["token_ids"], strict=False)
        wrong = next((at for at, (token_id, wanted) in enumerate(pairs) if token_id != wanted), None)
        assert wrong is None, f"{got.id}: token {wrong} is another than in an undisturbed run"
