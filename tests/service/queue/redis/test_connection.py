"""A gateway's way to the server: no call gets another's reply, none waits for a server that is away, none is stuck."""

import asyncio
import contextlib
import time

import pytest

from service.config import QueueSettings
from service.errors import Unavailable
from service.queue.redis.address import Address
from service.queue.redis.connection import ANSWER_WITHIN_S, MAX_CALLS, Connection
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.subscriptions import Subscriptions
from tests.fleet.redis_server import HOST
from tests.fleet.waiting import PATIENCE_S

SOON_S = 4 * ANSWER_WITHIN_S
"""Far more than a refusal takes, and far less than an answer that never comes."""
MOMENT_S = 0.001


async def back(connection):
    """Return once the server is found to be back."""
    async with asyncio.timeout(PATIENCE_S):
        while connection.is_down:
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def refused_within(seconds):
    began = time.monotonic()
    with pytest.raises(Unavailable, match="retry") as refusal:
        yield
    assert refusal.value.retry_after_s > 0
    assert time.monotonic() - began < seconds


def test_a_cancelled_call_leaves_no_reply_for_the_next(run_in_loop, proxy, far_url, make_request):
    async def main():
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

    run_in_loop(main())


def test_a_cancelled_call_ends_at_once_wherever_it_stands(run_in_loop, server):
    async def main():
        async with Connection(Address(server.url)) as connection:
            await connection.call("stats")
            server.pause()
            for num_steps in range(30):
                call = asyncio.create_task(connection.call("stats"))
                for _ in range(num_steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
                assert call.cancelled()

    run_in_loop(main())


def test_leaving_never_hangs_wherever_a_subscription_stands(run_in_loop, proxy, far_url):
    proxy.latency_s = 2 * MOMENT_S

    async def main():
        for i in range(20):
            async with asyncio.timeout(PATIENCE_S), Connection(Address(far_url)) as connection:
                connection.start(Subscriptions(connection, "g").keep_listening())
                await asyncio.sleep(i * MOMENT_S)

    run_in_loop(main())


def test_leaving_never_hangs_where_the_server_is_away(run_async, server):
    async def main():
        async with asyncio.timeout(PATIENCE_S), Connection(Address(server.url)) as connection:
            connection.start(Subscriptions(connection, "g").keep_listening())
            await connection.call("stats")
            server.pause()
            connection.start(connection.persist("stats", for_s=PATIENCE_S))
            with pytest.raises(Unavailable):
                await connection.call("stats")

    began = time.monotonic()
    run_async(main())
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_server_that_is_away_is_told_in_time_then_at_once_until_it_is_back(run_async, server):
    async def main():
        async with Connection(Address(server.url)) as connection:
            await connection.call("stats")
            server.pause()
            with refused_within(SOON_S):
                await connection.call("stats")
            with refused_within(ANSWER_WITHIN_S / 2):
                await connection.call("stats")
            assert connection.is_down
            server.resume()
            await back(connection)
            assert await connection.call("dead") == []

    run_async(main())


def test_many_calls_are_refused_together_while_the_server_is_away(run_async, server):
    async def main():
        async with Connection(Address(server.url)) as connection:
            await connection.call("stats")
            server.pause()
            began = time.monotonic()
            calls = (connection.call("stats") for _ in range(5 * MAX_CALLS))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, Unavailable) for answer in answers)
            assert time.monotonic() - began < SOON_S  # those who waited for their turn too

    run_async(main())


def test_a_call_over_a_connection_that_was_reset_is_tried_once_more_at_once(run_in_loop, proxy, far_url):
    async def main():
        async with Connection(Address(far_url)) as connection:
            await asyncio.gather(*(connection.call("stats") for _ in range(4)))
            for is_noticed in (False, True):
                proxy.reset()
                await asyncio.sleep(0.02 if is_noticed else 0)
                assert await connection.call("dead") == []
            assert not connection.is_down

    run_in_loop(main())
    assert proxy.num_broken > 0


def test_persistence_waits_for_the_server_and_no_longer_than_it_is_told(run_async, server):
    async def main():
        async with Connection(Address(server.url)) as connection:
            await connection.call("stats")
            server.pause()
            with refused_within(SOON_S):
                await connection.persist("dead", for_s=0.1)
            asyncio.get_running_loop().call_later(0.2, server.resume)
            assert await connection.persist("dead", for_s=PATIENCE_S) == []

    run_async(main())


def test_however_many_calls_at_once_the_connections_are_few(run_in_loop, proxy, far_url):
    async def main():
        async with Connection(Address(far_url)) as connection:
            answers = await asyncio.gather(*(connection.call("dead") for _ in range(20 * MAX_CALLS)))
            assert answers == [[]] * len(answers)

    run_in_loop(main())
    assert proxy.num_accepted <= 2 * MAX_CALLS


def test_calls_that_wait_for_their_turn_do_not_ask_a_silent_server_whether_it_lives(
    run_in_loop, server, proxy, far_url
):
    async def main():
        async with Connection(Address(far_url)) as connection:
            server.pause()
            asyncio.get_running_loop().call_later(0.7, server.resume)
            await asyncio.gather(*(connection.call("dead") for _ in range(20 * MAX_CALLS)), return_exceptions=True)

    run_in_loop(main())
    assert proxy.num_accepted <= 2 * MAX_CALLS


def test_who_is_not_let_in_is_told_that_the_queue_cannot_be_used(run_async, server, client, caplog):
    client.execute_command("ACL", "SETUSER", "idler", "on", ">hidden", "+ping")

    async def main():
        for user, reason in (("idler:hidden", "NoPermission"), ("idler:mistaken", "Authentication")):
            async with RedisQueue(f"redis://{user}@{HOST}:{server.port}/0", QueueSettings()) as queue:
                with pytest.raises(Unavailable):
                    await queue.stats()
                assert reason in caplog.text

    try:
        run_async(main())
    finally:
        client.execute_command("ACL", "DELUSER", "idler")
    assert "hidden" not in caplog.text
    assert "mistaken" not in caplog.text


def test_a_refusal_that_passes_is_an_outage(run_async, client, server, make_request):
    async def main():
        async with RedisQueue(server.url, QueueSettings()) as queue:
            await queue.stats()
            client.config_set("min-replicas-to-write", 1)
            with refused_within(SOON_S):
                await queue.submit([make_request("a-0")])
            client.config_set("min-replicas-to-write", 0)
            await back(queue._connection)
            assert await queue.submit([make_request("b-0")]) == ["b-0"]

    run_async(main())
