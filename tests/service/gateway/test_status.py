"""How the server tells of itself."""

import pytest


def test_every_answer_has_an_id_of_its_own_whatever_the_client_sends(gateway):
    paths = ["/livez", "/readyz", "/v1/models", "/metrics", "/nowhere", "/openapi.json"]
    ids = [gateway.client.get(path, headers={"x-request-id": "mine"}).headers["x-request-id"] for path in paths]
    assert len({*ids, "mine"}) == len(paths) + 1


def test_models_are_listed_as_openai_clients_expect(gateway):
    listed = gateway.client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model.pop("created") > 1_600_000_000
    assert model == {
        "id": "tiny",
        "object": "model",
        "owned_by": "minigpt",
        "revision": "sha256:0",
        "max_model_len": 256,
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("POST", "/generate/", 404, "not_found"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
def test_the_frameworks_own_errors_come_in_the_envelope(gateway, method, path, status, code):
    answer = gateway.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["param"] is None
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_ready_means_a_worker_for_every_model_and_not_draining(start_gateway, path):
    with start_gateway(with_worker=False) as gateway:
        assert gateway.client.get("/livez").status_code == 200
        answer = gateway.client.get(path)
        assert answer.status_code == 503
        assert "tiny" in answer.json()["error"]["message"]
    with start_gateway() as gateway:
        assert gateway.client.get(path).json() == {"status": "ready"}
        gateway.app.state.lifecycle.drain()
        assert gateway.client.get(path).status_code == 503
        assert gateway.client.get(path).headers["retry-after"]
        assert gateway.generate(prompt="a").status_code == 503
        assert gateway.client.get("/livez").status_code == 200


def test_being_busy_is_no_reason_to_be_red(start_gateway):
    body = {"prompt": "mute", "n": 16, "stream": True}
    with start_gateway() as gateway, gateway.client.stream("POST", "/generate", json=body):
        assert gateway.client.get("/readyz").status_code == 200


def test_the_queue_tells_what_waits_and_how_long_it_may_take(start_gateway):
    with start_gateway() as gateway:
        told = gateway.client.get("/queue").json()
        assert told == {
            "waiting": 0,
            "running": 0,
            "waiting_tokens": 0,
            "workers": 1,
            "drain_tokens_per_s": 0.0,
            "estimated_wait_s": None,
        }
        gateway.generate(prompt="a", max_tokens=200)
        told = gateway.client.get("/queue").json()
        assert told["drain_tokens_per_s"] > 0
        assert told["estimated_wait_s"] == 0


def test_metrics_tell_arrivals_ends_tokens_and_times(start_gateway):
    with start_gateway() as gateway:
        gateway.generate(prompts=["a", "bc"], max_tokens=5)
        gateway.generate(prompt="a", stop="and", max_tokens=50, stream=True)
        gateway.generate(prompt="fail")
        gateway.generate(prompt=5)
        gateway.client.get("/invented/path")
        lines = set(gateway.client.get("/metrics").text.splitlines())
    assert {
        'minigpt_requests_received_total{method="POST",route="/generate"} 4.0',
        'minigpt_requests_received_total{method="GET",route="other"} 1.0',
        'minigpt_requests_total{finish_reason="length",model="tiny"} 2.0',
        'minigpt_requests_total{finish_reason="stop",model="tiny"} 1.0',
        'minigpt_requests_total{finish_reason="error",model="tiny"} 1.0',
        'minigpt_requests_total{finish_reason="abort",model="tiny"} 0.0',
        'minigpt_request_failures_total{error="engine_failure"} 1.0',
        'minigpt_request_failures_total{error="invalid_request"} 1.0',
        'minigpt_request_failures_total{error="not_found"} 1.0',
        'minigpt_request_failures_total{error="queue_full"} 0.0',
        'minigpt_prompt_tokens_total{model="tiny"} 8.0',
        'minigpt_generated_tokens_total{model="tiny"} 25.0',
        'minigpt_time_to_first_token_seconds_count{model="tiny"} 4.0',
        'minigpt_request_seconds_count{model="tiny"} 4.0',
        'minigpt_queue_seconds_count{model="tiny"} 4.0',
        'minigpt_prefill_seconds_bucket{le="0.25",model="tiny"} 4.0',
        'minigpt_decode_seconds_sum{model="tiny"} 1.5',
        'minigpt_request_generated_tokens_sum{model="tiny"} 25.0',
        "minigpt_requests_waiting 0.0",
        "minigpt_requests_running 0.0",
        "minigpt_queue_tokens 0.0",
        "minigpt_workers 1.0",
    } <= lines
    assert any(line.startswith("minigpt_inter_token_latency_seconds_bucket") for line in lines)
    assert not any("invented" in line for line in lines)
