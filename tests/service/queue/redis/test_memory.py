"""What the queue leaves in its server's memory: nothing for ever, and of what ended nothing for long."""

import pytest

from service.config import QueueSettings
from service.protocol import End, Idempotency, TokenLogprobs
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.library import PREFIX
from tests.claims import emission
from tests.fleet.waiting import become

STOP = End(finish_reason="stop")
SCORES = (TokenLogprobs(token_id=1, logprob=-1.0),)


@pytest.fixture
def seen(client):
    """Passes on what a verb answered, once every key that it left has a TTL."""

    def check(answer):
        assert [key for key in client.scan_iter() if client.pttl(key) == -1] == []
        return answer

    return check


@pytest.fixture
def keys_left(client):
    """A function that returns what there is besides the keys that all requests share and those of workers."""
    return lambda: {key for key in map(bytes.decode, client.scan_iter()) if key.count(":") > 2 and ":w:" not in key}


async def test_every_key_has_a_ttl_at_each_moment_and_what_ended_leaves_nothing(
    server, seen, keys_left, make_worker, make_request
):
    async def live(queue):
        worker = seen(make_worker(server.url, name="pod-0", machine="one"))
        choices = [make_request(f"a-{k}", num_choices=4, tenant="t", priority="bulk") for k in range(4)]
        seen(await queue.submit(choices, Idempotency(key="k", digest="d")))
        seen(await queue.submit([make_request("late", deadline_s=0.0)]))
        seen(await queue.reap())
        a, b, c, d = seen(worker.claim(4, 0))
        seen(worker.emit([emission(claim, 1, logprobs=SCORES, prompt_logprobs=SCORES) for claim in (a, b, c, d)]))
        seen(worker.emit([emission(a, base=1, end=STOP), emission(b, 3, 4, base=7)]))  # an end and a gap
        seen(worker.release())
        seen(await queue.cancel(c.request.id))
        seen(worker.register({"tiny": "r1"}))
        first, second = seen(worker.claim(4, 0))
        seen(worker.emit([emission(first, end=STOP)]))
        for place in ("two", "three", "four"):  # the second is the death of each
            worker = seen(make_worker(server.url, name="pod-0", machine=place))
            seen(worker.claim(4, 0))
        assert [dead.id for dead in await queue.dead()] == [second.request.id]

    async with RedisQueue(server.url, QueueSettings(keep_ended_s=0.2, max_attempts=3)) as queue:
        await live(queue)
        for_long = {f"{PREFIX}:i:t:k"}  # an idempotency key has the TTL of the longest answer
        await become(lambda: keys_left() <= for_long, "what ended is forgotten")


def test_a_shared_key_that_went_after_long_silence_comes_back_with_a_ttl(server, client, seen, make_worker):
    worker = make_worker(server.url)
    client.delete(f"{PREFIX}:room", f"{PREFIX}:n")
    assert worker.claim(1, 0) == []
    assert seen(worker.renew())
