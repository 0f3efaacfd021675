"""What crosses the socket between a worker and the queue: calls and replies in MessagePack, behind their length."""

import struct
from pathlib import Path

from service.errors import SettingError
from service.protocol import Emission, Wire

MAX_FRAME_BYTES = 64 * 2**20
LENGTH = struct.Struct(">I")
SCHEME = "local://"


class RegisterCall(Wire, frozen=True, kw_only=True, tag="register"):
    """`WorkerQueue.register`; answered with the worker's name."""

    models: dict[str, str]


class JoinCall(Wire, frozen=True, kw_only=True, tag="join"):
    """Makes this connection another one of `worker`; answered with nil."""

    worker: str


class ClaimCall(Wire, frozen=True, kw_only=True, tag="claim"):
    """`WorkerQueue.claim`; answered with claims."""

    max_requests: int
    wait_s: float


class EmitCall(Wire, frozen=True, kw_only=True, tag="emit"):
    """`WorkerQueue.emit`; answered with statuses."""

    emissions: tuple[Emission, ...]


class RenewCall(Wire, frozen=True, kw_only=True, tag="renew"):
    """`WorkerQueue.renew`; answered with a bool."""


class RetireCall(Wire, frozen=True, kw_only=True, tag="retire"):
    """`WorkerQueue.retire`; answered with nil."""


class ReleaseCall(Wire, frozen=True, kw_only=True, tag="release"):
    """`WorkerQueue.release`; answered with nil."""


Call = RegisterCall | JoinCall | ClaimCall | EmitCall | RenewCall | RetireCall | ReleaseCall


class FrameError(Exception):
    """What came is no frame, or no call is due."""


def socket_path(url: str) -> Path:
    """Return the path in `local:///path/to/socket`.

    Raises:
        SettingError: another kind of address.
    """
    path = Path(url.removeprefix(SCHEME))
    if not url.startswith(SCHEME) or not path.is_absolute():
        raise SettingError(f"queue = '{url}': write local:///path/to/socket")
    return path


def queue_url(path: Path) -> str:
    """Return the address of the queue behind the socket at `path`."""
    return f"{SCHEME}{path}"


def frame(payload: bytes) -> bytes:
    """Return `payload` behind its length.

    Raises:
        FrameError: it is too long.
    """
    return LENGTH.pack(checked_size(len(payload))) + payload


def take_frame(buffer: bytearray) -> bytes | None:
    """Cut the first whole frame out of `buffer` and return what it carries; `None`: it is not all there.

    Raises:
        FrameError: it is too long.
    """
    if len(buffer) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack_from(buffer)
    end = LENGTH.size + checked_size(size)
    if len(buffer) < end:
        return None
    payload = bytes(buffer[LENGTH.size : end])
    del buffer[:end]
    return payload


def checked_size(size: int) -> int:
    """Return `size`, the bytes of a frame.

    Raises:
        FrameError: they are too many.
    """
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES}")
    return size
