"""What is typed is what is measured: servers by name, CPUs, threads."""

import os
import subprocess
import sys

import pytest

from service.bench.options import read_servers
from service.errors import SettingError

BOUND = """
import os, sys
import service.__main__
from service.bench.options import bind
bind(sys.argv[1], None)
import torch
print(sorted(os.sched_getaffinity(0)), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
"""


def test_servers_have_names():
    assert read_servers(["http://127.0.0.1:8001", "llama=http://h:1/base?a=b"]) == {
        "127.0.0.1:8001": "http://127.0.0.1:8001",
        "llama": "http://h:1/base?a=b",
    }


@pytest.mark.parametrize("against", [["nowhere"], ["a=b"], ["http://h:1", "http://h:1"]])
def test_what_is_no_server_is_refused(against):
    with pytest.raises(SettingError, match="--against"):
        read_servers(against)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_a_process_keeps_to_its_cpus_with_a_thread_for_each():
    cpu = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", BOUND, str(cpu)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [f"[{cpu}]", "1", "1"]
