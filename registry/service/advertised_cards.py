"""What the live cards of a discovery store say, as far as a comparison with the registry needs it.

Others write them, so nothing is believed: of each card a few fields are kept, of those that are
well-formed. What cards have in common is kept once, as thousands of instances serve one model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from registry.core.checks import check_checksum
from registry.core.identity import Identity
from registry.core.public_urls import URL_MAX, PublicUrls
from registry.core.records import ArtifactKey, Owner
from registry.core.text import shown, shown_url
from registry.discovery import Discovery, Kind, Record, Scannable
from registry.errors import Invalid
from registry.store.owner_columns import identity
from registry.store.reads.advertised import FileKey

LIVENESS_S = 30.0
"""For a store that does not say how long the dead stay live."""

CARD_FILES_MAX = 1000
FILES_MAX = 200_000
"""How many files are taken of one card, and of all. A card with more is left out."""

NAME_MAX = 1000


class CardTarget(NamedTuple):
    """A file of a card at a URL of this registry. `key` is None where no key can look like it, and
    then `url` is that URL as messages show it."""

    key: FileKey | None
    checksum: str
    url: str


class CardFiles(NamedTuple):
    """The files of a card: those at URLs of this registry, the URL of the first that is elsewhere
    as messages show it, and the names with checksums of all, or None where one is not well-formed.
    """

    here: tuple[CardTarget, ...]
    elsewhere: str | None
    contents: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, slots=True)
class AdvertisedCard:
    """A live card, and whose it is."""

    identity: Identity
    name: str
    source_path: str
    files: CardFiles


@dataclass(frozen=True, slots=True)
class DiscoveryLook:
    """The live cards at one moment. `listed` has those as well that cannot be read, whose number is
    `unreadable`."""

    listed: frozenset[Identity]
    cards: tuple[AdvertisedCard, ...]
    unreadable: int = 0

    @property
    def keys(self) -> list[FileKey]:
        """What the cards name at URLs of this registry."""
        found = (target.key for card in self.cards for target in card.files.here)
        return [key for key in dict.fromkeys(found) if key is not None]


def liveness_of(store: Discovery) -> float:
    """How long the dead stay live in a store, in seconds."""
    return store.liveness_s if isinstance(store, Scannable) else LIVENESS_S


def look_at_discovery(
    store: Discovery, public: PublicUrls, namespaces: Collection[str] = ()
) -> DiscoveryLook:
    """The live cards of a store, or of some namespaces of it.

    Raises:
        DiscoveryUnavailable: the store cannot be read.
    """
    records = store.scan if isinstance(store, Scannable) else store.list
    return read_cards(records(Kind.MODEL), public, namespaces)


def read_cards(
    records: Iterable[Record], public: PublicUrls, namespaces: Collection[str] = ()
) -> DiscoveryLook:
    """What records say. Each is let go of before the next is taken."""
    reader = _Reader(public)
    listed, cards, unreadable = [], [], 0
    for record in records:
        owner = record.key.owner
        if namespaces and owner.namespace not in namespaces:
            continue
        listed.append(identity(owner))
        card = reader.read(record)
        if card is None:
            unreadable += 1
        else:
            cards.append(card)
    return DiscoveryLook(frozenset(listed), tuple(cards), unreadable)


class _Destination(NamedTuple):
    """Where a URL leads: to a key of this registry, or elsewhere; and the name of the file."""

    is_here: bool
    key: FileKey | None
    filename: str


class _Reader:
    """Reads cards, those of one look."""

    def __init__(self, public: PublicUrls) -> None:
        self._public = public
        self._room = FILES_MAX
        self._places: dict[str, _Destination] = {}
        self._files: dict[CardFiles, CardFiles] = {}
        self._texts: dict[str, str] = {}

    def read(self, record: Record) -> AdvertisedCard | None:
        """A card, or None: it is none, or has more files than are taken."""
        try:
            card = record.card
        except Invalid:
            return None
        places = card.places
        if len(places) > min(CARD_FILES_MAX, self._room):
            return None
        files = self._read_files(places)
        found = self._files.setdefault(files, files)
        if found is files:
            self._room -= len(places)
        source_path = card.content.get("source_path")
        return AdvertisedCard(
            identity(record.key.owner),
            self._text_of(card.name),
            self._text_of(source_path),
            found,
        )

    def _text_of(self, value: object) -> str:
        text = value if isinstance(value, str) and len(value) <= NAME_MAX else ""
        return self._texts.setdefault(text, text)

    def _read_files(self, places: Iterable[Mapping[str, Any]]) -> CardFiles:
        here: dict[CardTarget, None] = {}
        contents: set[tuple[str, str]] = set()
        elsewhere: str | None = None
        is_whole = True
        for said in places:
            url, checksum = said["path"], said["checksum"]
            place = self._place_of(url) if isinstance(url, str) else None
            if place is None or not _is_checksum(checksum):
                is_whole = False
                continue
            contents.add((place.filename, checksum))
            if place.is_here:
                shown_here = shown(shown_url(url)) if place.key is None else ""
                here[CardTarget(place.key, checksum, shown_here)] = None
            elif elsewhere is None:
                elsewhere = shown(shown_url(url))
        return CardFiles(tuple(here), elsewhere, tuple(sorted(contents)) if is_whole else None)

    def _place_of(self, url: str) -> _Destination | None:
        """None: it is no URL and no path."""
        place = self._places.get(url)
        if place is None:
            if not 0 < len(url) <= URL_MAX:
                return None
            path = self._public.find_path(url)
            place = _Destination(path is not None, _key_in(path), _filename_in(url))
            if len(self._places) < FILES_MAX:
                self._places[url] = place
        return place


def _is_checksum(value: object) -> bool:
    try:
        check_checksum(value if isinstance(value, str) else "")
    except Invalid:
        return False
    return True


def _filename_in(url: str) -> str:
    try:
        return unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        return url.rpartition("/")[2]


def _key_in(path: str | None) -> FileKey | None:
    """The key that a path behind `/v1/metadata/` names, with or without an endpoint."""
    names = [] if path is None else path.split("/")
    try:
        names = [unquote(name, errors="strict") for name in names]
        if len(names) == 3:
            return _checked(FileKey("", "", "", *names))
        if len(names) == 6:
            Owner(names[0], names[1], names[2], 0)
            return _checked(FileKey(*names))
    except (Invalid, ValueError):
        pass
    return None


def _checked(key: FileKey) -> FileKey:
    ArtifactKey(key.slug, key.suffix, key.filename)
    return key


def shown_names(names: Iterable[str]) -> str:
    """The first few of some names, for a message."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(shown(name) for name in listed[:3]) + more
