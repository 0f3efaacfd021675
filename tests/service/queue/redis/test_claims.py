"""What a claim says of what it leaves: "more waits" only where to ask again at once may bring something."""

import itertools

import msgspec
import pytest

from service.protocol import Request
from service.queue.redis.library import call, line_of

LEASE_S = 60.0


@pytest.fixture
def register(client):
    """A function that registers a worker of this name."""
    return lambda worker: call(client, "register", (worker, LEASE_S, "", "", line_of("tiny", "r1")))


@pytest.fixture
def claim(client):
    """A function that claims for a worker; returns the ids, and whether more waits."""
    numbers, requests = itertools.count(), msgspec.msgpack.Decoder(Request)

    def do(worker, limit, *, is_shared=False):
        more, claims = call(client, "claim", (worker, limit, LEASE_S, int(is_shared), next(numbers)))
        return [requests.decode(body).id for _, body, *_ in claims], bool(more)

    return do


@pytest.fixture
def let_die(client, register, claim):
    """A function that lets so many workers die with all that waits."""

    def do(deaths):
        for _ in range(deaths):
            register("doomed")
            assert claim("doomed", 99)[0]
            call(client, "reap", ["doomed"])

    return do


def test_more_waits_than_was_asked_for(submit, register, claim):
    register("w")
    submit("a", "b", "c")
    assert claim("w", 2) == (["a", "b"], True)
    assert claim("w", 2) == (["c"], False)
    assert claim("w", 2) == ([], False)


def test_more_waits_that_is_left_to_others(submit, register, claim):
    for worker in ("w", "other"):
        register(worker)
        assert claim(worker, 8, is_shared=True) == ([], False)
    submit("a", "b", "c", "d")
    assert claim("w", 8, is_shared=True) == (["a", "b"], True)
    assert claim("w", 6, is_shared=True) == ([], True)
    assert claim("w", 6) == (["c", "d"], False)


@pytest.mark.parametrize("is_shared", [False, True])
def test_suspects_beyond_the_quota_do_not_count(submit, register, let_die, claim, is_shared):
    submit("a", "b", "c")
    let_die(1)
    register("w")
    assert claim("w", 4, is_shared=is_shared) == (["a"], False)
    assert claim("w", 3, is_shared=is_shared) == ([], False)


def test_a_last_chance_counts_for_nobody_who_is_not_reserved_and_empty(submit, register, let_die, claim):
    for worker in ("reserved", "other"):
        register(worker)
    submit("a")
    assert claim("reserved", 8) == (["a"], False)
    submit("last")
    let_die(2)
    assert claim("reserved", 7) == ([], False)
    assert claim("other", 8) == ([], False)


def test_nothing_counts_for_one_that_holds_a_last_chance(submit, register, let_die, claim):
    submit("last")
    let_die(2)
    register("w")
    submit("a")
    assert claim("w", 8) == (["last"], False)
    assert claim("w", 7) == ([], False)
