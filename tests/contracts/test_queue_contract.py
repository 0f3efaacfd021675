"""What every backend of the queue promises, case by case."""

import pytest

from service.errors import NotFound, QueueFull
from service.protocol import EmitStatus, End, QueueStats, TokenLogprobs
from tests.claims import emission, ids_of
from tests.fleet.waiting import PATIENCE_S

STOP = End(finish_reason="stop")
OK, CANCEL, FENCED, GAP = EmitStatus.OK, EmitStatus.CANCEL, EmitStatus.FENCED, EmitStatus.GAP


def test_a_request_goes_in_and_its_tokens_come_out(backend, make_request):
    request = make_request("a")
    backend.submit(request)
    watcher, worker = backend.watch("a"), backend.worker()
    [claim] = worker.claim(8, 0)
    assert (claim.request, claim.token_ids) == (request, ())
    assert worker.emit([emission(claim, 1, 2)]) == [OK]
    assert watcher.wait_for(2) == [1, 2]
    assert worker.emit([emission(claim, 3, end=STOP, base=2)]) == [OK]
    assert watcher.to_end().end == STOP
    assert watcher.token_ids == [1, 2, 3]


def test_any_number_of_watchers_see_the_same_and_a_late_one_sees_all(backend, make_request):
    backend.submit(make_request("a"))
    worker = backend.worker()
    [claim] = worker.claim(1, 0)
    early = backend.watch("a")
    worker.emit([emission(claim, 1, 2)])
    middle = backend.watch("a")
    worker.emit([emission(claim, 3, end=STOP, base=2)])
    late = backend.watch("a")
    for watcher in (early, middle, late):
        assert watcher.to_end().end == STOP
        assert watcher.token_ids == [1, 2, 3]


def test_one_who_watches_several_hears_of_each_up_to_its_end(backend, make_request):
    backend.submit(make_request("a"), make_request("b"))
    worker, watcher = backend.worker(), backend.watch("a", "b")
    a, b = worker.claim(2, 0)
    worker.emit([emission(a, 1), emission(b, 10)])
    worker.emit([emission(a, 2, end=STOP, base=1), emission(b, 11, base=1)])
    worker.emit([emission(b, end=STOP, base=2)])
    watcher.to_end()
    for request_id, token_ids in (("a", [1, 2]), ("b", [10, 11])):
        own = [update for update in watcher.updates if update.id == request_id]
        assert [token_id for update in own for token_id in update.token_ids] == token_ids
        assert [update.end for update in own if update.end is not None] == [STOP]


def logprobs_of(*token_ids):
    return tuple(TokenLogprobs(token_id=id_, logprob=-id_ / 8, top=((id_, -id_ / 8),)) for id_ in token_ids)


def test_log_probabilities_come_once_through_a_death_and_a_retry(backend, make_request):
    backend.submit(make_request("a"))
    doomed, early = backend.worker(), backend.watch("a")
    [claim] = doomed.claim(1, 0)
    scored = emission(claim, prompt_logprobs=logprobs_of(8, 9))
    first = emission(claim, 1, 2, logprobs=logprobs_of(1, 2))
    assert [doomed.emit([e]) for e in (scored, first, first)] == [[OK]] * 3
    middle = backend.watch("a")
    backend.kill(doomed)
    heir = backend.worker()
    [again] = heir.claim(1, 0)
    last = emission(again, 3, end=STOP, logprobs=logprobs_of(3), prompt_logprobs=logprobs_of(8, 9))
    assert heir.emit([last]) == [OK]
    for watcher in (early, middle, backend.watch("a")):
        watcher.to_end()
        assert watcher.token_ids == [1, 2, 3]
        assert [entry for update in watcher.updates for entry in update.logprobs] == list(logprobs_of(1, 2, 3))
        assert [entry for update in watcher.updates for entry in update.prompt_logprobs] == list(logprobs_of(8, 9))


