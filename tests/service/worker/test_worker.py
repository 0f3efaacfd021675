"""Workers as processes: whatever becomes of one, a watcher sees each token once, in order, as undisturbed."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from service.config import QueueSettings
from service.protocol import End, Request, TokenLogprobs
from service.queue.local.gateway import LocalQueue
from service.queue.local.server import serve_workers
from service.queue.local.wire import FrameError
from tests.claims import make_request as make_small_request
from tests.fleet.waiting import become
from tests.service.worker.counting_worker import count

SCRIPT = Path(__file__).parent / "counting_worker.py"
PROMPT = (424242, 434343)
MAX_ATTEMPTS = 3
LEASE_S = 1.0
"""Of the queue, whose clock is a test's, and of the workers, who renew it in real time."""
LENGTH = End(finish_reason="length")


make_request = partial(make_small_request, token_ids=PROMPT, max_tokens=1000, seed=5)


def undisturbed(request: Request) -> list[int]:
    return [count(request.params.seed, index) for index in range(request.params.max_tokens)]


class RecordingQueue(LocalQueue):
    """Counts renewals, which no other face shows; its clock stands still until it is told to go on; may be gone."""

    def __init__(self) -> None:
        super().__init__(QueueSettings(lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS), lambda: self.now)
        self.now = 1000.0
        self.num_renewals = 0
        self.is_gone = False

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.reap()

    async def has_worker(self) -> bool:
        return (await self.stats()).workers > 0

    def renew(self, worker: str) -> bool:
        if self.is_gone:
            raise FrameError("closed as by a gateway that dies")
        self.num_renewals += 1
        return super().renew(worker)


class Stream:
    """Reads one request's updates in the background."""

    def __init__(self, queue: LocalQueue, request_id: str) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.end: End | None = None
        self._task = asyncio.create_task(self._read(queue.watch([request_id])))

    async def _read(self, watched) -> None:
        async for [update] in watched:
            assert update.base == len(self.token_ids)
            self.token_ids += update.token_ids
            self.logprobs += (*update.prompt_logprobs, *update.logprobs)
            self.end = update.end

    async def to_end(self) -> End:
        await self._task
        assert self.end is not None
        return self.end


class Gateway:
    """The gateway's side of the socket, and the worker processes behind it."""

    def __init__(self, queue: RecordingQueue, path: Path) -> None:
        self.queue = queue
        self._path = path
        self._workers: list[asyncio.subprocess.Process] = []

    async def submit(self, *requests: Request) -> list[Stream]:
        await self.queue.submit(requests)
        return [Stream(self.queue, request.id) for request in requests]

    async def start_worker(self, *orders: str, **settings: float) -> asyncio.subprocess.Process:
        settings = {"lease_s": LEASE_S, "max_step_s": 1e6} | settings  # its orders may be long in coming
        options = [f"{key}={value}" for key, value in settings.items()]
        pipe = asyncio.subprocess.PIPE
        worker = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), str(self._path), *options, stdin=pipe, stdout=pipe, stderr=pipe
        )
        self._workers.append(worker)
        await order(worker, *orders)
        return worker

    async def close(self) -> None:
        for worker in self._workers:
            if worker.returncode is None:
                worker.kill()
            await worker.communicate()


async def order(worker: asyncio.subprocess.Process, *orders: str) -> None:
    worker.stdin.write("".join(f"{word}\n" for word in orders).encode())
    await worker.stdin.drain()


async def step(worker: asyncio.subprocess.Process) -> list[bytes]:
    """Let `worker` make one step; return the ids that it served."""
    await order(worker, "step")
    return (await worker.stdout.readline()).split()


async def step_until(worker: asyncio.subprocess.Process, stream: Stream, num_tokens: int) -> None:
    """Let `worker` step until `stream` has `num_tokens`; its next step waits for an order."""
    while len(stream.token_ids) < num_tokens:
        await step(worker)
        await asyncio.sleep(0.01)  # for what the step made to arrive: what does not costs one step more


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """The queue behind its socket; what a test starts ends with it."""
    queue = RecordingQueue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue"
        server = await serve_workers(queue, path)
        gateway = Gateway(queue, path)
        try:
            yield gateway
        finally:
            await gateway.close()
            server.close()
            await server.wait_closed()


async def require_undisturbed(stream: Stream, request: Request) -> None:
    assert await stream.to_end() == LENGTH
    assert stream.token_ids == undisturbed(request)


async def test_requests_are_computed_together_and_each_gets_its_own(gateway):
    requests = [make_request(f"r{i}", seed=i, max_tokens=3 + i) for i in range(9)]
    streams = await gateway.submit(*requests)
    await gateway.start_worker("free")
    for stream, request in zip(streams, requests, strict=True):
        await require_undisturbed(stream, request)


async def test_a_killed_workers_stream_goes_on_unbroken(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    doomed = await gateway.start_worker()
    await step_until(doomed, stream, 2)
    doomed.kill()
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)


async def test_log_probabilities_come_once_in_order_though_a_worker_was_killed(gateway):
    request = make_request("a", logprobs=0, prompt_logprobs=True)
    [stream] = await gateway.submit(request)
    doomed = await gateway.start_worker()
    await step_until(doomed, stream, 2)
    doomed.kill()
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)
    of_the_prompt, *of_the_text = stream.logprobs
    assert of_the_prompt.token_id == PROMPT[1]
    assert [entry.token_id for entry in of_the_text] == stream.token_ids
    assert [entry.logprob for entry in of_the_text] == [-float(index) for index in range(1000)]


