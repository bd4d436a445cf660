"""Fetch a model's files: every one of them verified, or nothing in the directory changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from registry.client.cache import BlobCache, default_directory
from registry.client.client import RegistryClient
from registry.client.placement import Placed, place
from registry.client.progress import OnProgress, Tally
from registry.client.protocol import Endpoint
from registry.errors import NotRegistered, TooLarge
from registry.files import FileContent
from registry.records import BASE_SUFFIX, ArtifactKey, Entry, check_slug


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What is taken from a service at most, whatever it advertises."""

    file_max_bytes: int = 512 << 20
    total_max_bytes: int = 4 << 30
    files_max: int = 10_000


@dataclass(frozen=True, slots=True)
class Use:
    """The cache has the content."""

    path: Path


@dataclass(frozen=True, slots=True)
class Download:
    """The content must be downloaded."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The content is not taken."""

    reason: str


def decide(
    wanted: Entry, cached: FileContent | None, limits: FetchLimits
) -> Use | Download | Refuse:
    """What to do about one file, given what the cache has under its checksum."""
    if wanted.size > limits.file_max_bytes:
        return Refuse(f"it has {wanted.size} bytes; the limit is {limits.file_max_bytes}")
    if cached is None or (cached.checksum, cached.size) != (wanted.checksum, wanted.size):
        return Download()
    return Use(Path(cached.path))


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that was fetched, and where it is now."""

    key: ArtifactKey
    checksum: str
    size: int
    path: Path
    downloaded: bool


class Resolver:
    """Fetches models from one service into a cache and from there into directories.

    Several processes may share a cache.

    Args:
        service: its URL, or a client that the caller closes.
        cache: where content is kept; by default in the user's cache directory.
    """

    def __init__(
        self,
        service: str | RegistryClient,
        *,
        cache: BlobCache | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        self._owns_client = isinstance(service, str)
        self._client = RegistryClient(service) if isinstance(service, str) else service
        self._cache = cache or BlobCache(default_directory())
        self._limits = limits or FetchLimits()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that this resolver opened."""
        if self._owns_client:
            self._client.close()

    def fetch(
        self,
        slug: str,
        suffix: str = BASE_SUFFIX,
        *,
        to: Path | None = None,
        endpoint: Endpoint | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[FetchedFile]:
        """Every file of a model, verified: in the cache, and with `to` in that directory.

        With an endpoint, only what its owners hold.

        Raises:
            Invalid: slug or suffix is not well-formed.
            NotRegistered: there is no such file.
            TooLarge: more is advertised than the limits allow.
            ChecksumMismatch: other bytes came than were advertised; nothing was placed.
            Unserveable: a file is held, but no holder's bytes are right; nothing was placed.
        """
        check_slug("slug", slug)
        if suffix != BASE_SUFFIX:
            check_slug("suffix", suffix)
        wanted = self._wanted(slug, suffix, endpoint)
        fetched = self._fetched(wanted, endpoint, on_progress)
        if to is None:
            return fetched
        place([Placed(f.key.filename, f.checksum, f.size, f.path) for f in fetched], to)
        return [_moved(file, to) for file in fetched]

    def _wanted(self, slug: str, suffix: str, endpoint: Endpoint | None) -> list[Entry]:
        """What the service has of a model, within the limits."""
        wanted: list[Entry] = []
        for entry in self._client.artifacts(slug=slug, suffix=suffix):
            if endpoint is None or self._client.is_held(entry.key, endpoint):
                wanted.append(entry)
            if len(wanted) > self._limits.files_max:
                raise TooLarge(f"{slug}/{suffix} has more than {self._limits.files_max} files.")
        if not wanted:
            by_whom = f" by {endpoint}" if endpoint else ""
            raise NotRegistered(f"Nothing is registered{by_whom} under {slug}/{suffix}.")
        total = sum(entry.size for entry in wanted)
        if total > self._limits.total_max_bytes:
            raise TooLarge(
                f"The files of {slug}/{suffix} have {total} bytes together; the limit is "
                f"{self._limits.total_max_bytes}."
            )
        return wanted

    def _fetched(
        self, wanted: Sequence[Entry], endpoint: Endpoint | None, on_progress: OnProgress | None
    ) -> list[FetchedFile]:
        """Every file in the cache; those that the cache lacks are downloaded."""
        decisions = {entry.checksum: (entry, self._decision(entry)) for entry in wanted}
        missing = [entry for entry, what in decisions.values() if isinstance(what, Download)]
        tally = Tally("Downloading", sum(entry.size for entry in missing), on_progress)
        paths = {
            checksum: what.path
            for checksum, (_, what) in decisions.items()
            if isinstance(what, Use)
        }
        downloaded = {entry.checksum: self._download(entry, endpoint, tally) for entry in missing}
        paths |= downloaded
        return [
            FetchedFile(e.key, e.checksum, e.size, paths[e.checksum], e.checksum in downloaded)
            for e in wanted
        ]

    def _decision(self, entry: Entry) -> Use | Download:
        cached = self._cache.find(entry.checksum, self._limits.file_max_bytes)
        what = decide(entry, cached, self._limits)
        if isinstance(what, Refuse):
            raise TooLarge(f"{entry.key} is not fetched: {what.reason}.")
        return what

    def _download(self, entry: Entry, endpoint: Endpoint | None, tally: Tally) -> Path:
        path = self._cache.add(
            entry.checksum,
            lambda file: self._client.download(
                entry.key, entry.checksum, entry.size, file, endpoint=endpoint, on_bytes=tally.part
            ),
        )
        tally.finish(entry.size)
        return path


def _moved(file: FetchedFile, directory: Path) -> FetchedFile:
    path = directory / file.key.filename
    return FetchedFile(file.key, file.checksum, file.size, path, file.downloaded)
