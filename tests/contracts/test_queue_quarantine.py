"""What every backend does about a request that kills its workers: few others suffer, and it alone is given up."""

import pytest

from service.protocol import DeadRequest, EmitStatus, End
from service.queue.local.suspects import CLEARED_AFTER
from tests.claims import emission, ids_of
from tests.fleet.waiting import PATIENCE_S

STOP = End(finish_reason="stop")
OK, CANCEL, FENCED, GAP = EmitStatus.OK, EmitStatus.CANCEL, EmitStatus.FENCED, EmitStatus.GAP


def finish(worker, claims):
    assert worker.emit([emission(claim, end=STOP) for claim in claims]) == [OK] * len(claims)


@pytest.fixture
def submit(make_request):
    def submit(backend, text, **fields):
        for request_id in text.split():
            backend.submit(make_request(request_id, **fields))

    return submit


def let_die(backend, text, *, deaths=1):
    """Let so many workers die with exactly these requests, in turn the only ones that wait."""
    for _ in range(deaths):
        workers = []
        while missing := set(text.split()) - {i for _, claimed in workers for i in claimed}:
            worker = backend.worker()
            workers.append((worker, ids_of(worker.claim(99, 0))))
            assert set(workers[-1][1]) & missing
        for worker, _ in workers:
            backend.kill(worker)


def test_suspects_go_first_and_fill_at_most_a_quarter_of_a_worker(backend, submit):
    submit(backend, "s1 s2 s3 s4")
    let_die(backend, "s1 s2 s3 s4")
    submit(backend, "o1 o2 o3 o4 o5 o6 o7 o8 o9")
    first, second = backend.worker(), backend.worker()
    assert ids_of(first.claim(8, 0)) == ["s1", "s2", "o1", "o2", "o3", "o4", "o5", "o6"]
    assert ids_of(second.claim(3, 0)) == ["s3", "o7", "o8"]
    assert ids_of(first.claim(8, 0)) == ["s4", "o9"]


def test_the_quota_counts_what_is_held_and_grows_back_as_suspects_end(backend, submit):
    submit(backend, "s1 s2 s3")
    let_die(backend, "s1 s2 s3")
    worker = backend.worker()
    [held] = worker.claim(3, 0)
    assert held.request.id == "s1"
    assert worker.claim(6, 0) == []
    assert ids_of(worker.claim(7, 0)) == ["s2"]
    finish(worker, [held])
    assert ids_of(worker.claim(1, 0)) == []
    assert ids_of(worker.claim(7, 0)) == ["s3"]


def test_suspects_go_to_workers_of_their_model_whatever_their_priority(backend, submit):
    submit(backend, "old", priority="bulk")
    submit(backend, "young", priority="high")
    submit(backend, "other", model="big")
    doomed = backend.worker({"tiny": "r1", "big": "r1"})
    assert len(doomed.claim(9, 0)) == 3
    backend.kill(doomed)
    assert ids_of(backend.worker().claim(8, 0)) == ["old", "young"]
    assert ids_of(backend.worker({"big": "r1"}).claim(8, 0)) == ["other"]


def test_a_last_chance_is_taken_alone_and_nothing_beside_it(backend, submit):
    submit(backend, "last")
    let_die(backend, "last", deaths=2)
    submit(backend, "o1 o2")
    worker = backend.worker()
    [claim] = worker.claim(8, 0)
    assert claim.request.id == "last"
    assert worker.claim(8, 0) == []
    assert worker.emit([emission(claim, 1)]) == [OK]
    assert worker.claim(8, 0) == []
    assert ids_of(backend.worker().claim(1, 0)) == ["o1"]
    assert worker.emit([emission(claim, end=STOP, base=1)]) == [OK]
    assert ids_of(worker.claim(8, 0)) == ["o2"]


def test_one_empties_itself_for_a_last_chance_and_others_work_on(backend, submit):
    first, second = backend.worker(), backend.worker()
    submit(backend, "o1 o2")
    held = first.claim(2, 0)
    submit(backend, "last")
    let_die(backend, "last", deaths=2)
    submit(backend, "o3 o4")
    assert first.claim(8, 0) == []
    assert ids_of(second.claim(1, 0)) == ["o3"]
    finish(first, held[:1])
    assert first.claim(8, 0) == []
    finish(first, held[1:])
    assert ids_of(first.claim(8, 0)) == ["last"]
    assert ids_of(second.claim(8, 0)) == ["o4"]


def test_last_chances_wait_for_one_worker_at_a_time(backend, submit):
    first, second = backend.worker(), backend.worker()
    submit(backend, "o1")
    held = first.claim(1, 0)
    submit(backend, "l1 l2")
    let_die(backend, "l1 l2", deaths=2)
    submit(backend, "o2 o3")
    assert first.claim(8, 0) == []
    assert ids_of(second.claim(1, 0)) == ["o2"]
    finish(first, held)
    assert ids_of(first.claim(8, 0)) == ["l1"]
    assert second.claim(8, 0) == []
    assert ids_of(backend.worker().claim(8, 0)) == ["o3"]


@pytest.mark.parametrize("way", ["death", "silence", "retirement", "release", "registration"])
def test_another_is_reserved_when_the_first_is_gone(backend, submit, way):
    first, second = backend.worker(), backend.worker()
    submit(backend, "o1 o2")
    first.claim(1, 0)
    held = second.claim(1, 0)
    submit(backend, "last")
    let_die(backend, "last", deaths=2)
    assert first.claim(8, 0) == []
    if way == "death":
        backend.kill(first)
    elif way == "silence":
        backend.pass_time(backend.settings.lease_s * 0.6)
        second.renew()
        backend.pass_time(backend.settings.lease_s * 0.6)
        backend.reap()
    elif way == "registration":
        first.register({"tiny": "r1"})
    else:
        {"retirement": first.retire, "release": first.release}[way]()
    assert second.claim(8, 0) == []
    finish(second, held)
    assert ids_of(second.claim(8, 0)) == ["last"]


