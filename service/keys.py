"""API keys: who may ask a gateway, for which tenant and how often. What is stored of a key does not give it away.

A key is 256 random bits, so that its plain SHA-256 cannot be searched for: the slow hashes that passwords need would
only make every request slower.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from service.config import parse_settings
from service.errors import SettingError
from training.settings import Settings, require

PREFIX = "mg_"
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiKey(Settings, frozen=True, kw_only=True):
    """What is kept of a key."""

    digest: str
    """SHA-256 of the key, in hex."""
    tenant: str
    """Whose it is: one to 64 letters, digits, dots, dashes and underscores."""
    rate: int | None = None
    """Requests per minute; `None`: as many as the queue takes."""
    created: datetime

    def __post_init__(self) -> None:
        require(re.fullmatch("[0-9a-f]{64}", self.digest) is not None, "digest", "…", "64 hexadecimal digits")
        words = "1 to 64 letters, digits, '.', '-' and '_'"
        require(_TENANT.fullmatch(self.tenant) is not None, "tenant", self.tenant, words)
        require(self.rate is None or self.rate >= 1, "rate", self.rate, "at least 1 a minute, or none")

    @property
    def id(self) -> str:
        """What the key is called in public."""
        return id_of(self.digest)


class KeyStore(Protocol):
    """Where keys are kept: `minigpt keys` changes it, gateways read it."""

    def read(self) -> Sequence[ApiKey]:
        """Return all keys.

        Raises:
            SettingError: what is there are no keys.
            Unavailable: it cannot be reached now.
        """

    def add(self, key: ApiKey) -> None:
        """Keep `key` beside the others."""

    def revoke(self, key_id: str) -> None:
        """Forget the key of this id.

        Raises:
            SettingError: there is none.
        """


def create_key(tenant: str, rate: int | None = None) -> tuple[str, ApiKey]:
    """Return a new key of `tenant`, for whoever will use it, and what is to be kept of it.

    Raises:
        SettingError: no name for a tenant, or no rate.
    """
    secret = PREFIX + secrets.token_hex(32)
    kept = {"digest": digest_of(secret.encode()), "tenant": tenant, "rate": rate}
    return secret, parse_settings(ApiKey, {**kept, "created": datetime.now(UTC).replace(microsecond=0)})


def digest_of(secret: bytes) -> str:
    """Return what is stored of a key, in hex."""
    return hashlib.sha256(secret).hexdigest()


def id_of(digest: str) -> str:
    """Return what the key with this digest is called in public: its beginning."""
    return digest[:12]


class _KeyFile(Settings, frozen=True, kw_only=True):
    keys: tuple[ApiKey, ...] = ()


class FileKeys:
    """A `KeyStore` in a JSON file that only its owner may read. It is replaced whole: nobody sees half of it.

    Args:
        path: The file; the first key makes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Sequence[ApiKey]:
        """Return all keys."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_KeyFile).keys
        except FileNotFoundError as error:
            remedy = f"make it with 'minigpt keys add TENANT --keys {self._path}'"
            raise SettingError(f"{self._path}: no such file; {remedy}") from error
        except OSError as error:
            raise SettingError(f"{self._path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{self._path}: no file of API keys: {error}") from error

    def add(self, key: ApiKey) -> None:
        """Keep `key` beside the others."""
        with self._locked():
            self._write([*(self.read() if self._path.exists() else ()), key])

    def revoke(self, key_id: str) -> None:
        """Forget the key of this id."""
        with self._locked():
            keys = self.read()
            left = [key for key in keys if key.id != key_id]
            if len(left) == len(keys):
                raise SettingError(f"{self._path}: no key with the id '{key_id}'; 'minigpt keys list' shows the ids")
            self._write(left)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the file; the lock is on its folder, for the file itself is replaced."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY)
        except OSError as error:
            raise SettingError(f"{self._path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, keys: Sequence[ApiKey]) -> None:
        aside = self._path.with_name(f".{self._path.name}.new")
        content = msgspec.json.format(msgspec.json.encode(_KeyFile(keys=tuple(keys))))
        try:
            aside.unlink(missing_ok=True)  # of one that died while it wrote
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except OSError as error:
            raise SettingError(f"{self._path}: cannot write: {error.strerror}; what was there is intact") from error
