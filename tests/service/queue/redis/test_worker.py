"""The worker's face over a bad network: what is asked again is done once; a lease ends before others take it."""

import time

import pytest

from service.errors import LeaseLost
from service.protocol import EmitStatus, End, TokenLogprobs
from service.queue.redis.library import PREFIX
from service.queue.redis.worker import GIVE_UP_AT, PATIENT_BEATS
from tests.claims import emission, ids_of
from tests.fleet.redis_server import RedisServer, free_port
from tests.fleet.waiting import PATIENCE_S, wait_until

LEASE_S = 2.0
"""Of those whose way is bad: they wait a quarter of it for a reply."""
STOP = End(finish_reason="stop")
OK, FENCED = EmitStatus.OK, EmitStatus.FENCED


def test_a_claim_whose_answer_was_lost_is_answered_again(proxy, far_url, client, make_worker, submit, beside):
    worker = make_worker(far_url, LEASE_S)
    assert worker.claim(1, 0.01) == []  # it hears of work from now on
    proxy.swallow(replies_only=True)
    submit("a", "b", "c")
    claiming = beside(worker.claim, 3, PATIENCE_S)
    wait_until(lambda: client.keys(f"{PREFIX}:own:*"), "the server has handed them over")
    proxy.heal()
    claims = claiming.result(PATIENCE_S)
    assert sorted(ids_of(claims)) == ["a", "b", "c"]
    assert [claim.epoch for claim in claims] == [1, 1, 1]
    assert proxy.num_swallowed > 0
    assert worker.emit([emission(claim, 1, end=STOP) for claim in claims]) == [OK] * 3
    submit("d")
    assert ids_of(worker.claim(3, PATIENCE_S)) == ["d"]


def test_an_emission_whose_answer_was_lost_is_not_appended_twice(proxy, far_url, client, make_worker, submit, beside):
    submit("a")
    worker = make_worker(far_url, LEASE_S)
    [claim] = worker.claim(1, 0)
    scores = tuple(TokenLogprobs(token_id=token_id, logprob=-1.0) for token_id in (7, 8))

    def lose_answer(emission, is_done, what):
        proxy.swallow(replies_only=True)
        num_swallowed = proxy.num_swallowed
        emitting = beside(worker.emit, [emission])
        wait_until(is_done, what)
        wait_until(lambda: proxy.num_swallowed > num_swallowed, "the answer fell into the hole")
        proxy.heal()
        assert emitting.result(PATIENCE_S) == [OK]

    first = emission(claim, 7, 8, logprobs=scores, prompt_logprobs=scores)
    lose_answer(first, lambda: client.exists(f"{PREFIX}:t:a"), "it was appended")
    assert (client.strlen(f"{PREFIX}:t:a"), client.llen(f"{PREFIX}:l:a")) == (8, 2)
    last = emission(claim, 9, base=2, logprobs=scores[:1], end=STOP)
    lose_answer(last, lambda: client.hexists(f"{PREFIX}:r:a", "end"), "it has ended")
    assert (client.strlen(f"{PREFIX}:t:a"), client.llen(f"{PREFIX}:l:a")) == (12, 3)
    counts = client.hmget(f"{PREFIX}:n", "running", "waiting", "fenced")
    assert counts == [b"0", b"0", None]


@pytest.mark.parametrize("way", ["cut", "swallow"])
def test_a_lease_that_cannot_be_renewed_is_given_up_before_others_take_it(way, proxy, far_url, make_worker, submit):
    submit("a")
    worker = make_worker(far_url, LEASE_S)
    [claim] = worker.claim(1, 0)
    renewed = time.monotonic()
    assert worker.renew()
    getattr(proxy, way)()
    with pytest.raises(LeaseLost, match="another worker's"):
        worker.emit([emission(claim, 1)])
    assert time.monotonic() - renewed >= GIVE_UP_AT * LEASE_S
    assert worker.renew() is False
    proxy.heal()
    worker.register({"tiny": "r1"})
    [again] = worker.claim(1, PATIENCE_S)
    assert again.request.id == "a"
    assert again.epoch > claim.epoch
    assert worker.emit([emission(claim, 1), emission(again, 1)]) == [FENCED, OK]


def test_a_short_outage_costs_no_lease(proxy, far_url, make_worker, submit, beside):
    submit("a")
    worker = make_worker(far_url, lease_s=20.0)
    [claim] = worker.claim(1, 0)
    proxy.cut()
    emitting = beside(worker.emit, [emission(claim, 1)])
    wait_until(lambda: proxy.num_broken >= 3, "it tries")
    proxy.heal()
    assert emitting.result(PATIENCE_S) == [OK]


def test_a_server_that_comes_later_is_waited_for(tmp_path, connect, beside):
    server = RedisServer(tmp_path)
    server.port = free_port()
    worker = connect(server.url)
    registering = beside(worker.register, {"tiny": "r1"})
    with server, server.client() as client:
        registering.result(PATIENCE_S)
        assert client.zcard(f"{PREFIX}:workers") == 1


def test_a_new_process_takes_what_a_dead_one_of_its_name_held(server, client, make_worker, submit):
    submit("a")
    for place in ("one", "two"):
        worker = make_worker(server.url, name="pod-0", machine=place)
        assert ids_of(worker.claim(1, 0)) == ["a"]
        assert client.zcard(f"{PREFIX}:workers") == 1
    assert client.hget(f"{PREFIX}:r:a", "attempts") == b"1"


