"""Calls are made in order, and whoever asked is told what came of them."""

import threading

import pytest

from service.worker.threads import Heartbeat, SerialExecutor
from tests.fleet.waiting import PATIENCE_S


def test_calls_are_made_in_order_on_another_thread_and_told():
    executor, made = SerialExecutor("emissions"), []

    def call(number: int) -> int:
        made.append((number, threading.current_thread().name))
        return number

    with executor:
        futures = [executor.submit(lambda number=number: call(number)) for number in range(20)]
    assert [future.result(PATIENCE_S) for future in futures] == list(range(20))
    assert made == [(number, "emissions") for number in range(20)]


def test_a_call_that_fails_fails_for_whoever_asked_and_the_next_is_made():
    executor = SerialExecutor("emissions")
    with executor:
        failing = executor.submit(lambda: [][0])
        assert executor.submit(lambda: "made").result(PATIENCE_S) == "made"
    with pytest.raises(IndexError):
        failing.result(PATIENCE_S)


def test_a_heart_beats_until_it_is_left():
    beats, enough = [], threading.Event()

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            enough.set()

    with Heartbeat(0.001, beat):
        assert enough.wait(PATIENCE_S)
    left_at = len(beats)
    assert len(beats) == left_at
