"""Whatever becomes of hints, one who reads a log along yields each token once, in order, and one end; or `Diverged`."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Diverged, NotFound
from service.protocol import End, TokenLogprobs
from service.queue.redis.reader import MAX_HINTS, Hint, LogState, Reader

STOP = End(finish_reason="stop")
PROMPT = tuple(TokenLogprobs(token_id=token_id, logprob=-3.0) for token_id in (90, 91))
logs = st.lists(st.integers(0, 3), max_size=12).map(tuple)


def logprobs_of(token_ids):
    return tuple(TokenLogprobs(token_id=token_id, logprob=-0.5 * token_id) for token_id in token_ids)


def hint(log, base, stop, end=None):
    """A hint of the tokens from `base` up to `stop`; the first of all has the prompt's log-probabilities."""
    token_ids = log[base:stop]
    prompt = PROMPT if base == 0 and token_ids else ()
    logprobs = logprobs_of(token_ids)
    fields = {"end": end, "logprobs": logprobs, "prompt_logprobs": prompt}
    return Hint(id="a", base=base, token_ids=token_ids, queued_s=0.0, **fields)


def state(log, end=None):
    return LogState(
        tokens=b"".join(token_id.to_bytes(4, "little") for token_id in log),
        logprobs=[msgspec.msgpack.encode(entry) for entry in logprobs_of(log)],
        prompt_logprobs=msgspec.msgpack.encode(PROMPT) if log else None,
        queued_s=b"0.25",
        end=None if end is None else msgspec.msgpack.encode(end),
    )


class Reading:
    """A reader whose log is read when it asks for that, as a gateway does, and what it has yielded."""

    def __init__(self):
        self.reader = Reader("a", asyncio.Event())
        self.updates = []

    def look(self, log, end=None):
        """Take what is new; the log is `log` now, should it be asked for."""
        while not self.reader.has_ended:
            reads_log = self.reader.must_read_log
            if reads_log:
                self.reader.must_read_log = False
                self.reader.read_log(state(log, end))
            update = self.reader.take()
            if update is not None:
                self.updates.append(update)
            elif reads_log or not self.reader.must_read_log:
                return  # a gateway waits for a change before it reads again

    def finish(self, log, end):
        self.reader.invalidate()
        self.look(log, end)

    def hear_all(self, *hints):
        for one in hints:
            self.reader.on_hint(one)

    @property
    def token_ids(self):
        seen = ()
        for update in self.updates:
            assert update.base == len(seen)
            seen += update.token_ids
        return seen

    def check(self, log, end):
        assert self.token_ids == log
        assert sum((update.logprobs for update in self.updates), ()) == logprobs_of(log)
        assert sum((update.prompt_logprobs for update in self.updates), ()) == (PROMPT if log else ())
        assert [update.end for update in self.updates if update.end is not None] == [end]
        assert self.updates[-1].end == end


def some_hints(data, log):
    """Hints of any parts of a log, as they come when some are lost, come again, overlap or overtake each other."""
    bounds = st.tuples(st.integers(0, len(log)), st.integers(0, len(log))).map(sorted)
    return [hint(log, *pair) for pair in data.draw(st.lists(bounds, max_size=4))]


@given(st.data(), logs)
def test_each_token_comes_once_and_in_order_whatever_becomes_of_hints(data, log):
    reading = Reading()
    for num_logged in sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=8))):
        reading.hear_all(*some_hints(data, log[:num_logged]))
        if data.draw(st.booleans()):
            reading.reader.invalidate()
        if data.draw(st.booleans()):
            reading.look(log[:num_logged])
            assert reading.token_ids == log[: len(reading.token_ids)]
    if data.draw(st.booleans()):
        reading.hear_all(*some_hints(data, log), hint(log, data.draw(st.integers(0, len(log))), len(log), STOP))
    reading.finish(log, STOP)
    reading.look(log, STOP)
    reading.check(log, STOP)


@given(st.data(), logs, logs)
def test_a_log_that_lost_its_tail_may_grow_the_same_again_and_not_otherwise(data, log, other):
    num_left = data.draw(st.integers(0, len(log)))
    regrown = log[:num_left] + (log[num_left:] if data.draw(st.booleans()) else ()) + other
    reading = Reading()
    reading.hear_all(hint(log, 0, len(log)))
    reading.look(log)
    reading.reader.invalidate()  # the server took its subscribers along
    grows_the_same = regrown[: len(log)] == log

    def go_on():
        for num_logged in sorted(data.draw(st.lists(st.integers(num_left, len(regrown)), max_size=4))):
            reading.look(regrown[:num_logged])
            reading.hear_all(*some_hints(data, regrown[:num_logged]))
        reading.finish(regrown, STOP)

    if grows_the_same:
        go_on()
        reading.check(regrown, STOP)
    else:
        with pytest.raises(Diverged):
            go_on()
        assert reading.token_ids == log


def test_a_hint_beyond_a_log_that_lost_its_tail_is_not_believed():
    reading = Reading()
    reading.look((1, 2, 3))
    reading.reader.invalidate()
    reading.look((1, 2))
    reading.hear_all(hint((1, 2, 9, 4), 3, 4))
    assert reading.token_ids == (1, 2, 3)
    with pytest.raises(Diverged):
        reading.look((1, 2, 9, 4))


def test_a_log_that_ends_before_what_was_yielded_has_diverged():
    for tell in (lambda reading: reading.finish((1,), STOP), lambda reading: hear_short_end(reading)):
        reading = Reading()
        reading.look((1, 2))
        with pytest.raises(Diverged):
            tell(reading)


def hear_short_end(reading):
    reading.hear_all(hint((1,), 1, 1, STOP))
    reading.look((1,))


def test_hints_without_gaps_need_no_log_but_the_first_time():
    log = tuple(range(100))
    reading = Reading()
    reading.look(())
    for at in log:
        reading.hear_all(hint(log, at, at + 1))
        reading.look(None)
    assert reading.token_ids == log


def test_hints_that_nobody_takes_are_bounded_and_the_log_has_the_rest():
    log = tuple(range(3 * MAX_HINTS))
    reading = Reading()
    reading.look(())
    for at in log:
        reading.hear_all(hint(log, at, at + 1))
    assert len(reading.reader._hints) <= MAX_HINTS
    reading.finish(log, STOP)
    reading.check(log, STOP)


def test_what_is_heard_at_once_is_one_update():
    log = (5, 6, 7)
    reading = Reading()
    reading.look(())
    reading.hear_all(hint(log, 0, 1), hint(log, 1, 2), hint(log, 2, 3, STOP))
    reading.look(None)
    assert len(reading.updates) == 1
    reading.check(log, STOP)


def test_changed_wake_whoever_waits_and_a_request_that_is_gone_is_told():
    changed = asyncio.Event()
    reader = Reader("a", changed)
    for tell in (reader.invalidate, lambda: reader.on_hint(hint((1,), 0, 1))):
        changed.clear()
        tell()
        assert changed.is_set()
    with pytest.raises(NotFound, match="'a'"):
        reader.read_log(None)
