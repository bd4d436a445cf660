"""Under which URLs a registry is reached, and whether a card's URL leads there."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from registry.core.text import shown, shown_url
from registry.errors import SettingsError

CONTENT_PREFIX = "/v1/metadata/"
URL_MAX = 8192
PUBLIC_URLS_MAX = 1000
_PORTS = {"http": 80, "https": 443}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::"})

Origin = tuple[str, str, int]
"""Scheme, host and port. The names of loopback are one."""


class PublicUrls:
    """The URLs of one registry as those see them who are to read from it.

    A URL may have a path, where a proxy serves the registry below one.

    Raises:
        SettingsError: one is not the URL of a service.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        self._bases: dict[Origin, tuple[str, ...]] = {}
        for url in urls:
            origin, path = _base_of(url)
            self._bases[origin] = (*self._bases.get(origin, ()), path)

    def find_path(self, url: str) -> str | None:
        """The path of content behind `/v1/metadata/` if a URL is one of this registry's, else None.

        Whatever follows a `?` or a `#` is not looked at: a mirror keeps there where a file is from.
        """
        if len(url) > URL_MAX:
            return None
        try:
            parts = urlsplit(url)
            origin = _origin_of(parts)
        except ValueError:
            return None
        for base in self._bases.get(origin, ()) if origin is not None else ():
            if parts.path.startswith(base + CONTENT_PREFIX):
                return parts.path.removeprefix(base + CONTENT_PREFIX)
        return None


def public_urls_of(scheme: str, hosts: Iterable[str], port: int) -> tuple[str, ...]:
    """The URLs of a service that listens there. There are none to be known of one that listens on
    every address of its host."""
    names = [f"[{host}]" if ":" in host else host for host in hosts if host not in _EVERYWHERE]
    return tuple(dict.fromkeys(f"{scheme}://{name}:{port}" for name in names))


def _base_of(url: str) -> tuple[Origin, str]:
    try:
        parts = urlsplit(url)
        origin = _origin_of(parts)
        is_whole = len(url) <= URL_MAX and not (parts.query or parts.fragment or "@" in url)
        if origin is not None and is_whole and url.isprintable():
            return origin, parts.path.rstrip("/")
    except ValueError:
        pass
    raise SettingsError(
        f"{shown(shown_url(url))} is not a URL under which a registry is reached (public_urls); it "
        "must look like http://registry.example:8090, without user, query and fragment."
    )


def _origin_of(parts: SplitResult) -> Origin | None:
    """Raises: ValueError: the port is none."""
    host = (parts.hostname or "").rstrip(".")
    port = parts.port if parts.port is not None else _PORTS.get(parts.scheme)
    if parts.scheme not in _PORTS or not host or not port:
        return None
    return parts.scheme, "localhost" if host in _LOOPBACK else host, port
