"""Dead is only who is proven dead: never a process that is stopped, hidden, or on another machine."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from service.queue import process_identity
from service.queue.process_identity import ProcessIdentity

SAYS_WHO = """
import sys
from service.queue.process_identity import ProcessIdentity
import msgspec
sys.stdout.buffer.write(msgspec.json.encode(ProcessIdentity.of_this_process(sys.argv[1])) + b"\\n")
sys.stdout.flush()
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="no /proc: nothing is ever proven")


@contextlib.contextmanager
def another(name: str = "") -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity]]:
    command = [sys.executable, "-c", SAYS_WHO, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process, msgspec.json.decode(process.stdout.readline(), type=ProcessIdentity)
        finally:
            process.kill()


def test_a_process_is_dead_once_it_is_killed_and_before_anyone_waits_for_it() -> None:
    me = ProcessIdentity.of_this_process()
    with another() as (process, other):
        assert (other.pid, other.machine) == (process.pid, me.machine)
        assert not me.sees_dead(other)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert me.sees_dead(other)
        process.wait()
        assert me.sees_dead(other)


def test_a_stopped_process_lives() -> None:
    me = ProcessIdentity.of_this_process("w")
    with another("w") as (process, other):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert not me.sees_dead(other)
        assert not me.replaces(other)


def test_who_had_this_process_id_before_is_dead() -> None:
    me = ProcessIdentity.of_this_process()
    assert me == ProcessIdentity.of_this_process()
    assert not me.sees_dead(me)
    assert me.sees_dead(msgspec.structs.replace(me, started=me.started - 1))


def test_of_another_machine_or_an_unknown_one_nothing_is_seen() -> None:
    me = ProcessIdentity.of_this_process()
    gone = msgspec.structs.replace(me, started=0.5)
    assert me.sees_dead(gone)
    assert not me.sees_dead(msgspec.structs.replace(gone, machine="another"))
    unknown = msgspec.structs.replace(me, machine="")
    assert not unknown.sees_dead(msgspec.structs.replace(gone, machine=""))


def test_a_process_that_the_system_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me = ProcessIdentity.of_this_process()
    with another() as (process, other):
        monkeypatch.setattr(process_identity, "PROC", tmp_path)  # hidepid=2: there is no entry
        assert not me.sees_dead(other)
        process.kill()
        process.wait()
        assert me.sees_dead(other)


def test_a_new_process_of_a_name_proves_the_former_dead_unless_it_lives() -> None:
    me = ProcessIdentity.of_this_process("worker-0")
    former = msgspec.structs.replace(me, machine="another boot")
    assert me.replaces(former)
    assert not me.replaces(me)
    assert not me.replaces(msgspec.structs.replace(former, name="worker-1"))
    nameless = msgspec.structs.replace(me, name="")
    assert not nameless.replaces(msgspec.structs.replace(former, name=""))
    with another("worker-0") as (process, other):  # two by mistake
        assert not me.replaces(other)
        process.kill()
        process.wait()
        assert me.replaces(other)
