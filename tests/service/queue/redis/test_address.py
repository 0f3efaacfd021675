"""Where a queue is: what is an address and what is none, its clients, and that no password of it is ever shown."""

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SettingError
from service.queue.redis.address import EXAMPLES, Address, reason_of, redact
from service.queue.redis.library import PREFIX, call
from tests.fleet.redis_server import HOST, free_port

TAKEN = {
    "redis://host": "redis://host",
    "redis://host:6380/3": "redis://host:6380/3",
    "redis://[::1]:6379/0": "redis://[::1]:6379/0",
    "redis://:word@host": "redis://***@host",
    "redis://user:wo%2Frd@host/0": "redis://***@host/0",
    "rediss://user:word@host:6379/0?ssl_cert_reqs=none": "rediss://***@host:6379/0",
    "redis+sentinel://host/name": "redis+sentinel://host/name",
    "redis+sentinel://user:word@one:26379,two/name/2": "redis+sentinel://***@one:26379,two/name/2",
}
REFUSED = [
    "",
    "host:6379",
    "http://host",
    "unix:///run/redis.sock",
    "redis://",
    "redis:///0",
    "redis://host:0",
    "redis://host:none",
    "redis://host:99999",
    "redis://host/one",
    "redis://host/-1",
    "redis://host/0/1",
    "redis://host/0#part",
    "redis://host/0?no_such_option=1",
    "redis://host/0?socket_timeout=soon",
    "rediss://host/0?ssl_cert_reqs=perhaps",
    "redis://user:5?rest@host/0",
    "redis://user:5#rest@host/0",
    "redis://host/0?ssl_ca_certs=/etc/passwd",
    "redis+sentinel://host",
    "redis+sentinel://host/",
    "redis+sentinel://host:none/name/0",
    "redis+sentinel://host/name/0?ssl_cert_reqs=none",
]
SECRET = "hush"
passwords = st.lists(st.sampled_from([SECRET, *"@/:?%#&=[, 1"]), max_size=6).map(
    lambda parts: SECRET.join(["", *parts])
)
forms = st.sampled_from(
    [
        "redis://user:{}@host:6379/0",
        "rediss://:{}@host",
        "redis://{}@host/0?ssl_cert_reqs=none",
        "redis://host:6379/0?username=user&password={}",
        "redis+sentinel://user:{}@one:26379,two:26379/name/0",
        "http://user:{}@host",
        "{}@host",
    ]
)


@pytest.mark.parametrize("url", TAKEN)
def test_an_address_is_shown_without_password_and_parameters(url):
    assert str(Address(url)) == TAKEN[url]


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_no_address_is_refused_with_examples(url):
    with pytest.raises(SettingError) as refusal:
        Address(url)
    assert EXAMPLES in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_examples_are_addresses():
    for url in EXAMPLES.replace(" or ", ", ").split(", "):
        Address(url)


@given(forms, passwords)
def test_no_part_of_a_password_is_ever_shown(form, password):
    url = form.format(password)
    shown = [redact(url)]
    try:
        address = Address(url)
    except SettingError as refusal:
        shown += [str(refusal), repr(refusal), repr(refusal.__cause__), repr(refusal.__context__)]
    else:
        shown += [str(address), repr(address)]
    assert not any(SECRET in text for text in shown)


@given(st.text(min_size=1))
def test_any_text_is_an_address_or_refused(text):
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}/name/0"):
        try:
            address = Address(url)
        except SettingError:
            continue
        address.connect(1.0).close()


def test_a_client_of_a_sentinel_has_user_password_and_database():
    address = Address("redis+sentinel://us%20er:a%40b@one:26380,two/name/2")
    with address.connect(1.5) as client:
        pool = client.connection_pool
        known = pool.connection_kwargs
        assert (known["username"], known["password"], known["db"]) == ("us er", "a@b", 2)
        assert known["socket_timeout"] == 1.5
        sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        assert [(sentinel["host"], sentinel["port"]) for sentinel in sentinels] == [("one", 26380), ("two", 26379)]
        assert sentinels[0]["password"] is None  # that one is for the servers


def test_user_and_password_let_in_and_a_wrong_one_is_told(client, server):
    password = "a@/:?%#b"
    rights = ("+fcall", "+function|load", "+publish", "+subscribe")
    every = "+@read", "+@write", "+time"
    client.execute_command(
        "ACL", "SETUSER", "app", "on", f">{password}", f"~{PREFIX}*", f"&{PREFIX}:*", *rights, *every
    )
    try:
        quoted = "".join(f"%{ord(char):02x}" for char in password)
        with Address(f"redis://app:{quoted}@{HOST}:{server.port}/0").connect(5.0) as app:
            assert call(app, "dead") == []
            with pytest.raises(redis.exceptions.NoPermissionError):
                app.config_get("dir")
        with (
            Address(f"redis://app:wrong@{HOST}:{server.port}/0").connect(5.0) as stranger,
            pytest.raises(redis.AuthenticationError) as refusal,
        ):
            call(stranger, "dead")
        assert "wrong" not in str(refusal.value).replace("WRONGPASS", "")
    finally:
        client.execute_command("ACL", "DELUSER", "app")


def test_files_that_cannot_be_read_are_refused_by_their_parameters_names(tmp_path):
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        with pytest.raises(SettingError, match=f"rediss://host: the file that {name} names cannot be read") as refusal:
            Address(f"rediss://host?{name}={tmp_path}/none.pem")
        assert "none.pem" not in str(refusal.value)


def test_the_reason_is_what_the_system_says():
    with Address(f"redis://:hidden-word@{HOST}:{free_port()}/0").connect(5.0) as client:
        with pytest.raises(redis.ConnectionError) as error:
            client.ping()
        assert reason_of(error.value) == "Connection refused"
    assert reason_of(redis.ConnectionError("of whatever was sent")) == "ConnectionError"
