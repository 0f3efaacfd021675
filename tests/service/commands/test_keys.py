"""`minigpt keys …`: a key is shown once, listed by its id, and revoked."""

import json


def test_a_key_is_given_listed_and_revoked(minigpt, refused, tmp_path):
    file = tmp_path / "keys.json"
    environment = {"MINIGPT_KEYS": str(file)}
    added = minigpt("keys", "add", "alice", "--rate=5", env=environment)
    secret = added.stdout.strip()
    assert secret.startswith("mg_")
    assert secret not in file.read_text()
    listed = minigpt("keys", "list", "--json", env=environment)
    [key] = json.loads(listed.stdout)
    assert (key["tenant"], key["rate"]) == ("alice", 5)
    assert key["id"] in added.stderr
    assert secret not in listed.stdout + added.stderr
    assert key["id"] in minigpt("keys", "list", f"--keys={file}").stdout
    assert minigpt("keys", "revoke", key["id"], env=environment).stdout == f"revoked {key['id']}\n"
    assert key["id"] in refused("keys", "revoke", key["id"], env=environment)
    assert json.loads(minigpt("keys", "list", "--json", env=environment).stdout) == []


def test_what_is_no_tenant_or_rate_is_refused(refused, tmp_path):
    keys = f"--keys={tmp_path / 'keys.json'}"
    assert "tenant" in refused("keys", "add", "two words", keys)
    assert "rate" in refused("keys", "add", "alice", "--rate=0", keys)
    assert not (tmp_path / "keys.json").exists()


def test_keys_in_redis_need_its_address(refused):
    assert "--queue" in refused("keys", "list", "--keys=redis")
    assert "hidden-word" not in refused("keys", "list", "--keys=redis", "--queue=redis://a:hidden-word@127.0.0.1:1/0")