async def test_one_paused_past_its_lease_writes_no_more_and_serves_the_next(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    paused = await gateway.start_worker()
    await step_until(paused, stream, 1)
    paused.send_signal(signal.SIGSTOP)
    gateway.queue.pass_time(LEASE_S)
    other = await gateway.start_worker("free")
    await require_undisturbed(stream, request)
    other.kill()
    await order(paused, "free")
    paused.send_signal(signal.SIGCONT)
    later = make_request("b", seed=6)
    [next_stream] = await gateway.submit(later)
    await require_undisturbed(next_stream, later)
    assert stream.token_ids == undisturbed(request)
    paused.terminate()
    _, told = await paused.communicate()
    assert paused.returncode == 0
    assert told.count(b"the lease was lost") == 1


async def test_sigterm_claims_no_more_and_finishes_what_runs(gateway):
    running, late = make_request("running"), make_request("late")
    [stream] = await gateway.submit(running)
    worker = await gateway.start_worker()
    await step_until(worker, stream, 1)
    worker.terminate()
    while (await gateway.queue.stats()).revisions:
        await step(worker)
        await asyncio.sleep(0.01)
    await gateway.submit(late)
    await order(worker, "free")
    await require_undisturbed(stream, running)
    assert await worker.wait() == 0
    stats = await gateway.queue.stats()
    assert (stats.waiting, stats.workers) == (1, 0)


async def test_past_its_drain_a_worker_hands_back_and_the_stream_goes_on(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    for _ in range(MAX_ATTEMPTS + 1):
        worker = await gateway.start_worker(drain_s=0.0)
        await step_until(worker, stream, len(stream.token_ids) + 1)
        worker.terminate()
        await order(worker, "step")
        assert await worker.wait() == 0
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)


async def test_a_second_signal_ends_at_once(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    worker = await gateway.start_worker()
    await step_until(worker, stream, 1)
    worker.terminate()
    ended = asyncio.create_task(worker.wait())
    while not ended.done():  # Python may see two signals that come together as one
        worker.send_signal(signal.SIGINT)
        await asyncio.wait([ended], timeout=0.05)
    assert await ended == 1
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)


async def test_an_idle_worker_leaves_on_sigterm(gateway):
    worker = await gateway.start_worker()
    await become(gateway.queue.has_worker, "it registers")
    worker.terminate()
    assert await worker.wait() == 0


@pytest.mark.parametrize(("how", "named"), [("raise", b"RuntimeError"), ("exhaust", b"MemoryError")])
async def test_a_broken_engine_ends_its_worker_and_tells_no_prompt(gateway, how: str, named: bytes):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    broken = await gateway.start_worker("step", how)
    _, told = await broken.communicate()
    assert broken.returncode == 1
    assert named in told
    assert told.count(b"\n") == 1
    assert str(PROMPT[0]).encode() not in told
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)


async def test_a_hung_step_ends_its_worker(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    hung = await gateway.start_worker("hang", max_step_s=0.1)
    _, told = await hung.communicate()
    assert hung.returncode == 1
    assert b"hangs" in told
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)


async def test_a_step_longer_than_the_lease_does_not_look_dead(gateway):
    request = make_request("a")
    [stream] = await gateway.submit(request)
    worker = await gateway.start_worker()
    await step_until(worker, stream, 1)
    for _ in range(8):
        known = gateway.queue.num_renewals
        await become(lambda: gateway.queue.num_renewals > known, "the lease is renewed")  # noqa: B023
        gateway.queue.pass_time(0.9 * LEASE_S)
    stats = await gateway.queue.stats()
    assert (stats.running, stats.workers) == (1, 1)
    await order(worker, "free")
    await require_undisturbed(stream, request)


async def test_a_cancelled_request_leaves_the_engine_and_the_others_go_on(gateway):
    a, b = make_request("a"), make_request("b")
    cancelled, other = await gateway.submit(a, b)
    worker = await gateway.start_worker()
    await step_until(worker, other, 1)
    await gateway.queue.cancel("a")
    while await step(worker) != [b"b"]:
        pass
    assert (await cancelled.to_end()).finish_reason == "abort"
    assert len(cancelled.token_ids) < 1000
    await order(worker, "free")
    await require_undisturbed(other, b)


async def test_without_its_queue_a_worker_ends(gateway):
    worker = await gateway.start_worker()
    await become(gateway.queue.has_worker, "it registers")
    gateway.queue.is_gone = True
    _, told = await worker.communicate()
    assert worker.returncode == 1
    assert b"is gone" in told


async def test_a_worker_that_waits_for_a_queue_leaves_on_sigterm():
    pipe = asyncio.subprocess.PIPE
    worker = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), "nowhere", stdout=pipe)
    await worker.stdout.readline()
    worker.terminate()
    assert await worker.wait() == 0


async def test_a_request_that_kills_every_worker_fails_and_leaves_the_next_alone(gateway):
    [poisoned] = await gateway.submit(make_request("poison"))
    for _ in range(MAX_ATTEMPTS):
        worker = await gateway.start_worker("raise")
        await worker.communicate()
    assert (await poisoned.to_end()).finish_reason == "error"
    request = make_request("next")
    [stream] = await gateway.submit(request)
    await gateway.start_worker("free")
    await require_undisturbed(stream, request)
