"""The drain rate: what ended by the time in which something ran."""

import pytest

from service.queue.drain_rate import WINDOW_S, DrainRate


def run(rate: DrainRate, seconds: float, tokens_per_s: float, *, start: float) -> float:
    for second in range(int(seconds)):
        rate.advance(start + second + 1, busy=True)
        rate.add(int(tokens_per_s))
    return start + seconds


def test_nothing_is_known_before_something_ended():
    rate = DrainRate()
    rate.advance(0.0, busy=False)
    assert rate.tokens_per_s == 0.0


def test_a_steady_rate_is_found_from_the_first_seconds_on():
    rate = DrainRate()
    rate.advance(0.0, busy=False)
    run(rate, 3, 100, start=0.0)
    assert rate.tokens_per_s == pytest.approx(100)


def test_idle_time_changes_nothing():
    rate = DrainRate()
    rate.advance(0.0, busy=False)
    now = run(rate, 10, 100, start=0.0)
    rate.advance(now + 3600, busy=False)
    assert rate.tokens_per_s == pytest.approx(100)


def test_a_new_rate_replaces_the_old():
    rate = DrainRate()
    rate.advance(0.0, busy=False)
    now = run(rate, 100, 100, start=0.0)
    run(rate, 5 * WINDOW_S, 300, start=now)
    assert rate.tokens_per_s == pytest.approx(300, rel=0.05)


def test_a_clock_that_steps_back_does_no_harm():
    rate = DrainRate()
    rate.advance(100.0, busy=False)
    run(rate, 5, 100, start=100.0)
    rate.advance(50.0, busy=True)
    assert rate.tokens_per_s == pytest.approx(100)
