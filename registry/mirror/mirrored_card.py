"""What a card says to a mirror: which files its owner serves, and where they may be had.

A card that names this registry without saying where its files came from is that of a worker which
registered them itself. It is left alone.

A mirror that changes a card keeps in each URL's fragment where the file came from, so that an
emptied registry can be filled again: `http://registry/v1/metadata/.../config.json#origin=http%3A...`
A fragment is never sent, and the URL names its file as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from registry.client.endpoint import Endpoint
from registry.client.protocol import content_path
from registry.core.checks import check_checksum, check_filename, check_slug
from registry.core.hashing import checksum_of
from registry.core.model_revisions import revision_slug
from registry.core.records import ArtifactKey, Owner
from registry.core.slugs import slugify
from registry.core.text import shown
from registry.discovery import Record
from registry.discovery.cards import SIZE_MAX, URL_MAX, Card
from registry.errors import Invalid

FILES_MAX = 1000
"""What a registry takes in one manifest."""

CONTENT_PREFIX = "/v1/metadata/"
_ORIGIN = "origin="


@dataclass(frozen=True, slots=True)
class MirroredFile:
    """A file of a card. `size` is what the card says it has at most, if it says that; `sources` are
    URLs and paths where its worker has it; `url` is what the card names, without a fragment."""

    filename: str
    checksum: str
    size: int | None
    sources: tuple[str, ...]
    url: str


@dataclass(frozen=True, slots=True)
class MirroredCard:
    """The files of a card that is to be mirrored, and the slug under which they are registered.

    `as_revision`: the card names this registry already, with the slug of a revision (S17).
    """

    owner: Owner
    slug: str
    files: tuple[MirroredFile, ...]
    as_revision: bool = False

    @property
    def digest(self) -> str:
        """What names the slug and the files, wherever they may be had."""
        lines = sorted(f"{file.filename}\0{file.checksum}\n" for file in self.files)
        return checksum_of(f"{self.slug}\n{''.join(lines)}".encode())

    @property
    def revision_slug(self) -> str:
        """The slug under which the files are registered if others have the card's (S17)."""
        return revision_slug(self.slug, ((file.filename, file.checksum) for file in self.files))

    def key(self, file: MirroredFile, slug: str | None = None) -> ArtifactKey:
        """What a file is registered under."""
        return ArtifactKey(slug or self.slug, self.owner.suffix, file.filename)


class HereUrls:
    """The URLs of one registry as frontends see them.

    Args:
        bases: its URLs; the first is the one that cards are made to name.
    """

    def __init__(self, *bases: str) -> None:
        self._bases = bases

    def has(self, url: str) -> bool:
        """Whether a URL is that of content of this registry."""
        return any(url.startswith(base + CONTENT_PREFIX) for base in self._bases)

    def url_of(self, key: ArtifactKey, owner: Owner) -> str:
        """Where this registry serves what an owner holds."""
        endpoint = Endpoint(owner.namespace, owner.component, owner.endpoint)
        return self._bases[0] + content_path(key, endpoint)


def read_card(record: Record, here: HereUrls) -> MirroredCard | None:
    """What a record says, or None: it is the card of a worker that registered its files itself.

    Raises:
        Invalid: the card cannot be mirrored.
    """
    card = record.card
    places = card.places
    if not places:
        raise Invalid("it names no files")
    files: dict[str, MirroredFile] = {}
    for place in places:
        file = _read_place(place, here)
        other = files.setdefault(file.filename, file)
        if other.checksum != file.checksum:
            raise Invalid(f"it has two files {shown(file.filename)}")
        if len(files) > FILES_MAX:
            raise Invalid(f"it has more than {FILES_MAX} files")
    if not any(file.sources for file in files.values()):
        return None
    owner = record.key.owner
    slug = _slug_of(card, owner, files.values())
    mirrored = MirroredCard(owner, slug, tuple(files.values()))
    revision = mirrored.revision_slug
    is_named = any(_key_in(f.url)[0] == revision and here.has(f.url) for f in files.values())
    return replace(mirrored, as_revision=is_named)


