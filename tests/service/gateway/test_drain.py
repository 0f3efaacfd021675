"""How a server ends: what it has taken may finish in time, and what is cut does not look complete."""

import logging

import httpx
import pytest


def test_a_stream_that_was_accepted_goes_on_while_the_server_drains(start_gateway):
    body = {"prompt": "Once", "max_tokens": 200, "stream": True}
    with start_gateway(drain_s=1e6) as gateway, gateway.client.stream("POST", "/generate", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        gateway.call(gateway.server.drain)
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(("drain_s", "orders"), [(0.0, ["drain"]), (0.3, ["drain"]), (1e6, ["drain", "cut"])])
def test_a_stream_that_outlives_the_drain_is_cut_and_one_line_tells_it(start_gateway, caplog, drain_s, orders):
    body, seen = {"prompt": "endless", "max_tokens": 200, "stream": True}, []
    with start_gateway(drain_s=drain_s) as gateway:
        with gateway.client.stream("POST", "/generate", json=body) as answer:
            lines = answer.iter_lines()
            seen.append(next(lines))
            for order in orders:
                gateway.call(getattr(gateway.server, order))
            with pytest.raises(httpx.TransportError):
                seen.extend(lines)
        gateway.engine.wait_for_cancels(gateway.engine.wait_for_claims("endless"))
    assert "data: [DONE]" not in seen
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["cut 1 connection(s) before the end of their answers"]
