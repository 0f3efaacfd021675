"""API keys at rest: a file that is always whole, that only its owner reads, and that gives no key away."""

import multiprocessing
import stat
import threading
from concurrent.futures import ProcessPoolExecutor

import msgspec
import pytest

from service.errors import SettingError
from service.keys import ApiKey, FileKeys, create_key, digest_of


def test_a_key_is_256_random_bits_of_which_the_hash_is_kept():
    secret, key = create_key("alice", 60)
    other, _ = create_key("alice", 60)
    assert len(bytes.fromhex(secret.removeprefix("mg_"))) == 32
    assert secret != other
    assert key.digest == digest_of(secret.encode())
    assert key.digest.startswith(key.id)
    assert secret.encode() not in msgspec.json.encode(key)


@pytest.mark.parametrize("tenant", ["", "a b", "a\n", "é", "x" * 65, "a:b"])
def test_what_is_no_name_of_a_tenant_is_refused(tenant):
    with pytest.raises(SettingError, match="tenant"):
        create_key(tenant)


def test_a_rate_is_at_least_one_a_minute():
    with pytest.raises(SettingError, match="rate"):
        create_key("alice", 0)


def test_keys_come_and_go(tmp_path):
    store = FileKeys(tmp_path / "keys.json")
    keys = [create_key(tenant, rate)[1] for tenant, rate in (("alice", None), ("bob", 5))]
    for key in keys:
        store.add(key)
    assert list(store.read()) == keys
    store.revoke(keys[0].id)
    assert list(store.read()) == keys[1:]
    with pytest.raises(SettingError, match=keys[0].id):
        store.revoke(keys[0].id)


def test_the_file_is_its_owners_alone_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "keys.json"
    (tmp_path / ".keys.json.new").write_text("of one that died while it wrote")
    FileKeys(path).add(create_key("alice")[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "no file of API keys"), ('{"keys": [{"tenant": "a"}]}', "digest"), ('{"key": []}', "key"), ("\xff", "keys")],
)
def test_what_is_no_file_of_keys_is_refused_by_name_and_left_as_it_is(tmp_path, content, words):
    path = tmp_path / "keys.json"
    path.write_text(content, "latin-1")
    for call in (FileKeys(path).read, lambda: FileKeys(path).add(create_key("alice")[1])):
        with pytest.raises(SettingError, match=words) as refusal:
            call()
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert path.read_text("latin-1") == content


def test_a_key_where_its_hash_belongs_is_not_quoted(tmp_path):
    secret, key = create_key("alice")
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode({"keys": [msgspec.to_builtins(key) | {"digest": secret}]}))
    with pytest.raises(SettingError) as refusal:
        FileKeys(path).read()
    assert secret not in str(refusal.value)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(SettingError, match="minigpt keys add"):
        FileKeys(tmp_path / "keys.json").read()
    with pytest.raises(SettingError, match="nowhere"):
        FileKeys(tmp_path / "nowhere" / "keys.json").add(create_key("alice")[1])


def add_some(path, count: int) -> list[ApiKey]:
    keys = [create_key("alice")[1] for _ in range(count)]
    for key in keys:
        FileKeys(path).add(key)
    return keys


def test_keys_added_at_once_are_all_kept_and_no_reader_sees_half_a_file(tmp_path):
    path = tmp_path / "keys.json"
    store = FileKeys(path)
    store.add(create_key("first")[1])
    over, seen = threading.Event(), [1]

    def keep_reading() -> None:
        while not over.is_set():
            seen.append(len(store.read()))

    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        reader = threading.Thread(target=keep_reading)
        reader.start()
        added = [key.id for keys in pool.map(add_some, [path] * 3, [20] * 3) for key in keys]
    over.set()
    reader.join()
    assert seen == sorted(seen)
    assert {key.id for key in store.read()} > set(added)
    assert len(store.read()) == 61
