"""What is done about each file to fetch: used from the cache, downloaded or refused. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.client.fetch_limits import FetchLimits
from registry.client.wanted_files import Wanted
from registry.core.hashing import FileContent
from registry.errors import TooLarge


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
    wanted: Wanted, cached: FileContent | None, limits: FetchLimits
) -> Use | Download | Refuse:
    """What to do about one file, given what the cache has under its checksum."""
    if wanted.size > limits.file_max_bytes:
        return Refuse(f"it has {wanted.size} bytes; the limit is {limits.file_max_bytes}")
    if cached is None or (cached.checksum, cached.size) != (wanted.checksum, wanted.size):
        return Download()
    return Use(Path(cached.path))


def check_limits(name: str, wanted: Sequence[Wanted], limits: FetchLimits) -> None:
    """Raise TooLarge if a model has more files or bytes than the limits allow."""
    total = sum(file.size for file in wanted)
    if len(wanted) > limits.files_max:
        raise TooLarge(f"{name} has more than {limits.files_max} files.")
    if total > limits.total_max_bytes:
        raise TooLarge(
            f"The files of {name} have {total} bytes together; the limit is "
            f"{limits.total_max_bytes}."
        )
