"""Keys over real connections: who has none is refused before the body is read, who has one asks as its tenant."""

import logging

import httpx
import pytest

from service.gateway.auth import OPEN_PATHS
from service.gateway.key_ring import KeyRing
from service.keys import FileKeys, create_key


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> dict[str, str]:
    """A key for each tenant, and under "ring" the ring that knows them."""
    store = FileKeys(tmp_path_factory.mktemp("keys") / "keys.json")
    given = {"ring": KeyRing(store)}
    for tenant, rate in (("alice", None), ("bob", None), ("slow", 2)):
        given[tenant], key = create_key(tenant, rate)
        store.add(key)
    given["ring"].read()
    return given


@pytest.fixture(scope="module")
def guarded(start_gateway, secrets):
    with start_gateway(keys=secrets["ring"]) as gateway:
        yield gateway


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def require_unauthorized(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer mg_0"},
        {"authorization": "Basic bWc6XzA="},
        {"x-api-key": ""},
        {"x-api-key": "é".encode("latin-1")},
    ],
    ids=str,
)
def test_without_a_key_that_is_known_nothing_is_served(guarded, headers):
    for method, path in (("POST", "/generate"), ("GET", "/v1/models"), ("GET", "/queue"), ("GET", "/nowhere")):
        require_unauthorized(guarded.client.request(method, path, headers=headers))


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}"])
def test_a_key_lets_in(guarded, secrets, form):
    headers = {"authorization": form.format(secrets["alice"])}
    assert guarded.client.post("/generate", json={"prompt": "a", "max_tokens": 2}, headers=headers).status_code == 200


def test_so_does_one_in_x_api_key(guarded, secrets):
    assert guarded.client.get("/v1/models", headers={"x-api-key": secrets["bob"]}).status_code == 200


def test_what_probes_and_prometheus_ask_is_open(guarded):
    assert {path: guarded.client.get(path).status_code for path in OPEN_PATHS} == dict.fromkeys(OPEN_PATHS, 200)


def test_a_request_is_its_keys_tenants(guarded, secrets):
    guarded.client.post("/generate", json={"prompt": "whose", "max_tokens": 2}, headers=bearer(secrets["bob"]))
    [request] = guarded.engine.wait_for_claims("whose").values()
    assert request.tenant == "bob"


def test_another_tenants_stream_is_none(guarded, secrets):
    told = guarded.client.post("/generate", json={"prompt": "mine", "max_tokens": 2}, headers=bearer(secrets["alice"]))
    path = f"/streams/{told.json()['id']}"
    assert guarded.client.get(path, headers=bearer(secrets["alice"])).status_code == 200
    assert guarded.client.get(path, headers=bearer(secrets["bob"])).status_code == 404


def test_the_refusal_does_not_wait_for_the_body(guarded):
    with guarded.connect() as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 401 ")


def test_over_its_rate_a_key_is_told_when_to_come_back(guarded, secrets):
    answers = [guarded.client.get("/v1/models", headers=bearer(secrets["slow"])) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limited"
    assert 0 < int(answers[2].headers["retry-after"]) <= 30
    assert guarded.client.get("/v1/models", headers=bearer(secrets["alice"])).status_code == 200


def test_no_key_is_logged_or_quoted_and_refusals_are_counted(guarded, secrets, caplog):
    wrong = "mg_" + "5e5a3e" * 10
    with caplog.at_level(logging.DEBUG):
        answers = [guarded.client.get("/v1/models", headers=bearer(key)) for key in (wrong, secrets["alice"])]
        metrics = guarded.client.get("/metrics").text
    told = caplog.text + metrics + "".join(answer.text + str(answer.headers) for answer in answers)
    assert wrong not in told
    assert secrets["alice"] not in told
    [count] = [line for line in metrics.splitlines() if 'failures_total{error="invalid_api_key"}' in line]
    assert float(count.split()[-1]) >= 1


def test_before_the_keys_could_be_read_the_answer_is_503(start_gateway, tmp_path, secrets):
    with start_gateway(keys=KeyRing(FileKeys(tmp_path / "keys.json"))) as gateway:
        answer = gateway.client.get("/v1/models", headers=bearer(secrets["alice"]))
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert gateway.client.get("/livez").status_code == 200
