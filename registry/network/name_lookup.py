"""Looking up the addresses of a host, which nothing can stop: in a thread that nobody waits for."""

from __future__ import annotations

import socket
from concurrent.futures import Future

from registry.core import background


def begin_lookup(host: str, port: int) -> Future[list[str]]:
    """Begin to look up a name: every address once, in the order of preference.

    Raises:
        OSError: no thread can be started for it.
    """

    def look_up() -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))

    try:
        return background.begin(look_up, "registry-names")
    except RuntimeError as error:
        raise OSError(f"no thread can be started to look up a name: {error}") from error


def is_address(host: str) -> bool:
    """Whether a host is given as an address, so that there is nothing to look up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False
