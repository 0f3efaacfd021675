"""A gateway's way to the server: no call gets another's reply, none waits for a server that is away, none is stuck."""

import asyncio
import contextlib

import pytest

from service.config import QueueSettings
from service.errors import Unavailable
from service.queue.redis.address import Address
from service.queue.redis.connection import ANSWER_WITHIN_S, MAX_CALLS, TICK_S, Connection
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.subscriptions import Subscriptions
from tests.fleet.redis_server import HOST
from tests.fleet.waiting import PATIENCE_S, become
from tests.service.queue.redis.conftest import in_each_loop, within

SOON_S = 4 * ANSWER_WITHIN_S
"""Far more than a refusal takes, and less than `MAX_CALLS` at a time that wait for theirs one after the other."""
MOMENT_S = 0.001


@pytest.fixture
async def connection(server):
    """One that has been used."""
    async with Connection(Address(server.url)) as connection:
        await connection.call("stats")
        yield connection


@pytest.fixture
async def far_connection(far_url):
    """One that leads through the proxy."""
    async with Connection(Address(far_url)) as connection:
        yield connection


async def back(connection):
    """Return once the server is found to be back."""
    await become(lambda: not connection.is_down, "the server is found to be back")


@contextlib.asynccontextmanager
async def refused_within(seconds):
    async with within(seconds):
        with pytest.raises(Unavailable, match="retry") as refusal:
            yield
    assert refusal.value.retry_after_s > 0


@in_each_loop
async def test_a_cancelled_call_leaves_no_reply_for_the_next(proxy, far_url, make_request):
    async with RedisQueue(far_url, QueueSettings()) as queue:
        for name in "abc":
            await queue.submit([make_request(f"{name}-0")])
        proxy.latency_s = 4 * MOMENT_S
        for i in range(12):  # cut off at each stage of its way
            call = asyncio.create_task(queue.find("a"))
            await asyncio.sleep(i * MOMENT_S)
            call.cancel()
            found = await asyncio.gather(queue.find("b"), queue.find("c"), call, return_exceptions=True)
            assert [found[0][0].id, found[1][0].id] == ["b-0", "c-0"]


@in_each_loop
async def test_a_cancelled_call_ends_at_once_wherever_it_stands(connection, server):
    server.pause()
    for num_steps in range(30):
        call = asyncio.create_task(connection.call("stats"))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()


@in_each_loop
async def test_leaving_never_hangs_wherever_a_subscription_stands(proxy, far_url):
    proxy.latency_s = 2 * MOMENT_S
    for i in range(20):
        async with asyncio.timeout(PATIENCE_S), Connection(Address(far_url)) as connection:
            connection.start(Subscriptions(connection, "g").keep_listening())
            await asyncio.sleep(i * MOMENT_S)


async def test_leaving_never_hangs_where_the_server_is_away(server):
    async with within(2 * SOON_S), Connection(Address(server.url)) as connection:
        connection.start(Subscriptions(connection, "g").keep_listening())
        await connection.call("stats")
        server.pause()
        connection.start(connection.persist("stats", for_s=PATIENCE_S))
        with pytest.raises(Unavailable):
            await connection.call("stats")


async def test_a_server_that_is_away_is_told_in_time_and_then_at_once(connection, server):
    server.pause()
    async with refused_within(SOON_S):
        await connection.call("stats")
    async with refused_within(ANSWER_WITHIN_S / 2):
        await connection.call("stats")
    assert connection.is_down
    server.resume()
    await back(connection)
    assert await connection.call("dead") == []


async def test_many_calls_are_refused_together_while_the_server_is_away(connection, server):
    server.pause()
    calls = (connection.call("stats") for _ in range(5 * MAX_CALLS))
    async with within(SOON_S):  # those who wait for their turn too
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)


@in_each_loop
async def test_a_call_over_a_connection_that_was_reset_is_tried_once_more_at_once(far_connection, proxy):
    await asyncio.gather(*(far_connection.call("stats") for _ in range(4)))
    for is_noticed in (False, True):
        proxy.reset()
        await asyncio.sleep(0.02 if is_noticed else 0)
        assert await far_connection.call("dead") == []
    assert not far_connection.is_down
    assert proxy.num_broken > 0


async def test_persistence_waits_for_the_server_and_no_longer_than_it_is_told(connection, server):
    server.pause()
    async with refused_within(SOON_S):
        await connection.persist("dead", for_s=0.1)
    asyncio.get_running_loop().call_later(0.2, server.resume)
    assert await connection.persist("dead", for_s=PATIENCE_S) == []


@in_each_loop
async def test_however_many_calls_at_once_the_connections_are_few(far_connection, proxy):
    answers = await asyncio.gather(*(far_connection.call("dead") for _ in range(20 * MAX_CALLS)))
    assert answers == [[]] * len(answers)
    assert proxy.num_accepted <= 2 * MAX_CALLS


@in_each_loop
async def test_calls_that_wait_for_their_turn_do_not_ping_a_silent_server(far_connection, server, proxy):
    server.pause()
    calls = [asyncio.create_task(far_connection.call("dead")) for _ in range(20 * MAX_CALLS)]
    await become(lambda: proxy.num_accepted > MAX_CALLS, "those whose turn it is ask")
    for _ in range(5):  # half of the time that is left until they give up: whoever would ask has asked
        await asyncio.sleep(TICK_S)
    assert proxy.num_accepted <= 2 * MAX_CALLS
    server.resume()
    await asyncio.wait(calls)


@pytest.fixture
def idler(client):
    """A user of the server that may do hardly anything, and its password."""
    client.execute_command("ACL", "SETUSER", "idler", "on", ">hidden", "+ping")
    yield "idler", "hidden"
    client.execute_command("ACL", "DELUSER", "idler")


async def test_who_is_not_let_in_is_told_that_the_queue_cannot_be_used(server, idler, caplog):
    name, password = idler
    for word, reason in ((password, "NoPermission"), ("mistaken", "Authentication")):
        async with RedisQueue(f"redis://{name}:{word}@{HOST}:{server.port}/0", QueueSettings()) as queue:
            with pytest.raises(Unavailable):
                await queue.stats()
            assert reason in caplog.text
        assert word not in caplog.text


async def test_a_refusal_that_passes_is_an_outage(client, server, make_request):
    async with RedisQueue(server.url, QueueSettings()) as queue:
        await queue.stats()
        client.config_set("min-replicas-to-write", 1)
        async with refused_within(SOON_S):
            await queue.submit([make_request("a-0")])
        client.config_set("min-replicas-to-write", 0)
        await back(queue._connection)
        assert await queue.submit([make_request("b-0")]) == ["b-0"]
