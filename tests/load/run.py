"""Load on a fleet of this machine: its own Redis, gateways and workers, on loopback only; a table, and the exit status.

python -m tests.load.run --users 200 --seconds 60
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec

from tests.fleet.fleet import Fleet
from tests.fleet.waiting import wait_until

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "service" / "checkpoints" / "shakespeare"
STOP_TIMEOUT_S = 30
"""Seconds that the last answers may take when the time is up."""
SLACK_BYTES = 2**20
"""Of Redis' memory: buffers of connections, the allocator's own."""


class Figures(msgspec.Struct):
    """What locust has of one name."""

    name: str
    num_requests: int
    num_failures: int
    total_content_length: int
    response_times: dict[str, int]
    """Milliseconds, or whatever is counted under this name → how often."""

    def percentile(self, share: float) -> float:
        """Return the value under which `share` of all are."""
        left = share * sum(self.response_times.values())
        for value in sorted(self.response_times, key=float):
            left -= self.response_times[value]
            if left <= 0:
                return float(value)
        return 0.0


def main() -> int:
    """Run it; return the exit status."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="minigpt-load-") as folder:
        keep = [f"--keep-ended-s={options.keep_ended_s}"] if options.keep_ended_s else []
        sizes = {"num_gateways": options.gateways, "num_workers": options.workers}
        plain = {"is_proxied": False, "appendfsync": "everysec"}
        with Fleet(Path(folder), options.model, gateway_options=keep, **sizes, **plain) as fleet:
            before = idle_memory(fleet)
            began = time.monotonic()
            status, figures = run_locust(fleet, options.users, options.seconds)
            show(figures, time.monotonic() - began)
            if status:
                sys.stdout.write(f"locust ended with status {status}\n{warnings(fleet)}")
            return status or check_memory(fleet, before, options.keep_ended_s)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="checkpoint folder")
    parser.add_argument("--keep-ended-s", type=float, default=5.0, help="after which Redis must be as it was")
    return parser.parse_args()


def run_locust(fleet: Fleet, users: int, seconds: int) -> tuple[int, list[Figures]]:
    """Let the users in, all within a tenth of the time; return the exit status and the figures."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(ROOT / "tests" / "load" / "locustfile.py")]
    bounds = ["--users", users, "--spawn-rate", max(1, 10 * users / seconds), "--run-time", seconds]
    stop = ["--stop-timeout", STOP_TIMEOUT_S, "--headless", "--only-summary", "--json", "--loglevel", "WARNING"]
    environment = os.environ | {"MINIGPT_URLS": ",".join(fleet.urls), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *map(str, [*bounds, *stop])],
        stdout=subprocess.PIPE,
        env=environment,
        timeout=seconds + 4 * STOP_TIMEOUT_S,
        check=False,
    )
    return done.returncode, msgspec.json.decode(done.stdout, type=list[Figures])


def show(figures: list[Figures], elapsed_s: float) -> None:
    """Print the table."""
    write = sys.stdout.write
    write(f"{'':24}{'requests':>10}{'failures':>10}{'p50':>10}{'p99':>10}\n")
    for of in sorted(figures, key=lambda of: of.name):
        write(
            f"{of.name:24}{of.num_requests:>10}{of.num_failures:>10}{of.percentile(0.5):>10g}{of.percentile(0.99):>10g}\n"
        )
    tokens = sum(of.total_content_length for of in figures if of.name == "tokens/s")
    write(f"{tokens / elapsed_s:.0f} tokens/s in whole streams, over {elapsed_s:.0f} s; times in ms\n")


def warnings(fleet: Fleet) -> str:
    """Return what the fleet complained of."""
    lines = [line for member in fleet.members for line in member.words().splitlines(keepends=True)]
    return "".join(line for line in lines if '"level":"warning"' in line or '"level":"error"' in line)


def idle_memory(fleet: Fleet) -> tuple[int, int]:
    """Return what is left of one answer that was forgotten, with its idempotency key: the counters stay."""
    key = uuid.uuid4().hex
    with fleet.client() as client:
        asked = client.generate({"prompt": "To be", "max_tokens": 1}, key)["id"]
    with fleet.redis.client() as redis:
        wait_until(
            lambda: not redis.keys(f"*{asked}*") and not redis.keys(f"*{key}"),
            "an answer is forgotten",
            timeout_s=120,
            period_s=0.5,
        )
    return memory(fleet)


def memory(fleet: Fleet) -> tuple[int, int]:
    """Return Redis' bytes and keys."""
    with fleet.redis.client() as client:
        return client.info("memory")["used_memory"], client.dbsize()


def check_memory(fleet: Fleet, before: tuple[int, int], keep_ended_s: float) -> int:
    """Wait for Redis to be as small as it was; return the exit status."""

    def is_back() -> bool:
        now = memory(fleet)
        return now[0] <= before[0] + SLACK_BYTES and now[1] <= before[1]

    peak = memory(fleet)
    try:
        wait_until(is_back, "Redis' memory is back", timeout_s=keep_ended_s + 30, period_s=0.5)
    except AssertionError as error:
        sys.stdout.write(f"{error}: {before} before, {peak} at the end, {memory(fleet)} now (bytes, keys)\n")
        return 1
    now = memory(fleet)
    sys.stdout.write(f"redis: {before} before, {peak} at the end, {now} after keep_ended_s (bytes, keys)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
