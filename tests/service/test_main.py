"""The command line: every command is there, and to read it loads nothing that only some need."""

import subprocess
import sys


def test_one_command_trains_and_serves():
    command = [sys.executable, "-m", "service", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for command in ("train", "evaluate", "sample", "serve", "gateway", "worker", "queue", "keys", "bench"):
        assert command in told


def test_the_command_line_loads_no_openmp():
    """It reads its settings when it is loaded; a worker makes them after the command line is read."""
    listed = "import service.__main__; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    assert "libgomp" not in maps


def test_the_command_line_loads_no_redis_and_no_prometheus():
    """What serves without Redis loads none; prometheus_client reads its environment when it is loaded."""
    listed = "import service.__main__, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    assert {"redis", "prometheus_client"}.isdisjoint(modules)
