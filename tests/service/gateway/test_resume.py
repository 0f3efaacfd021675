"""Streams over HTTP: read along, cut, resumed, cancelled; and what is computed once however often it is asked for."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.config import QueueSettings
from service.errors import Diverged, Unavailable
from service.gateway.key_ring import KeyRing
from service.keys import FileKeys, create_key
from tests.fleet.client import events
from tests.fleet.waiting import PATIENCE_S, wait_until

REPLY = "né 🦜 and on it goes.\nAct II, in which nothing happens at all. "


def read_events(lines, count: int | None = None) -> list[tuple[str | None, dict]]:
    """Read `count` events, or all up to [DONE]: their ids and frames."""
    read = []
    for event_id, data in events(lines):
        if data == "[DONE]":
            return read
        read.append((event_id, json.loads(data)))
        if len(read) == count:
            return read
    raise AssertionError(f"the stream was cut after {read}")


@contextlib.contextmanager
def read_along(gateway, answer_id: str, **headers: str):
    address = f"http://127.0.0.1:{gateway.port}/streams/{answer_id}"
    with httpx.stream("GET", address, headers=headers, timeout=PATIENCE_S, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


def send_off(gateway, **body: object) -> str:
    """Have an answer made in the background; return its id."""
    answer = gateway.generate(**body, background=True)
    assert answer.status_code == 202
    told = answer.json()
    assert told == {"id": answer.headers["x-request-id"], "status": "queued", "stream": f"/streams/{told['id']}"}
    return told["id"]


def test_a_stream_that_was_cut_goes_on_after_the_last_event(gateway):
    body = {"prompt": "Once", "n": 2, "max_tokens": 40, "stop": "Act", "seed": 1, "echo": True}
    whole = gateway.generate(**body).json()["choices"]
    with gateway.client.stream(
        "POST", "/generate", json={**body, "stream": True}, headers={"idempotency-key": "cut"}
    ) as answer:
        read = read_events(answer.iter_lines(), 7)
    last_id, frame = read[-1]
    with read_along(gateway, frame["id"], **{"last-event-id": last_id}) as lines:
        read += read_events(lines)
    for choice in whole:
        own = [frame for _, frame in read if frame["index"] == choice["index"]]
        assert "".join(frame["text"] for frame in own) == choice["text"]
        assert [id_ for frame in own for id_ in frame["token_ids"]] == choice["token_ids"]
    assert read[-1][1]["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in whole)


def test_starting_after_is_the_end_of_an_event_id(gateway):
    answer_id = send_off(gateway, prompt="Once", max_tokens=30)
    answer = gateway.client.get(f"/streams/{answer_id}", params={"starting_after": "10"})
    assert answer.headers["content-type"] == "text/event-stream"
    frames = [frame for _, frame in read_events(answer.iter_lines())]
    assert "".join(frame["text"] for frame in frames) == REPLY.encode()[10:30].decode()
    late = gateway.client.get(f"/streams/{answer_id}?starting_after=30e")
    assert [frame["text"] for _, frame in read_events(late.iter_lines())] == [""]


def test_several_read_the_same_and_one_that_leaves_ends_nothing(gateway):
    answer_id = send_off(gateway, prompt="endless for many")
    before = len(gateway.server.server_state.connections)
    with read_along(gateway, answer_id) as first:
        with read_along(gateway, answer_id) as second:
            (_, early), (_, late) = read_events(first, 1)[0], read_events(second, 1)[0]
            assert early["token_ids"] == late["token_ids"][: len(early["token_ids"])]
        wait_until(lambda: len(gateway.server.server_state.connections) == before + 1, "the second has left")
        read_events(first, 30)
        assert gateway.client.delete(f"/streams/{answer_id}").status_code == 204
        assert read_events(first)[-1][1]["finish_reason"] == "abort"
    gateway.engine.wait_for_cancels([f"{answer_id}-0"])
    assert gateway.client.delete(f"/streams/{answer_id}").status_code == 204


def test_the_client_that_asked_ends_it_for_all_when_it_leaves(gateway):
    with contextlib.ExitStack() as stack:
        body = {"prompt": "endless mine", "stream": True}
        answer = stack.enter_context(gateway.client.stream("POST", "/generate", json=body))
        lines = stack.enter_context(read_along(gateway, answer.headers["x-request-id"]))
        read_events(lines, 2)
        answer.close()
        assert read_events(lines)[-1][1]["finish_reason"] == "abort"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("answer_id", ["f" * 32, "x", "%00", "a" * 5000])
def test_what_was_never_asked_for_is_a_404(gateway, method, answer_id):
    answer = gateway.client.request(method, f"/streams/{answer_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "headers", "words"),
    [
        ("?starting_after=", {}, "starting_after: "),
        ("?starting_after=1.2", {}, "has 1 choice"),
        ("?starting_after=9", {}, "at most 8 tokens"),
        ("?starting_after=1", {"last-event-id": "5"}, "Last-Event-ID: "),
        ("", {"last-event-id": "é".encode("latin-1")}, "Last-Event-ID: "),
    ],
)
def test_a_wrong_place_is_a_400(gateway, query, headers, words):
    answer_id = send_off(gateway, prompt="Once", max_tokens=8)
    answer = gateway.client.get(f"/streams/{answer_id}{query}", headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_streams_count_under_the_name_of_their_route(gateway):
    gateway.client.get(f"/streams/{'f' * 32}")
    lines = gateway.client.get("/metrics").text
    assert 'minigpt_requests_received_total{method="GET",route="/streams/{answer_id}"}' in lines
    assert "fff" not in lines


def test_an_answer_of_very_many_choices_has_no_event_ids(gateway):
    answer = gateway.generate(prompts=["a"] * 33, n=2, max_tokens=2, stream=True)
    assert {event_id for event_id, _ in read_events(answer.iter_lines())} == {None}


# Idempotency keys


def test_the_same_key_is_computed_once_as_json_or_as_a_stream(gateway):
    body = {"prompt": "only once", "max_tokens": 20, "n": 2}
    headers = {"idempotency-key": "key 1!"}

    def ask(stream: bool) -> tuple[str, str]:
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=PATIENCE_S, trust_env=False) as client:
            answer = client.post("/generate", json={**body, "stream": stream}, headers=headers)
        assert answer.status_code == 200, answer.text
        if not stream:
            return answer.json()["id"], answer.json()["choices"][0]["text"]
        frames = [frame for _, frame in read_events(answer.text.split("\n"))]
        return frames[0]["id"], "".join(frame["text"] for frame in frames if frame["index"] == 0)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, [False, True] * 15))) == 1
    gateway.engine.wait_for_claims("only once", 2)
    assert gateway.engine.claimed.empty()


def test_a_key_is_for_one_body_however_it_is_written(gateway):
    def ask(content: str) -> httpx.Response:
        return gateway.client.post("/generate", content=content, headers={"idempotency-key": "written"})

    first = ask('{"prompt": "Once", "max_tokens": 3, "temperature": 1}').json()
    assert ask('{"temperature": 1.0, "max_tokens": 3, "stop": null, "prompt": "\\u004fnce"}').json() == first
    assert ask('{"prompt": "Once", "max_tokens": 3, "temperature": 1, "background": true}').json()["id"] == first["id"]
    other = ask('{"prompt": "Twice", "max_tokens": 3, "temperature": 1}')
    assert (other.status_code, other.json()["error"]["param"]) == (400, "idempotency_key")


@pytest.mark.parametrize("key", ["", "x" * 129, "é".encode("latin-1"), "a\tb"])
def test_a_key_is_printable_and_short(gateway, key):
    answer = gateway.client.post("/generate", json={"prompt": "a"}, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency_key")


def test_a_client_with_a_key_that_leaves_ends_nothing(gateway):
    body = {"prompt": "endless with a key", "stream": True}
    with gateway.client.stream("POST", "/generate", json=body, headers={"idempotency-key": "stays"}) as answer:
        read_events(answer.iter_lines(), 1)
        before = len(gateway.server.server_state.connections)
    wait_until(lambda: len(gateway.server.server_state.connections) < before, "the client has left")
    with read_along(gateway, answer.headers["x-request-id"]) as lines:
        read_events(lines, 30)
        gateway.client.delete(f"/streams/{answer.headers['x-request-id']}")
        assert read_events(lines)[-1][1]["finish_reason"] == "abort"


# Tenants and priorities


@pytest.fixture
def keyed(start_gateway, tmp_path):
    """A gateway, and the headers of two tenants."""
    store, headers = FileKeys(tmp_path / "keys.json"), []
    for tenant in ("alpha", "beta"):
        secret, key = create_key(tenant)
        store.add(key)
        headers.append({"authorization": f"Bearer {secret}"})
    ring = KeyRing(store)
    ring.read()
    with start_gateway(keys=ring) as gateway:
        yield gateway, *headers


def test_a_stream_belongs_to_its_tenant_and_so_does_a_key(keyed):
    gateway, alpha, beta = keyed
    body = {"prompt": "whose", "max_tokens": 3}
    first, same, other = (
        gateway.client.post("/generate", json=body, headers={**who, "idempotency-key": "k"}).json()["id"]
        for who in (alpha, alpha, beta)
    )
    assert first == same != other
    assert {request.tenant for request in gateway.engine.wait_for_claims("whose", 2).values()} == {"alpha", "beta"}
    for method in ("GET", "DELETE"):
        unknown, others, mine = (
            gateway.client.request(method, f"/streams/{id_}", headers=alpha) for id_ in ("f" * 32, other, first)
        )
        assert (unknown.status_code, unknown.json()) == (others.status_code, others.json())
        assert (unknown.status_code, mine.is_success) == (404, True)


def test_a_priority_goes_with_the_request(gateway):
    assert gateway.generate(prompt="no hurry", max_tokens=1, priority="bulk").is_success
    (request,) = gateway.engine.wait_for_claims("no hurry").values()
    assert request.priority == "bulk"


# When the queue gives up, goes away, or comes back another


def test_a_request_that_killed_its_workers_is_a_500_of_its_own(start_gateway):
    with start_gateway(queue_settings=QueueSettings(max_attempts=1)) as gateway, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.generate, prompt="mute poison", echo=True, logprobs=0)
        (request_id,) = gateway.engine.wait_for_claims("mute poison")
        gateway.call(lambda: gateway.queue.lose("w"))
        error = answer.result().json()["error"]
        assert (answer.result().status_code, error["code"]) == (500, "quarantined")
        assert answer.result().headers["x-should-retry"] == "false"
        with read_along(gateway, request_id.removesuffix("-0")) as lines:  # its prompt is gone
            assert read_events(lines)[-1][1]["error"]["code"] == "quarantined"


def break_watch(gateway, error: Exception, after: int):
    """Let every watch of the queue fail once it has yielded so often; return what mends it."""
    whole = gateway.queue.watch

    async def watch(request_ids):
        count = 0
        async for updates in whole(request_ids):
            yield updates
            count += 1
            if count == after:
                raise error

    gateway.queue.watch = watch
    return lambda: setattr(gateway.queue, "watch", whole)


def test_a_stream_whose_queue_is_out_of_reach_ends_and_can_be_resumed(start_gateway):
    with start_gateway() as gateway:
        mend = break_watch(gateway, Unavailable("the queue cannot be reached", retry_after_s=1.0), after=5)
        answer = gateway.generate(prompt="Once", max_tokens=60, stream=True)
        *read, (error_id, error) = read_events(answer.iter_lines())
        answer_id = answer.headers["x-request-id"]
        assert (error_id, error["error"]["code"]) == (None, "unavailable")
        assert f"GET /streams/{answer_id}" in error["error"]["message"]
        mend()
        with read_along(gateway, answer_id, **{"last-event-id": read[-1][0]}) as lines:
            read += read_events(lines)
        assert "".join(frame["text"] for _, frame in read) == REPLY.encode()[:60].decode()
        assert gateway.engine.cancelled.empty()


def test_a_stream_whose_tokens_came_again_otherwise_says_so_and_ends(start_gateway):
    with start_gateway() as gateway:
        break_watch(gateway, Diverged("tokens were lost"), after=2)
        answer = gateway.generate(prompt="endless", stream=True)
        assert read_events(answer.iter_lines())[-1][1]["error"]["code"] == "stream_diverged"
        gateway.engine.wait_for_cancels([f"{answer.headers['x-request-id']}-0"])
        assert gateway.generate(prompt="endless").status_code == 500


@pytest.mark.parametrize(("verb", "ask"), [("stats", ("GET", "/readyz")), ("submit", ("POST", "/generate"))])
def test_without_the_queue_it_is_a_503_that_says_when_to_come_back(start_gateway, verb, ask):
    async def fail(*_: object) -> None:
        raise Unavailable("the queue cannot be reached")

    with start_gateway() as gateway:
        setattr(gateway.queue, verb, fail)
        answer = gateway.client.request(*ask, json={"prompt": "a"} if ask[0] == "POST" else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert gateway.client.get("/metrics").status_code == 200


def test_what_a_drain_cuts_goes_on_where_another_gateway_may_take_it_up(start_gateway):
    with start_gateway(drain_s=1e6, keeps_cut=True) as gateway:
        with gateway.client.stream("POST", "/generate", json={"prompt": "endless", "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            gateway.call(gateway.server.drain)
            gateway.call(gateway.server.cut)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert gateway.engine.cancelled.empty()
