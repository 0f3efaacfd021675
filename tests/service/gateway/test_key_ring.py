"""What a gateway knows of the keys: who it is, how much is left of a rate, and what a broken store changes."""

import asyncio
import hmac
import logging

import pytest

from service.errors import RateLimited, SettingError, Unauthorized, Unavailable
from service.gateway import key_ring
from service.gateway.key_ring import KeyRing
from service.keys import FileKeys, create_key
from tests.fleet.waiting import become


@pytest.fixture
def store(tmp_path):
    return FileKeys(tmp_path / "keys.json")


def add(store: FileKeys, tenant: str, rate: int | None = None) -> bytes:
    secret, key = create_key(tenant, rate)
    store.add(key)
    return secret.encode()


def read(store: FileKeys, clock=lambda: 0.0) -> KeyRing:
    ring = KeyRing(store, clock)
    ring.read()
    return ring


def test_a_key_is_known_by_all_of_it(store):
    alice, bob = add(store, "alice"), add(store, "bob")
    ring = read(store)
    assert ring.admit(alice).tenant == "alice"
    assert ring.admit(bob).tenant == "bob"
    for shown in (alice[:-1], alice + b"0", b"", b"\xff", alice.upper(), None):
        with pytest.raises(Unauthorized):
            ring.admit(shown)


def test_hashes_are_compared_in_constant_time(store, monkeypatch):
    compared = []

    def compare(known: str, shown: str) -> bool:
        compared.append((known, shown))
        return hmac.compare_digest(known, shown)

    alice = add(store, "alice")
    monkeypatch.setattr(key_ring, "compare_digest", compare)
    key = read(store).admit(alice)
    assert compared == [(key.digest, key.digest)]


def test_a_rate_is_used_up_and_comes_back(store):
    now = 100.0
    alice, bob = add(store, "alice", 30), add(store, "bob")
    ring = read(store, lambda: now)
    for _ in range(30):
        ring.admit(alice)
    with pytest.raises(RateLimited) as refusal:
        ring.admit(alice)
    assert refusal.value.retry_after_s == pytest.approx(2.0)
    ring.admit(bob)
    now += 2.0
    ring.admit(alice)
    with pytest.raises(RateLimited):
        ring.admit(alice)
    now += 3600
    for _ in range(30):
        ring.admit(alice)
    with pytest.raises(RateLimited):
        ring.admit(alice)


def test_to_read_the_keys_again_gives_no_rate_back(store):
    alice = add(store, "alice", 1)
    ring = read(store)
    ring.admit(alice)
    ring.read()
    with pytest.raises(RateLimited):
        ring.admit(alice)


def test_before_the_keys_were_read_nobody_comes_in(store):
    with pytest.raises(Unavailable):
        KeyRing(store).admit(add(store, "alice"))


def is_known(ring: KeyRing, shown: bytes) -> bool:
    try:
        ring.admit(shown)
    except Unauthorized:
        return False
    return True


async def test_a_change_of_the_store_holds_here_but_a_broken_file_does_not(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(key_ring, "READ_AGAIN_S", 0.01)
    alice = add(store, "alice")
    ring = read(store)
    with caplog.at_level(logging.WARNING):
        fresh = asyncio.create_task(ring.keep_fresh())
        bob = add(store, "bob")
        await become(lambda: is_known(ring, bob), "the new key is known")
        whole = (tmp_path / "keys.json").read_bytes()
        (tmp_path / "keys.json").write_bytes(whole[:40])
        await become(lambda: caplog.messages, "the broken file is told")
        assert is_known(ring, alice)
        (tmp_path / "keys.json").write_bytes(whole)
        store.revoke(next(key.id for key in store.read() if key.tenant == "alice"))
        await become(lambda: not is_known(ring, alice), "the revoked key is unknown")
        assert is_known(ring, bob)
        fresh.cancel()
    assert [message for message in caplog.messages if "keys.json" not in message] == []
    assert not any(secret.decode() in caplog.text for secret in (alice, bob))


async def test_a_store_that_stays_broken_is_told_once(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(key_ring, "READ_AGAIN_S", 0.001)
    add(store, "alice")
    ring = read(store)
    (tmp_path / "keys.json").write_text("{")
    reads = []
    monkeypatch.setattr(store, "read", lambda: reads.append(1) or FileKeys.read(store))
    with caplog.at_level(logging.WARNING):
        fresh = asyncio.create_task(ring.keep_fresh())
        await become(lambda: len(reads) >= 5, "it has been read again and again")
        fresh.cancel()
    assert len(caplog.messages) == 1


def test_a_broken_file_is_refused_at_start(store, tmp_path):
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(SettingError):
        KeyRing(store).read()
