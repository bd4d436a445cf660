"""Names of hosts: what a Host header may be (RFC 9112, 3.2), and which ones are this machine's own.

A web page can have its own name lead to 127.0.0.1 after it was loaded (DNS rebinding). Its
visitor's browser then believes that a service there belongs to the page, and shows the page all its
answers. What gives such a request away is its Host: the page's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from registry.core.text import shown
from registry.errors import Forbidden, Malformed, SettingsError

PORT_MAX = 65_535
REMEMBERED = 64
_split = re.compile(
    rb"[ \t]*(?:\[([0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?)\]|([A-Za-z0-9._~-]{1,255}))"
    rb"(?::([0-9]{0,5}))?[ \t]*"
).fullmatch
_is_name = re.compile(r"[A-Za-z0-9._-]{1,255}").fullmatch

Authority = tuple[str, int | None]
"""A host's name in lower case, without brackets or the dot at its end, and the port if given."""


def find_authority(value: bytes) -> Authority | None:
    """What a Host header says, or None: it is none. Names are those that a network can have, so
    that there is no user, no path and no escape in one."""
    found = _split(value)
    if found is None:
        return None
    port = int(found[3]) if found[3] else None
    if port is not None and port > PORT_MAX:
        return None
    if found[1] is not None:
        address = found[1].decode().lower()
        return (address, port) if ":" in address and _find_address(address) is not None else None
    name = found[2].decode().lower().removesuffix(".")
    return (name, port) if all(name.split(".")) else None


def target_of(url: bytes, host: bytes | None, version: str) -> tuple[bytes, bytes | None]:
    """The path with the query that a request is for, and the host in the target if that is a whole
    URL.

    `host` is the Host header; TWO_HOSTS if there were several, None if there was none.

    Raises:
        Malformed: it does not say for whom it is, or not in one way.
    """
    named = None
    if url[0] != _SLASH and url != b"*":
        url, named = _split_url(url)
    if host is None and named is None and version != "1.0":
        raise Malformed("The request has no Host header, which HTTP/1.1 asks for.")
    if host is TWO_HOSTS:
        raise Malformed("The request has two Host headers. Send one.")
    for each in (host, named):
        if each is not None and find_authority(each) is None:
            raise Malformed(f"The host is {shown(each.decode('latin-1'))}, which is not one.")
    return url, named


TWO_HOSTS = b", "
_SLASH = ord("/")


class UrlParts(NamedTuple):
    """A whole URL in its parts: the scheme in lower case; None for a query that is not there."""

    scheme: bytes
    authority: bytes
    path: bytes
    query: bytes | None


_parts = re.compile(rb"(https?)://([^/?#@\\\x00-\x20]*)(/[^?#]*)?(?:\?([^#]*))?", re.I).fullmatch


def split_url(url: bytes) -> UrlParts | None:
    """The parts of an http URL, or None: it is none, or has a user in it."""
    found = _parts(url)
    return found and UrlParts(found[1].lower(), found[2], found[3] or b"/", found[4])


def _split_url(url: bytes) -> tuple[bytes, bytes]:
    """The path and the host of a target that is a whole URL."""
    parts = split_url(url)
    if parts is None:
        raise Malformed("The target of the request is no http URL. Ask for a path, /v1/... .")
    path = parts.path if parts.query is None else parts.path + b"?" + parts.query
    return path, parts.authority


def _find_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a text; IPv4 that is written as IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine, and nobody else can reach it."""
    address = _find_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def address_of(setting: str) -> str:
    """The address that the setting `host` names, without brackets.

    Raises:
        SettingsError: it is no address and no name of one.
    """
    inner = setting[1:-1] if setting.startswith("[") and setting.endswith("]") else setting
    address = _find_address(inner)
    if address is not None and (inner == setting or address.version == 6 or ":" in inner):
        return inner
    if _is_name(setting) and not _is_numbers(setting):
        return setting
    found = find_authority(setting.encode(errors="replace"))
    if found is not None and ":" in setting:
        hint = f"Give the port apart: --host {found[0]} --port {found[1] or 8090}."
    else:
        hint = "Give one as 127.0.0.1, ::1 or localhost."
    raise SettingsError(f"host is {shown(setting)}, which is not an address. {hint}")


_is_numbers = re.compile(r"[0-9.]+").fullmatch
"""Names of hosts end in a word: what is made of numbers and is no address is a slip."""


class Hosts:
    """Which Host headers a service takes, for one event loop.

    `allowed` are names that are taken beside those of loopback and `own`. With `checks` False any
    is taken.
    """

    def __init__(self, own: str, allowed: Iterable[str], *, checks: bool) -> None:
        self.checks = checks
        self._own = own
        self._allowed = frozenset(_names(allowed))
        self._names = self._allowed | {own.lower()}
        self._known: set[bytes] = set()

    def takes(self, host: bytes) -> bool:
        """Whether requests for this Host are answered."""
        if not self.checks or host in self._known:
            return True
        found = find_authority(host)
        takes = found is not None and self._is_own(found[0])
        if takes and len(self._known) < REMEMBERED:
            self._known.add(host)
        return takes

    def owns(self, url: bytes, authority: bytes, server: tuple[str, int | None] | None) -> bool:
        """Whether a whole URL, with this host and port, is one of this service, at which the
        request came in at the address and port of `server`.

        Elsewhere on this machine others listen; only under names that are allowed is any port this
        service's, as behind a proxy.
        """
        found = find_authority(authority)
        if found is None:
            return False
        name, port = found
        if name in self._allowed:
            return True
        address, own_port = server or ("", None)
        if (port or (443 if url[:6].lower() == b"https:" else 80)) != own_port:
            return False
        return name == address or self._is_own(name)

    def _is_own(self, name: str) -> bool:
        # What ends in .localhost nobody can have lead elsewhere (RFC 6761).
        return name in self._names or is_loopback(name) or name.endswith(".localhost")

    def check(self, host: bytes) -> None:
        """Raise Forbidden for a Host that is not taken."""
        if not self.takes(host):
            raise Forbidden(
                f"The request was sent to {shown(host.decode('latin-1'))}, which is no name of "
                f"this service. Send it to {self._own}, name the host with --allowed-host, or "
                "start the service with a token file or with --insecure."
            )


def _names(allowed: Iterable[str]) -> Iterator[str]:
    for name in allowed:
        text = f"[{name}]" if ":" in name and not name.startswith("[") else name
        found = find_authority(text.encode(errors="replace"))
        if found is None or found[1] is not None:
            raise SettingsError(
                f"allowed_hosts has {shown(name)}, which is no name of a host. Give names or "
                "addresses, without a port."
            )
        yield found[0]
