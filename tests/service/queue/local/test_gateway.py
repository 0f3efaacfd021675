"""What only the local queue has: it forgives its workers when its own process slept, and it forgets what ended."""

import asyncio

from service.config import QueueSettings
from service.queue.local.gateway import LocalQueue
from tests.fleet.waiting import become


class ReapingQueue(LocalQueue):
    """Counts its reaping and its looks at the clock."""

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings, self._read_clock)
        self.now = 1000.0
        self.num_reaps = self.num_looks = 0

    def _read_clock(self) -> float:
        self.num_looks += 1
        return self.now

    def reap(self) -> None:
        self.num_reaps += 1
        super().reap()


async def test_nobody_is_blamed_for_a_sleep_of_the_queues_own_process():
    queue = ReapingQueue(QueueSettings(lease_s=0.5))
    queue.register("worker", {"tiny": "r1"})
    reaping = asyncio.create_task(queue.keep_reaping())
    await become(lambda: queue.num_reaps, "it reaps")
    queue.now += 3600  # as a laptop's clock does while its lid is closed
    reaps, looks = queue.num_reaps, queue.num_looks
    await become(lambda: queue.num_looks >= looks + 2, "it looks at the clock")
    assert queue.num_reaps == reaps
    assert queue.renew("worker")
    await become(lambda: queue.num_reaps > reaps, "it reaps again")
    assert (await queue.stats()).workers == 1
    reaping.cancel()


async def test_idle_workers_share_what_comes_at_once_and_a_lone_one_takes_all(make_request):
    queue = LocalQueue(QueueSettings())
    for worker, model in {"a": "tiny", "b": "tiny", "c": "big"}.items():
        queue.register(worker, {model: "r1"})
    waiting = [asyncio.create_task(queue.claim(worker, 8, wait_s=1e6)) for worker in "abc"]
    await asyncio.sleep(0)
    await queue.submit([make_request(f"r{i}") for i in range(5)] + [make_request("big", model="big")])
    assert [len(claims) for claims in await asyncio.gather(*waiting)] == [3, 2, 1]
    await queue.submit([make_request(f"s{i}") for i in range(5)])
    assert len(await queue.claim("b", 8, wait_s=1e6)) == 5


async def test_of_two_who_wait_the_one_with_less_to_do_gets_more(make_request):
    queue = LocalQueue(QueueSettings())
    for worker in "ab":
        queue.register(worker, {"tiny": "r1"})
    await queue.submit([make_request(f"r{i}") for i in range(3)])
    assert len(await queue.claim("a", 8, wait_s=0)) == 3
    waiting = [asyncio.create_task(queue.claim(worker, 8, wait_s=1e6)) for worker in "ab"]
    await asyncio.sleep(0)
    await queue.submit([make_request("s")])
    assert len(await waiting[1]) == 1
    await queue.submit([make_request("t")])
    assert len(await waiting[0]) == 1


async def test_what_has_no_room_with_one_goes_to_another_who_waits(make_request):
    queue = LocalQueue(QueueSettings())
    for worker in "ab":
        queue.register(worker, {"tiny": "r1"})
    await queue.submit([make_request(f"r{i}") for i in range(5)])
    await queue.claim("a", 5, wait_s=0)
    waiting = [asyncio.create_task(queue.claim(worker, room, wait_s=1e6)) for worker, room in (("a", 8), ("b", 1))]
    await asyncio.sleep(0)
    await queue.submit([make_request(f"s{i}") for i in range(4)])
    assert [len(claims) for claims in await asyncio.gather(*waiting)] == [3, 1]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_claim_that_waits_says_nothing_of_the_life_of_its_worker(make_request):
    settings, clock = QueueSettings(), Clock()
    queue = LocalQueue(settings, clock)
    queue.register("asleep", {"tiny": "r1"})
    waiting = asyncio.create_task(queue.claim("asleep", 8, wait_s=1e6))
    await asyncio.sleep(0)
    clock.now += settings.lease_s / 2
    await queue.submit([make_request("other", model="big")])  # which makes every claim look again
    await asyncio.sleep(0)
    clock.now += settings.lease_s / 2
    queue.reap()
    assert await waiting == []
    assert (await queue.stats()).workers == 0


async def test_one_with_a_last_chance_has_no_share_in_what_others_wait_for(make_request):
    queue = LocalQueue(QueueSettings(max_attempts=2))
    queue.register("doomed", {"tiny": "r1"})
    await queue.submit([make_request("last")])
    await queue.claim("doomed", 1, wait_s=0)
    queue.lose("doomed")
    for worker in "ab":
        queue.register(worker, {"tiny": "r1"})
    assert len(await queue.claim("a", 8, wait_s=0)) == 1
    await queue.submit([make_request(f"r{i}") for i in range(3)])
    assert len(await queue.claim("b", 8, wait_s=0)) == 3
    waiting = [asyncio.create_task(queue.claim(worker, 8, wait_s=1e6)) for worker in "ab"]
    await asyncio.sleep(0)
    await queue.submit([make_request("s")])
    assert len(await waiting[1]) == 1
    waiting[0].cancel()


async def test_a_watcher_that_leaves_is_forgotten(make_request):
    queue = LocalQueue(QueueSettings())
    await queue.submit([make_request("a")])
    queue.register("worker", {"tiny": "r1"})
    entry = queue._registry.require("a")
    waiting = asyncio.create_task(anext(queue.watch(["a"])))
    await asyncio.sleep(0)
    assert len(entry.watchers) == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not entry.watchers