def test_one_that_lost_its_lease_takes_nothing_from_a_newer_one_of_its_name(server, client, make_worker, submit):
    former = make_worker(server.url, name="pod-0", machine="one")
    newer = make_worker(server.url, name="pod-0", machine="two")
    assert former.renew() is False
    submit("a")
    assert ids_of(newer.claim(1, 0)) == ["a"]
    former.register({"tiny": "r1"})
    assert newer.renew()
    assert client.hget(f"{PREFIX}:r:a", "attempts") == b"0"


def test_a_claim_that_waits_comes_back_when_its_worker_retires(server, make_worker, submit, beside):
    worker = make_worker(server.url)
    assert worker.claim(1, 0.01) == []
    claiming = beside(worker.claim, 1, 2 * PATIENCE_S)
    worker.retire()
    assert claiming.result(PATIENCE_S) == []
    submit("a")
    assert worker.claim(1, 0) == []


def test_a_claim_on_an_absent_server_comes_back_when_its_worker_releases(proxy, far_url, make_worker, beside):
    worker = make_worker(far_url, LEASE_S)
    proxy.cut()
    claiming = beside(worker.claim, 1, 2 * PATIENCE_S)
    wait_until(lambda: proxy.num_broken >= 2, "it tries")
    worker.release()  # says so once the lease must be taken for lost
    assert claiming.result(PATIENCE_S) == []


def test_a_flush_of_functions_is_not_noticed(server, client, make_worker, submit, beside):
    submit("a")
    worker = make_worker(server.url)
    [claim] = worker.claim(1, 0)
    client.function_flush()
    assert worker.emit([emission(claim, 1)]) == [OK]
    client.function_flush()
    assert worker.renew()
    claiming = beside(worker.claim, 1, PATIENCE_S)
    client.function_flush()
    client.script_flush()
    submit("b")
    assert ids_of(claiming.result(PATIENCE_S)) == ["b"]


def test_after_a_flush_of_everything_a_worker_begins_anew(server, client, make_worker, submit):
    submit("a")
    worker = make_worker(server.url)
    [claim] = worker.claim(1, 0)
    client.flushall()
    assert worker.emit([emission(claim, 1)]) == [FENCED]
    assert worker.renew() is False
    assert all(client.pttl(key) > 0 for key in client.scan_iter())
    worker.register({"tiny": "r1"})
    submit("b")
    assert ids_of(worker.claim(1, PATIENCE_S)) == ["b"]


def test_two_that_wait_at_once_share_what_comes(server, make_worker, submit, beside):
    workers = [make_worker(server.url) for _ in range(2)]
    for worker in workers:
        assert worker.claim(8, 0.01) == []
    claiming = [beside(worker.claim, 8, PATIENCE_S) for worker in workers]
    submit("a", "b", "c", "d")
    claims = [claim.result(PATIENCE_S) for claim in claiming]
    assert [len(claimed) for claimed in claims] == [2, 2]
    assert sorted(ids_of(claims[0] + claims[1])) == ["a", "b", "c", "d"]


def test_an_idle_worker_that_froze_keeps_nothing_from_another_for_long(server, make_worker, submit):
    frozen, worker = make_worker(server.url, lease_s=600.0), make_worker(server.url)
    assert frozen.claim(8, 0.01) == []
    submit("a", "b", "c", "d")
    began = time.monotonic()
    claims = worker.claim(8, PATIENCE_S)
    while len(claims) < 4:
        claims += worker.claim(8, PATIENCE_S)
    assert ids_of(claims) == ["a", "b", "c", "d"]
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_hint_that_was_lost_is_no_matter(server, client, make_worker, submit, beside):
    worker = make_worker(server.url)
    assert worker.claim(1, 0.01) == []
    claiming = beside(worker.claim, 1, PATIENCE_S)
    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    began = time.monotonic()
    submit("a")
    assert ids_of(claiming.result(PATIENCE_S)) == ["a"]
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_refusal_that_passes_is_waited_out(server, client, make_worker, submit, beside):
    submit("a")
    worker = make_worker(server.url, lease_s=20.0)
    [claim] = worker.claim(1, 0)
    client.config_set("min-replicas-to-write", 1)
    emitting = beside(worker.emit, [emission(claim, 1)])
    wait_until(lambda: client.info("errorstats").get("errorstat_NOREPLICAS"), "it was refused")
    client.config_set("min-replicas-to-write", 0)
    assert emitting.result(PATIENCE_S) == [OK]


def test_what_only_the_server_has_it_hold_is_given_up(server, client, make_worker, submit):
    submit("a", "b")
    worker = make_worker(server.url)
    a, b = worker.claim(2, PATIENCE_S)
    before = {key: client.dump(key) for key in client.scan_iter()}
    assert worker.emit([emission(a, 1, end=STOP)]) == [OK]
    for key, value in before.items():  # as after a crash that cost the last moment
        client.restore(key, 100_000, value, replace=True)
    for _ in range(PATIENT_BEATS):
        assert worker.renew()
    assert worker.emit([emission(b, 1)]) == [OK]
    assert ids_of(worker.claim(2, PATIENCE_S)) == ["a"]


def test_what_a_server_forgot_the_end_of_is_given_up_and_another_goes_on(server, client, make_worker, submit):
    submit("a", "b")
    worker = make_worker(server.url)
    a, _ = worker.claim(2, 0)
    kept = {key: (client.pttl(key), client.dump(key)) for key in client.scan_iter()}
    assert worker.emit([emission(a, 1, end=STOP)]) == [OK]
    client.flushall()
    for key, (ttl_ms, value) in kept.items():
        client.restore(key, ttl_ms, value)
    wait_until(lambda: worker.renew() and client.hget(f"{PREFIX}:n", "waiting") == b"1", "it waits again")
    [again] = make_worker(server.url).claim(8, 0)
    assert again.request.id == "a"
    assert client.hget(f"{PREFIX}:r:a", "attempts") == b"0"
