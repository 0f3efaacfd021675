"""API keys in Redis: what holds of a file of keys holds here, and without the server the error has no password."""

import pytest

from service.errors import SettingError, Unavailable
from service.keys import create_key
from service.queue.redis.keys import KEY, RedisKeys
from tests.fleet.redis_server import RedisServer, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_keys_come_and_go(server):
    store = RedisKeys(server.url)
    keys = [create_key(tenant, rate)[1] for tenant, rate in (("alice", None), ("bob", 5))]
    for key in keys:
        store.add(key)
    assert sorted(store.read(), key=lambda key: key.tenant) == keys
    store.revoke(keys[0].id)
    assert list(store.read()) == keys[1:]
    with pytest.raises(SettingError, match=keys[0].id):
        store.revoke(keys[0].id)


def test_what_is_no_key_is_refused_by_its_place(server):
    with server.client() as client:
        client.hset(KEY, "x", "{}")
        with pytest.raises(SettingError, match=KEY):
            RedisKeys(server.url).read()
        client.hdel(KEY, "x")


def test_a_server_that_is_not_there_is_named_without_its_password():
    url = f"redis://someone:hidden-word@127.0.0.1:{free_port()}/0"
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1") as refusal:
        RedisKeys(url).read()
    assert "hidden-word" not in str(refusal.value)
