"""The files that live cards name, by their URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import httptools

from registry.core.checks import check_checksum
from registry.discovery import Change, Record, RecordKey
from registry.errors import Invalid
from registry.server.file_keys import PREFIX
from registry.server.hosts import Authority, find_authority

URL_MAX = 8192
PORTS = {b"http": 80, b"https": 443}


class Address(NamedTuple):
    """Where a URL of a metadata file leads, however it is written. The authority has a port."""

    authority: Authority
    segments: tuple[bytes, ...]


class AdvertisedFile(NamedTuple):
    """A file of a live card. `max_bytes` is the size that the card gives it, if it does."""

    url: str
    checksum: str
    max_bytes: int | None


def address_of(url: bytes) -> Address | None:
    """Where a URL leads, or None: it is not the URL of a metadata file."""
    if len(url) > URL_MAX:
        return None
    try:
        parts = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return None
    scheme, host, path = (parts.schema or b"").lower(), parts.host or b"", parts.path or b""
    if scheme not in PORTS or parts.userinfo or parts.query or not path.startswith(PREFIX):
        return None
    authority = find_authority(b"[" + host + b"]" if b":" in host else host)
    if authority is None:
        return None
    segments = tuple(unquote_to_bytes(segment) for segment in path.split(b"/"))
    return Address((authority[0], parts.port or PORTS[scheme]), segments)


class AdvertisedFiles:
    """What is told of live cards, for one event loop."""

    def __init__(self) -> None:
        self._of_cards: dict[RecordKey, dict[Address, AdvertisedFile]] = {}
        self._by_address: dict[Address, dict[RecordKey, AdvertisedFile]] = {}
        self._authorities: Counter[Authority] = Counter()

    def knows(self, authority: Authority) -> bool:
        """Whether a live card names a file there."""
        return authority in self._authorities

    def find(self, address: Address) -> AdvertisedFile | None:
        """The file at an address, as the card that came last says, or None: no card names it."""
        named = self._by_address.get(address)
        return next(reversed(named.values())) if named else None

    def apply(self, change: Change) -> None:
        """Take in that a record is live, or is not any more."""
        self._forget(change.key)
        files = {} if change.record is None else dict(_files_of(change.record))
        if files:
            self._of_cards[change.key] = files
            self._authorities.update(address.authority for address in files)
            for address, file in files.items():
                self._by_address.setdefault(address, {})[change.key] = file

    def keep_only(self, keys: Iterable[RecordKey]) -> None:
        """Forget every record but these."""
        for key in self._of_cards.keys() - set(keys):
            self._forget(key)

    def _forget(self, key: RecordKey) -> None:
        for address in self._of_cards.pop(key, ()):
            named = self._by_address[address]
            del named[key]
            if not named:
                del self._by_address[address]
            self._authorities[address.authority] -= 1
            if not self._authorities[address.authority]:
                del self._authorities[address.authority]


def _files_of(record: Record) -> Iterator[tuple[Address, AdvertisedFile]]:
    """The files of a card that can be fetched; others are for somebody else to complain of."""
    try:
        places = record.card.places
    except Invalid:
        return
    for place in places:
        url, checksum, size = place["path"], place["checksum"], place.get("size")
        if not isinstance(url, str) or not isinstance(checksum, str):
            continue
        try:
            check_checksum(checksum)
        except Invalid:
            continue
        bare = url.partition("#")[0]
        address = address_of(bare.encode(errors="replace"))
        if address is not None and (size is None or (type(size) is int and size >= 0)):
            yield address, AdvertisedFile(bare, checksum, size)
