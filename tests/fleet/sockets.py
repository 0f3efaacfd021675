"""Raw connections, for clients that do not behave."""

import contextlib
import socket


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the other side closes, or breaks off."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65_536):
            received += chunk
    return received
