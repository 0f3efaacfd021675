"""A worker process whose engine counts instead of computing; each step waits for a line on standard input.

A line is `step`, `raise`, `exhaust`, `hang`, or `free`: from there on steps wait for nothing. Each step prints the ids
it served. With `nowhere` for its queue it waits for one that never comes, and says so.
"""

import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from service.config import WorkerSettings, parse_settings
from service.protocol import Claim, End, TokenLogprobs
from service.queue.local.worker import SocketWorkerQueue
from service.worker.worker import Worker, run_until_stopped


@dataclass
class Output:
    id: str
    token_ids: tuple[int, ...]
    end: End | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class CountingEngine:
    """Draws token i of a request as a function of its seed and i, like the real one."""

    def __init__(self, max_num_seqs: int, *, free: bool = False) -> None:
        self._max_num_seqs = max_num_seqs
        self._claims: dict[str, Claim] = {}
        self._lengths: dict[str, int] = {}
        self._free = free

    def add(self, claim: Claim) -> None:
        self._claims[claim.request.id] = claim
        self._lengths[claim.request.id] = len(claim.token_ids)

    def abort(self, request_id: str) -> None:
        self._claims.pop(request_id, None)

    def step(self) -> list[Output]:
        self._wait()
        sys.stdout.write(" ".join(self._claims) + "\n")
        sys.stdout.flush()
        return [self._advance(claim) for claim in list(self._claims.values())]

    @property
    def capacity(self) -> int:
        return self._max_num_seqs - len(self._claims)

    @property
    def has_work(self) -> bool:
        return bool(self._claims)

    def _wait(self) -> None:
        order = "free" if self._free else sys.stdin.readline().strip()
        self._free = order == "free"
        if order == "raise":
            raise RuntimeError(f"cannot count {[claim.request.token_ids for claim in self._claims.values()]}")
        if order == "exhaust":
            raise MemoryError
        if order == "hang":
            time.sleep(1e6)

    def _advance(self, claim: Claim) -> Output:
        params = claim.request.params
        index = self._lengths[claim.request.id]
        self._lengths[claim.request.id] += 1
        over = index + 1 == params.max_tokens
        if over:
            self.abort(claim.request.id)
        token_id = count(params.seed, index)
        end = End(finish_reason="length") if over else None
        if params.logprobs is None:
            return Output(claim.request.id, (token_id,), end)
        logprobs = (TokenLogprobs(token_id=token_id, logprob=-float(index)),)
        prompt = [TokenLogprobs(token_id=id_, logprob=-0.5) for id_ in claim.request.token_ids[1:]]
        return Output(claim.request.id, (token_id,), end, logprobs, () if index else tuple(prompt))


def count(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index * 7919) % 2**31


class Nowhere:
    """A queue that is not there, but may come."""

    gather_s = 0.01

    def register(self, _models: dict[str, str]) -> None:
        sys.stdout.write("waiting for a queue\n")
        sys.stdout.flush()
        threading.Event().wait()

    def retire(self) -> None: ...


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    path, *options = sys.argv[1:]
    settings = parse_settings(WorkerSettings, {key: float(value) for key, value in (o.split("=") for o in options)})
    queue = Nowhere() if path == "nowhere" else SocketWorkerQueue(Path(path), 1e6)
    worker = Worker(queue, CountingEngine(4), {"tiny": "r1"}, settings)
    sys.exit(run_until_stopped(worker))
