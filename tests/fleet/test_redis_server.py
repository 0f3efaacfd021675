"""Servers that a test can break: their data outlives a kill, and none outlives the process that started it."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from tests.fleet.redis_server import RedisServer, SentinelSetup, find_programs
from tests.fleet.waiting import wait_until

ROOT = Path(__file__).parents[2]
ORPHAN = """
import os, sys
from pathlib import Path
from tests.fleet.redis_server import RedisServer
server = RedisServer(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", find_programs())
def test_what_was_written_outlives_a_kill(tmp_path, name):
    program = find_programs()[name]
    with RedisServer(tmp_path, program=program, appendonly="yes", appendfsync="always") as server:
        port = server.port
        with server.client() as client:
            client.set("key", "value")
        server.restart()
        assert (server.port, server.exits) == (port, [-9])
        with server.client() as client:
            assert client.get("key") == b"value"
        server.restart(empty=True)
        with server.client() as client:
            assert client.dbsize() == 0


def test_a_paused_server_answers_nothing_and_then_goes_on(tmp_path):
    with RedisServer(tmp_path) as server:
        server.pause()
        with server.client(timeout_s=0.1) as client, pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        with server.client() as client:
            assert client.ping()


def test_a_taken_port_is_given_up_for_another(tmp_path):
    with RedisServer(tmp_path, name="one") as one:
        two = RedisServer(tmp_path, name="two")
        two.port = one.port
        with two:
            assert two.port != one.port


def test_a_server_that_cannot_start_says_why(tmp_path):
    server = RedisServer(tmp_path, no_such_option="1")
    with pytest.raises(AssertionError, match="no-such-option"):
        server.start()


def test_no_server_outlives_a_killed_test(tmp_path):
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    pid = int(done.stdout)
    wait_until(lambda: not psutil.pid_exists(pid), "the server is gone")


def test_a_sentinel_promotes_the_replica(tmp_path):
    with SentinelSetup(tmp_path) as setup:
        assert setup.primary_port() == setup.primary.port
        setup.primary.kill()
        setup.wait_for_promotion()
        with setup.replica.client() as client:
            client.set("key", "value")
