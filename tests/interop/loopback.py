"""Brings up loopback in a new network namespace, then becomes the command that is given:

unshare --map-root-user --net python -m tests.interop.loopback COMMAND...
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")


def bring_up(name: bytes = b"lo") -> None:
    """Bring an interface up, without tools that a machine may lack."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, SIOCGIFFLAGS, _IFREQ.pack(name, 0))
        flags = _IFREQ.unpack(found)[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, _IFREQ.pack(name, flags | IFF_UP))


if __name__ == "__main__":
    bring_up()
    os.execvp(sys.argv[1], sys.argv[1:])