def test_claims_are_oldest_first_and_of_what_is_registered_alone(backend, make_request):
    backend.submit(make_request("a"), make_request("other", model="big"), make_request("b"))
    backend.submit(make_request("former", revision="r0"), make_request("c"))
    small, both = backend.worker(), backend.worker({"tiny": "r1", "big": "r1"})
    assert ids_of(small.claim(1, 0)) == ["a"]
    assert ids_of(both.claim(9, 0)) == ["other", "b", "c"]
    assert backend.stats().waiting == 1


def test_a_waiting_claim_gets_what_is_submitted_meanwhile(backend, make_request, beside):
    claiming = beside(backend.worker().claim, 4, PATIENCE_S)
    backend.submit(make_request("a"))
    assert ids_of(claiming.result()) == ["a"]


def test_a_waiting_claim_comes_back_empty(backend):
    assert backend.worker().claim(4, 0.01) == []


def test_the_same_id_again_is_no_second_request(backend, make_request):
    backend.submit(make_request("a"), make_request("a"))
    backend.submit(make_request("a"))
    worker = backend.worker()
    [claim] = worker.claim(9, 0)
    worker.emit([emission(claim, end=STOP)])
    backend.submit(make_request("a"))
    assert worker.claim(9, 0) == []
    assert backend.watch("a").to_end().end == STOP


def test_submit_takes_all_or_none_and_says_when_to_retry(open_backend, make_request):
    with open_backend(max_queue_depth=2) as backend:
        backend.submit(make_request("a"))
        with pytest.raises(QueueFull) as refused:
            backend.submit(make_request("b"), make_request("c"))
        assert refused.value.retry_after_s >= 1
        assert backend.stats().waiting == 1
        with pytest.raises(NotFound):
            backend.watch("b").to_end()
        backend.submit(make_request("a"))
        backend.submit(make_request("b"))


def test_tokens_are_capped_too_and_room_comes_back(open_backend, make_request):
    with open_backend(max_queue_tokens=20) as backend:
        backend.submit(make_request("a"), make_request("b"))
        assert backend.stats().waiting_tokens == 16
        with pytest.raises(QueueFull):
            backend.submit(make_request("c"))
        backend.cancel("a")
        backend.submit(make_request("c"))
        assert backend.stats().waiting_tokens == 16


def test_retry_after_is_what_waits_by_the_measured_rate(open_backend, make_request):
    with open_backend(max_queue_depth=4, lease_s=1e6) as backend:
        worker = backend.worker()
        backend.submit(make_request("a", max_tokens=7997))
        [claim] = worker.claim(1, 0)
        backend.stats()
        backend.pass_time(2000.0)
        worker.emit([emission(claim, end=STOP)])
        assert backend.stats().drain_tokens_per_s == pytest.approx(4.0, rel=0.05)
        backend.submit(*(make_request(f"w{i}") for i in range(4)))
        with pytest.raises(QueueFull) as refused:
            backend.submit(make_request("z"))
        assert refused.value.retry_after_s == pytest.approx(32 / 4, rel=0.05)


def test_a_retried_emission_is_ok_and_adds_nothing(backend, make_request):
    backend.submit(make_request("a"))
    worker, watcher = backend.worker(), backend.watch("a")
    [claim] = worker.claim(1, 0)
    first, last = emission(claim, 1, 2), emission(claim, 3, end=STOP, base=2)
    assert [worker.emit([e]) for e in (first, first, last, last)] == [[OK]] * 4
    watcher.to_end()
    assert watcher.token_ids == [1, 2, 3]


@pytest.mark.parametrize("base", [0, 1, 3])
def test_a_contradiction_is_a_gap_and_another_goes_on_from_the_log(backend, make_request, base):
    backend.submit(make_request("a"))
    worker = backend.worker()
    [claim] = worker.claim(1, 0)
    worker.emit([emission(claim, 1, 2)])
    assert worker.emit([emission(claim, 9, base=base)]) == [GAP]
    assert worker.emit([emission(claim, 3, base=2)]) == [FENCED]
    [again] = worker.claim(1, 0)
    assert again.token_ids == (1, 2)
    assert again.epoch > claim.epoch