def pointed_here(record: Record, urls: Mapping[str, str]) -> Record:
    """The same record with a card whose files are at `urls`, by filename. Nothing else of it is
    changed, and where each file came from stands behind its URL.

    Raises:
        Invalid: a URL would be too long.
    """

    def path_of(place: Mapping[str, Any]) -> str:
        path, origin = _split(str(place["path"]))
        url = f"{urls[_filename_in(path)]}#{_ORIGIN}{quote(origin or path, safe=_UNQUOTED)}"
        if len(url) > URL_MAX:
            raise Invalid(f"the URL of {shown(_filename_in(path))} would be too long")
        return url

    card = record.card.with_paths(path_of)
    return Record(record.key, {**record.content, "card_json": dict(card.content)})


_UNQUOTED = "/:?@!$&'()*+,;=~"
"""What may stand in a fragment as it is."""


def _read_place(place: Mapping[str, Any], here: HereUrls) -> MirroredFile:
    path, checksum, size = place["path"], place["checksum"], place.get("size")
    if not isinstance(path, str) or not path.isprintable() or not 0 < len(path) <= URL_MAX:
        raise Invalid(f"it has a file at {shown(path)}, which is no path and no URL")
    if not isinstance(checksum, str):
        raise Invalid(f"the checksum of {shown(path)} is {shown(checksum)}")
    check_checksum(checksum)
    if size is not None and (type(size) is not int or not 0 <= size <= SIZE_MAX):
        raise Invalid(f"the size of {shown(path)} is {shown(size)}")
    url, origin = _split(path)
    sources = [] if here.has(url) else [url]
    if origin and origin not in sources and not here.has(origin):
        sources.insert(0, origin)
    return MirroredFile(_filename_in(url), checksum, size, tuple(sources), url)


def _split(path: str) -> tuple[str, str]:
    """A URL without its fragment, and where its file came from, or "": that is not said."""
    if not is_url(path):
        return path, ""
    url, _, fragment = path.partition("#")
    if not fragment.startswith(_ORIGIN):
        return url, ""
    origin = unquote(fragment.removeprefix(_ORIGIN))
    return url, origin if origin.isprintable() else ""


def is_url(path: str) -> bool:
    """Whether what a card names is a URL. Anything else is a path on some host."""
    return path.startswith(("http://", "https://"))


def _filename_in(path: str) -> str:
    try:
        place = urlsplit(path).path if is_url(path) else path
        name = place.rpartition("/")[2]
        filename = unquote(name, errors="strict") if is_url(path) else name
    except ValueError:
        raise Invalid(f"{shown(path)} is no URL") from None
    check_filename(filename)
    return filename


def _slug_of(card: Card, owner: Owner, files: Iterable[MirroredFile]) -> str:
    """The slug under which the worker serves the files, so that its URLs name the same keys here;
    where they do not say it, the one in the card."""
    found = {_key_in(file.sources[0] if file.sources else file.url) for file in files}
    if len(found) == 1:
        slug, suffix = found.pop()
        if suffix == owner.suffix:
            return slug
    # A LoRA's files are those of its base model, which is not the one in `slug`.
    base_name = card.content.get("source_path") if owner.lora_slug is not None else None
    if isinstance(base_name, str) and base_name:
        return slugify(base_name)
    said = card.content.get("slug")
    if not isinstance(said, str):
        return slugify(card.name)
    check_slug("slug", said)
    return said


def _key_in(url: str) -> tuple[str, str]:
    """Slug and suffix in the URL of a registry's content; twice "" if it is none."""
    try:
        path = urlsplit(url).path if is_url(url) else ""
    except ValueError:
        return "", ""
    _, marker, rest = path.partition(CONTENT_PREFIX)
    names = rest.split("/")
    if not marker or len(names) not in (3, 6):
        return "", ""
    try:
        check_slug("slug", names[-3])
    except Invalid:
        return "", ""
    return names[-3], names[-2]
