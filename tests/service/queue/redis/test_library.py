"""The Lua library: loaded where it is missing, under a version of its own, on each kind of server."""

import asyncio

import pytest
import redis
from redis.asyncio import Redis

from service.queue.redis import library as module
from service.queue.redis.library import call, call_async, library, line_of
from tests.fleet.redis_server import find_programs


@pytest.fixture(params=find_programs())
def any_client(request, redis_servers):
    """Of a server of each kind, with nothing in it."""
    with redis_servers(request.param).client() as client:
        client.flushall()
        client.function_flush()
        yield client


@pytest.fixture
def other_release(monkeypatch):
    """Makes the library of a release that keeps another number of the dead."""

    def make():
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_DEAD", module.MAX_DEAD + 1)
            library.cache_clear()
            other = library()
        library.cache_clear()
        return other

    yield make
    library.cache_clear()


def loaded(client):
    return {told[1].decode() for told in client.function_list()}


def test_the_version_changes_with_the_text_and_with_nothing_else(other_release):
    here, other = library(), other_release()
    assert library() == here
    assert other[0] != here[0]
    assert other[0] in other[1]


def test_it_is_loaded_where_it_is_missing_and_again_after_a_flush(any_client):
    for _ in range(2):
        assert call(any_client, "dead") == []
        assert loaded(any_client) == {f"minigpt_{library()[0]}"}
        any_client.function_flush()


async def test_many_may_load_it_at_once(any_client):
    port = any_client.connection_pool.connection_kwargs["port"]
    async with Redis(port=port, protocol=2) as client:
        assert await asyncio.gather(*(call_async(client, "dead") for _ in range(20))) == [[]] * 20


def test_two_releases_share_a_server(any_client, other_release):
    version, text = other_release()
    any_client.function_load(text)
    assert call(any_client, "dead") == []
    assert any_client.fcall(f"dead_{version}", 1, module.PREFIX) == []
    assert loaded(any_client) == {f"minigpt_{library()[0]}", f"minigpt_{version}"}


def test_a_mistake_in_a_call_is_told_and_not_tried_again(any_client):
    call(any_client, "dead")
    with pytest.raises(redis.ResponseError, match="user_function"):
        call(any_client, "claim")
    with pytest.raises(redis.ResponseError, match=module.MISSING):
        call(any_client, "no_such_verb")


@pytest.mark.parametrize("refusal", module.PASSING)
def test_a_refusal_that_passes_is_an_error_of_the_connection(refusal):
    with pytest.raises(redis.ConnectionError, match=refusal.strip()):
        module._require_missing(redis.ResponseError(f"{refusal} and so on"))


def test_a_line_is_of_one_revision_of_one_model():
    lines = {line_of(model, revision) for model in ("a", "ab") for revision in ("bc", "c")}
    assert len(lines) == 4
    assert all(line.isalnum() for line in lines)
