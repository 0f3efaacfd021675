"""How a worker holds what it claimed, in every backend: by its lease, until it dies, retires or hands back."""

import pytest

from service.protocol import EmitStatus, End
from tests.claims import emission, ids_of
from tests.fleet.waiting import PATIENCE_S

STOP = End(finish_reason="stop")
OK, FENCED = EmitStatus.OK, EmitStatus.FENCED


def test_a_retired_worker_keeps_what_it_has_and_gets_nothing_new(backend, make_request):
    backend.submit(make_request("a"))
    worker, watcher = backend.worker(), backend.watch("a")
    [claim] = worker.claim(1, 0)
    worker.retire()
    backend.submit(make_request("b"))
    assert worker.claim(1, 0) == []
    assert worker.emit([emission(claim, 1, end=STOP)]) == [OK]
    assert watcher.to_end().end == STOP
    assert backend.stats().revisions == frozenset()
    assert backend.stats().waiting == 1


def test_a_claim_that_waits_comes_back_empty_when_its_worker_retires(backend, beside):
    worker = backend.worker()
    claiming = beside(worker.claim, 4, 1e6)
    worker.retire()
    assert claiming.result(PATIENCE_S) == []


def test_a_worker_that_never_registered_gets_nothing(backend, make_request):
    backend.submit(make_request("a"))
    worker = backend.connect()
    assert worker.claim(1, 0.0) == []
    assert not worker.renew()


def test_a_dead_workers_requests_go_on_from_where_the_log_ends(backend, make_request):
    backend.submit(make_request("a"), make_request("b"))
    doomed, watcher = backend.worker(), backend.watch("a")
    a, _ = doomed.claim(2, 0)
    doomed.emit([emission(a, 1, 2)])
    backend.submit(make_request("c"))
    backend.kill(doomed)
    heir = backend.worker()
    claims = heir.claim(9, 0)
    assert [(claim.request.id, claim.token_ids) for claim in claims] == [("a", (1, 2)), ("b", ()), ("c", ())]
    assert claims[0].epoch > a.epoch
    assert heir.emit([emission(claims[0], 3, end=STOP)]) == [OK]
    watcher.to_end()
    assert watcher.token_ids == [1, 2, 3]


def test_a_silent_worker_loses_its_lease_and_what_it_still_writes_is_fenced(backend, make_request):
    backend.submit(make_request("a"))
    paused, heir = backend.worker(), backend.worker()
    [claim] = paused.claim(1, 0)
    backend.pass_time(backend.settings.lease_s / 2)
    assert heir.renew()
    backend.pass_time(backend.settings.lease_s / 2)
    backend.reap()
    assert backend.stats().workers == 1
    assert paused.emit([emission(claim, 666)]) == [FENCED]
    assert not paused.renew()
    assert paused.claim(1, 0) == []
    [again] = heir.claim(1, 0)
    assert again.token_ids == ()
    assert paused.emit([emission(again, 666)]) == [FENCED]


@pytest.mark.parametrize("verb", ["renew", "emit", "claim"])
def test_every_word_of_a_worker_renews_its_lease(backend, verb):
    worker = backend.worker()
    for _ in range(3):
        backend.pass_time(backend.settings.lease_s * 0.9)
        {"renew": worker.renew, "emit": lambda: worker.emit([]), "claim": lambda: worker.claim(1, 0)}[verb]()
        backend.reap()
    assert worker.renew()


def test_released_requests_keep_their_place_their_tokens_and_their_attempts(open_backend, make_request):
    with open_backend(max_attempts=1) as backend:
        backend.submit(make_request("a"), make_request("b"))
        for num_logged in range(3):
            worker = backend.worker()
            claims = worker.claim(9, 0)
            assert ids_of(claims) == ["a", "b"]
            assert len(claims[0].token_ids) == num_logged
            worker.emit([emission(claims[0], num_logged)])
            worker.release()
            assert worker.emit([emission(claims[0], 9, base=num_logged + 1)]) == [FENCED]
            assert worker.claim(9, 0) == []
        assert backend.stats().waiting == 2


def test_a_request_that_outlives_no_worker_fails(backend, make_request):
    backend.submit(make_request("poison"))
    watcher = backend.watch("poison")
    for _ in range(backend.settings.max_attempts):
        worker = backend.worker()
        [claim] = worker.claim(1, 0)
        worker.emit([emission(claim, 1)])
        backend.kill(worker)
    end = watcher.to_end().end
    assert end.finish_reason == "error"
    assert str(backend.settings.max_attempts) in end.error
    assert watcher.token_ids == [1] * backend.settings.max_attempts
    assert backend.worker().claim(1, 0) == []


def test_cancelled_and_orphaned_it_ends_without_another_worker(backend, make_request):
    backend.submit(make_request("a"))
    worker, watcher = backend.worker(), backend.watch("a")
    worker.claim(1, 0)
    backend.cancel("a")
    backend.kill(worker)
    assert watcher.to_end().end.finish_reason == "abort"


def test_past_its_deadline_a_running_request_ends_whatever_its_worker_does(backend, make_request):
    backend.submit(make_request("a", deadline_s=2.0))
    worker, watcher = backend.worker(), backend.watch("a")
    [claim] = worker.claim(1, 0)
    backend.pass_time(2.0)
    backend.reap()
    assert watcher.to_end().end.deadline_passed
    assert backend.stats().running == 0
    assert worker.emit([emission(claim, 1)]) == [FENCED]
