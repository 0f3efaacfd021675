"""The gateway's face when the server is away, starved, broken off or empty."""

import asyncio

import pytest

from service.config import QueueSettings
from service.errors import BadRequest, NotFound, QueueFull, Unavailable
from service.protocol import EmitStatus, End, Idempotency
from service.queue.redis.connection import ANSWER_WITHIN_S
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.library import PREFIX
from tests.claims import emission, ids_of
from tests.fleet.redis_server import RedisServer
from tests.fleet.waiting import PATIENCE_S, become
from tests.service.queue.redis.conftest import in_each_loop, within

STOP = End(finish_reason="stop")
OK = EmitStatus.OK


@pytest.fixture
async def queue(server):
    async with RedisQueue(server.url, QueueSettings()) as queue:
        yield queue


class Watch:
    """Reads one request to its end, beside."""

    def __init__(self, queue, request_id="a"):
        self.updates = []
        self.reading = asyncio.create_task(self._read(queue, request_id))

    async def _read(self, queue, request_id):
        async for updates in queue.watch([request_id]):
            self.updates += updates

    @property
    def token_ids(self):
        seen = []
        for update in self.updates:
            assert update.base == len(seen)
            seen += update.token_ids
        return seen

    async def wait_for(self, *token_ids):
        await become(lambda: self.reading.done() or len(self.token_ids) >= len(token_ids), f"{token_ids} are read")
        assert self.token_ids == list(token_ids)

    async def to_end(self):
        await self.reading
        assert all(update.end is None for update in self.updates[:-1])
        return self.updates[-1].end


async def test_a_submission_to_a_server_that_is_away_is_refused_in_time(queue, server, make_request):
    await queue.stats()
    server.pause()
    for _ in range(2):
        async with within(4 * ANSWER_WITHIN_S):
            with pytest.raises(Unavailable):
                await queue.submit([make_request("a")])
    server.resume()


async def test_what_may_have_been_accepted_is_cancelled_when_the_server_is_back(proxy, far_url, client, make_request):
    async with RedisQueue(far_url, QueueSettings()) as queue:
        await queue.stats()
        proxy.swallow(replies_only=True)
        with pytest.raises(Unavailable):
            await queue.submit([make_request("a-0"), make_request("a-1")])
        assert client.hget(f"{PREFIX}:n", "waiting") == b"2"
        proxy.heal()
        await become(lambda: client.hget(f"{PREFIX}:n", "waiting") == b"0", "they are cancelled")
        assert (await Watch(queue, "a-1").to_end()).finish_reason == "abort"


async def test_what_may_have_been_accepted_under_a_key_waits_for_who_asks_again(
    proxy, far_url, server, make_request, make_worker
):
    key = Idempotency(key="k", digest="d")
    async with RedisQueue(far_url, QueueSettings()) as queue:
        await queue.stats()
        proxy.swallow(replies_only=True)
        with pytest.raises(Unavailable):
            await queue.submit([make_request("a-0")], key)
        proxy.heal()
        await become(lambda: not queue._connection.is_down, "the server is found to be back")
        assert await queue.submit([make_request("b-0")], key) == ["a-0"]
        with pytest.raises(BadRequest):
            await queue.submit([make_request("c-0")], Idempotency(key="k", digest="other"))
    assert ids_of(make_worker(server.url).claim(2, 0)) == ["a-0"]


@in_each_loop
async def test_a_watcher_reads_on_however_often_its_subscription_is_killed(
    queue, server, client, make_request, make_worker
):
    await queue.submit([make_request("a")])
    worker, watch = make_worker(server.url), Watch(queue)
    [claim] = worker.claim(1, 0)
    for token_id in range(20):
        if token_id % 5 == 1:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        end = STOP if token_id == 19 else None
        assert worker.emit([emission(claim, token_id, base=token_id, end=end)]) == [OK]
        await watch.wait_for(*range(token_id + 1))
    assert await watch.to_end() == STOP
    assert watch.token_ids == list(range(20))


async def test_a_hint_that_was_lost_is_read_after_a_silence(queue, server, client, make_request, make_worker):
    await queue.submit([make_request("a")])
    worker, watch = make_worker(server.url), Watch(queue)
    worker.emit([emission(claim, 5) for claim in worker.claim(1, 0)])
    await watch.wait_for(5)
    client.append(f"{PREFIX}:t:a", b"\x07\0\0\0")  # and nobody says so
    await watch.wait_for(5, 7)
    watch.reading.cancel()


@in_each_loop
async def test_a_stream_goes_on_after_a_restart_of_a_server_that_keeps_its_data(tmp_path, make_request, make_worker):
    with RedisServer(tmp_path, appendonly="yes", appendfsync="always") as server:
        async with RedisQueue(server.url, QueueSettings()) as queue:
            await queue.submit([make_request("a")])
            worker, watch = make_worker(server.url), Watch(queue)
            [claim] = worker.claim(1, 0)
            worker.emit([emission(claim, 1, 2)])
            await watch.wait_for(1, 2)
            await asyncio.to_thread(server.restart)
            assert worker.emit([emission(claim, 1, 2)]) == [OK]
            assert worker.emit([emission(claim, 3, base=2, end=STOP)]) == [OK]
            assert await watch.to_end() == STOP
            assert watch.token_ids == [1, 2, 3]


@in_each_loop
async def test_a_stream_of_a_server_that_lost_everything_ends_with_an_error(tmp_path, make_request, make_worker):
    with RedisServer(tmp_path) as server:
        async with RedisQueue(server.url, QueueSettings()) as queue:
            await queue.submit([make_request("a")])
            worker, watch = make_worker(server.url), Watch(queue)
            worker.emit([emission(claim, 1) for claim in worker.claim(1, 0)])
            await watch.wait_for(1)
            await asyncio.to_thread(server.restart, empty=True)
            with pytest.raises(NotFound, match="'a'"):
                await watch.to_end()
            await become(lambda: not queue._connection.is_down, "the server is found to be back")
            assert await queue.submit([make_request("b")]) == ["b"]


async def test_an_open_stream_waits_for_its_patience_and_no_longer(server, make_request):
    async with RedisQueue(server.url, QueueSettings(), outage_patience_s=0.2) as queue:
        await queue.submit([make_request("a")])
        watch = Watch(queue)
        server.pause()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(watch.to_end(), PATIENCE_S)


async def test_out_of_memory_nothing_new_is_taken_and_what_runs_comes_to_its_end(
    queue, server, client, make_request, make_worker
):
    await queue.submit([make_request("a"), make_request("b")])
    worker, watch = make_worker(server.url), Watch(queue)
    client.config_set("maxmemory", 1)
    with pytest.raises(QueueFull, match="memory") as refusal:
        await queue.submit([make_request("c")])
    assert refusal.value.retry_after_s > 0
    a, b = worker.claim(2, 0)
    assert worker.emit([emission(a, 1, end=STOP), emission(b, 2)]) == [OK, OK]
    assert await watch.to_end() == STOP
    await queue.cancel("b")
    assert (await queue.stats()).running == 1
    client.config_set("maxmemory", 0)
    assert await queue.submit([make_request("c")]) == ["c"]
