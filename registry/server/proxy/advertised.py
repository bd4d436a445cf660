"""The files that live cards name, by their URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from registry.core.checks import check_checksum
from registry.discovery import Record, RecordKey
from registry.errors import Invalid
from registry.server.file_keys import PREFIX
from registry.server.hosts import Authority, find_authority, split_url

URL_MAX = 8192
_ORIGIN = "origin="
PORTS = {b"http": 80, b"https": 443}

FILES_OF_A_CARD_MAX = 1000
FILES_MAX = 50_000
"""How many files are known at most; each takes about two kilobytes."""

CLAIMS_MAX = 8
"""How many contents are tried for one URL, if cards contradict each other."""


class Address(NamedTuple):
    """Where a URL of a metadata file leads, however it is written. The authority has a port."""

    authority: Authority
    segments: tuple[bytes, ...]


class AdvertisedFile(NamedTuple):
    """A file of a live card. `max_bytes` is the size that the card gives it, if it does."""

    url: str
    checksum: str
    max_bytes: int | None


Files = Mapping[Address, AdvertisedFile]


def address_of(url: bytes) -> Address | None:
    """Where a URL leads, or None: it is not the URL of a metadata file."""
    parts = split_url(url) if len(url) <= URL_MAX else None
    if parts is None or parts.query is not None or not parts.path.startswith(PREFIX):
        return None
    authority = find_authority(parts.authority)
    if authority is None:
        return None
    segments = tuple(unquote_to_bytes(segment) for segment in parts.path.split(b"/"))
    return Address((authority[0], authority[1] or PORTS[parts.scheme]), segments)


def files_of(record: Record | None) -> dict[Address, AdvertisedFile]:
    """The files of a card that can be fetched; others are for somebody else to complain of.

    Raises:
        Invalid: the card names more than 1000 files.
    """
    found: dict[Address, AdvertisedFile] = {}
    if record is None or not isinstance(record.content.get("card_json"), dict):
        return found
    places = record.card.places
    if len(places) > FILES_OF_A_CARD_MAX:
        raise Invalid(f"it names {len(places)} files, more than {FILES_OF_A_CARD_MAX}")
    for place in places:
        url, checksum, size = place["path"], place["checksum"], place.get("size")
        if not isinstance(url, str) or not isinstance(checksum, str):
            continue
        try:
            check_checksum(checksum)
        except Invalid:
            continue
        if size is not None and (type(size) is not int or size < 0):
            continue
        for each in _urls_in(url):
            address = address_of(each.encode()) if each.isascii() else None
            if address is not None:
                found[address] = AdvertisedFile(each, checksum, size)
    return found


def _urls_in(url: str) -> list[str]:
    """What a card names, and where that was before a mirror rewrote the card: a frontend may have
    read the card before."""
    bare, _, fragment = url.partition("#")
    origin = unquote(fragment.removeprefix(_ORIGIN)) if fragment.startswith(_ORIGIN) else ""
    return [bare, origin.partition("#")[0]] if origin else [bare]


class AdvertisedFiles:
    """What is told of live cards, for one event loop. `is_known`: of all of them, once at least."""

    def __init__(self) -> None:
        self.is_known = False
        self._count = 0
        self._of_cards: dict[RecordKey, Files] = {}
        self._by_address: dict[Address, dict[RecordKey, AdvertisedFile]] = {}
        self._authorities: Counter[Authority] = Counter()

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> set[RecordKey]:
        """The records with files."""
        return set(self._of_cards)

    def knows(self, authority: Authority) -> bool:
        """Whether a live card names a file there."""
        return authority in self._authorities

    def find(self, address: Address) -> list[AdvertisedFile]:
        """The contents that cards name for an address, the one that came last first; the largest
        size of each."""
        found: dict[str, AdvertisedFile] = {}
        for file in reversed(self._by_address.get(address, {}).values()):
            before = found.get(file.checksum)
            if before is None and len(found) >= CLAIMS_MAX:
                continue
            if before is None or (
                before.max_bytes is not None
                and (file.max_bytes is None or file.max_bytes > before.max_bytes)
            ):
                found[file.checksum] = file
        return list(found.values())

    def put(self, key: RecordKey, files: Files) -> bool:
        """Take in what a record names now. False: there is no room for it."""
        self.forget(key)
        if not files:
            return True
        if self._count + len(files) > FILES_MAX:
            return False
        self._count += len(files)
        self._of_cards[key] = files
        self._authorities.update(address.authority for address in files)
        for address, file in files.items():
            self._by_address.setdefault(address, {})[key] = file
        return True

    def forget(self, key: RecordKey) -> None:
        """A record is not live any more."""
        files = self._of_cards.pop(key, {})
        self._count -= len(files)
        for address in files:
            named = self._by_address[address]
            del named[key]
            if not named:
                del self._by_address[address]
            self._authorities[address.authority] -= 1
            if not self._authorities[address.authority]:
                del self._authorities[address.authority]