def test_nobody_is_reserved_for_a_last_chance_that_has_ended(backend, submit):
    first, second = backend.worker(), backend.worker()
    submit(backend, "o1")
    first.claim(1, 0)
    submit(backend, "l1")
    let_die(backend, "l1", deaths=2)
    assert first.claim(8, 0) == []
    backend.cancel("l1")
    submit(backend, "l2")
    let_die(backend, "l2", deaths=2)
    assert ids_of(second.claim(8, 0)) == ["l2"]


def test_a_batch_with_one_that_kills_loses_that_one_alone(backend, submit):
    text = "i1 i2 i3 poison i4 i5 i6 i7"
    submit(backend, text)
    watchers = {request_id: backend.watch(request_id) for request_id in text.split()}
    deaths = 0
    while (stats := backend.stats()).waiting or stats.running:
        workers = [backend.worker() for _ in range(3)]
        for worker in workers:
            claims = worker.claim(8, 0)
            if "poison" in ids_of(claims):
                backend.kill(worker)
                deaths += 1
            else:
                finish(worker, claims)
                worker.release()
    assert deaths == backend.settings.max_attempts
    ends = {request_id: watcher.to_end().end for request_id, watcher in watchers.items()}
    assert [request_id for request_id, end in ends.items() if end != STOP] == ["poison"]
    assert (ends["poison"].finish_reason, ends["poison"].quarantined) == ("error", True)
    assert backend.stats().quarantined == 1


def test_of_the_dead_is_kept_who_they_were_but_no_prompt(backend, make_request):
    for name in ("p", "q"):
        backend.submit(make_request(f"{name}-0", tenant="t"))
        let_die(backend, f"{name}-0", deaths=3)
        backend.pass_time(10)
    youngest, oldest = backend.dead()
    expected = DeadRequest(id="p-0", tenant="t", model="tiny", revision="r1", attempts=3, ended=oldest.ended)
    assert oldest == expected
    assert youngest.id == "q-0"
    assert youngest.ended - oldest.ended == pytest.approx(10, abs=5)
    assert [request.token_ids for request in backend.find("p")] == [()]


def test_who_dies_with_the_only_attempt_leaves_no_suspect(open_backend, submit):
    with open_backend(max_attempts=1) as backend:
        submit(backend, "a b")
        let_die(backend, "a b")
        assert {request.id for request in backend.dead()} == {"a", "b"}
        assert backend.stats().waiting == 0


def test_of_two_attempts_the_second_is_the_last_chance(open_backend, submit):
    with open_backend(max_attempts=2) as backend:
        submit(backend, "a b")
        let_die(backend, "a b")
        worker = backend.worker()
        assert ids_of(worker.claim(8, 0)) == ["a"]
        assert worker.claim(8, 0) == []


def test_no_silence_gap_or_hand_over_is_held_against_a_request(open_backend, submit):
    with open_backend(max_attempts=1) as backend:
        submit(backend, "a b")
        worker = backend.worker()
        for num_hand_overs in range(3):
            claims = worker.claim(8, 0)
            assert ids_of(claims) == ["a", "b"]
            backend.pass_time(backend.settings.lease_s)
            backend.reap()
            assert worker.emit([emission(claims[0], 1)]) == [FENCED]
            worker.register({"tiny": "r1"})
            claims = worker.claim(8, 0)
            assert ids_of(claims) == ["a", "b"]
            gap = emission(claims[0], 1, base=num_hand_overs + 1)
            assert worker.emit([gap]) == [GAP]
            worker.release()
            worker.register({"tiny": "r1"})
        assert backend.dead() == []


def test_one_that_lost_its_lease_registers_again_and_starts_with_nothing(backend, submit):
    submit(backend, "a b")
    worker = backend.worker()
    [claim] = worker.claim(1, 0)
    backend.pass_time(backend.settings.lease_s)
    backend.reap()
    assert (backend.stats().running, backend.stats().workers) == (0, 0)
    worker.register({"tiny": "r1"})
    assert (backend.stats().running, backend.stats().workers) == (0, 1)
    assert worker.renew()
    assert worker.emit([emission(claim, 1)]) == [FENCED]
    again = worker.claim(8, 0)
    assert ids_of(again) == ["a", "b"]
    finish(worker, again)


def test_a_claim_that_waits_behind_a_last_chance_goes_on_at_its_end(backend, submit, beside):
    submit(backend, "last")
    let_die(backend, "last", deaths=2)
    worker = backend.worker()
    claims = worker.claim(8, 0)
    submit(backend, "o1")
    claiming = beside(worker.claim, 8, PATIENCE_S)
    finish(worker, claims)
    assert ids_of(claiming.result()) == ["o1"]


def test_a_suspect_that_goes_on_for_long_is_none_any_more(backend, submit):
    submit(backend, "s1 s2")
    let_die(backend, "s1 s2", deaths=2)
    submit(backend, "o")
    worker = backend.worker()
    [claim] = worker.claim(8, 0)
    assert worker.emit([emission(claim, *range(CLEARED_AFTER - 1))]) == [OK]
    assert worker.claim(8, 0) == []
    assert worker.emit([emission(claim, 1, base=CLEARED_AFTER - 1)]) == [OK]
    other = backend.worker()
    assert ids_of(other.claim(8, 0)) == ["s2"]
    assert ids_of(worker.claim(8, 0)) == ["o"]
    backend.kill(worker)
    heir = backend.worker()
    assert ids_of(heir.claim(8, 0)) == ["s1", "o"]
