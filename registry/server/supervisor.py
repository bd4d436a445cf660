"""What systemd and the service tell each other: that it serves, and that a reload is no end."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def is_service() -> bool:
    """Whether systemd started this process, and no terminal is behind it that could hang up."""
    if "INVOCATION_ID" not in os.environ:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return True
    return False


def tell_ready() -> None:
    """Say that requests are taken, to whoever waits for it (`Type=notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.sendto(b"READY=1", "\0" + address[1:] if address[0] == "@" else address)