def test_cancelled_while_waiting_it_ends_at_once(backend, make_request):
    backend.submit(make_request("a"))
    watcher = backend.watch("a")
    backend.cancel("a")
    assert watcher.to_end().end.finish_reason == "abort"
    assert backend.worker().claim(1, 0) == []


def test_cancelled_while_running_it_ends_at_an_emission_that_adds_nothing(backend, make_request):
    backend.submit(make_request("a"), make_request("b"))
    worker, watcher = backend.worker(), backend.watch("a")
    a, b = worker.claim(2, 0)
    worker.emit([emission(a, 1), emission(b, 1)])
    backend.cancel("a")
    assert worker.emit([emission(a, base=1), emission(b, 2, base=1)]) == [CANCEL, OK]
    assert watcher.to_end().end.finish_reason == "abort"
    assert watcher.token_ids == [1]
    assert worker.emit([emission(a, 2, base=1)]) == [FENCED]


def test_cancel_of_an_unknown_or_ended_request_is_no_error(backend, make_request):
    backend.cancel("nobody")
    backend.submit(make_request("a"))
    worker = backend.worker()
    [claim] = worker.claim(1, 0)
    worker.emit([emission(claim, end=STOP)])
    backend.cancel("a")
    assert backend.watch("a").to_end().end == STOP


def test_past_its_deadline_a_request_is_not_computed(backend, make_request):
    backend.submit(make_request("a", deadline_s=1.0))
    watcher = backend.watch("a")
    backend.pass_time(1)
    assert backend.worker().claim(1, 0) == []
    assert watcher.to_end().end.deadline_passed


def test_past_its_deadline_a_request_ends_even_with_no_worker(backend, make_request):
    backend.submit(make_request("a", deadline_s=1.0))
    watcher = backend.watch("a")
    backend.pass_time(1)
    backend.reap()
    assert watcher.to_end().end.deadline_passed


def test_past_its_deadline_a_running_request_is_called_off(backend, make_request):
    backend.submit(make_request("a", deadline_s=1.0))
    worker, watcher = backend.worker(), backend.watch("a")
    [claim] = worker.claim(1, 0)
    backend.pass_time(1)
    assert worker.emit([emission(claim, 1, end=STOP)]) == [CANCEL]
    end = watcher.to_end().end
    assert (end.finish_reason, end.deadline_passed) == ("abort", True)
    assert watcher.token_ids == []


def test_an_ended_request_is_forgotten_in_time_and_the_memory_with_it(backend, make_request):
    for i in range(20):
        backend.submit(make_request(f"r{i}"))
        backend.cancel(f"r{i}")
    backend.watch("r0").to_end()
    backend.pass_time(backend.settings.keep_ended_s)
    backend.reap()
    with pytest.raises(NotFound):
        backend.watch("r0").to_end()
    backend.submit(make_request("r0"))
    assert backend.stats().waiting == 1


def test_the_end_tells_how_long_it_was_queued(backend, make_request):
    backend.submit(make_request("a"))
    backend.pass_time(1000)
    worker, watcher = backend.worker(), backend.watch("a")
    [claim] = worker.claim(1, 0)
    backend.pass_time(2)
    worker.emit([emission(claim, 1, end=STOP)])
    assert watcher.to_end().queued_s == pytest.approx(1000, rel=0.001)


def test_stats_count_what_waits_and_runs(backend, make_request):
    backend.submit(*(make_request(f"r{i}") for i in range(5)))
    backend.worker().claim(2, 0)
    assert backend.stats() == QueueStats(
        waiting=3, running=2, waiting_tokens=24, workers=1, drain_tokens_per_s=0.0, revisions=frozenset({"r1"})
    )


def test_a_claim_that_does_not_wait_takes_what_others_asked_for_in_vain(backend, make_request):
    backend.submit(make_request("a"))
    busy, idle = backend.worker(), backend.worker()
    assert len(busy.claim(1, 0)) == 1
    assert idle.claim(1, 0) == []
    backend.submit(make_request("b"))
    assert len(busy.claim(1, 0)) == 1
