"""Reading a directory of records: what is live in it, within bounds, and whether it is still the
directory that it was."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import unquote

from registry.core.hashing import is_about_the_file
from registry.core.regular import open_regular, read_at_most
from registry.discovery import Kind, RecordKey
from registry.discovery.keeper import ANSWER_MAX_S
from registry.discovery.raw_names import ROOT, is_bucket, split_name
from registry.discovery.record_io import (
    LISTING_MAX_BYTES,
    LISTING_MAX_NAMES,
    RECORD_MAX_BYTES,
    RecordReader,
)
from registry.errors import DiscoveryUnavailable, Invalid

LISTING_MAX_S = ANSWER_MAX_S / 2

K = TypeVar("K")
_quoted = re.compile(rb"[^A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class LiveFile:
    """What a live file holds, and what it was when that was read."""

    content: bytes
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Place:
    """Which directory it is: one that was made anew may have the number of the one before it, but
    then something was written in the one above."""

    number: tuple[int, int]
    written_above_ns: int


@dataclass(frozen=True, slots=True)
class DirectoryLook(Generic[K]):
    """What was live in a directory, which was there before and after the look, or was not."""

    before: Place | None
    after: Place | None
    files: dict[K, bytes]


@dataclass(slots=True)
class _Budget:
    """What one listing may still read, and until when."""

    directory: Path
    until: float
    names: int
    size: int

    def take(self, *, names: int = 0, size: int = 0) -> None:
        """Count what was met with."""
        self.names -= names
        self.size -= size
        if self.names < 0:
            too_much = f"more than {LISTING_MAX_NAMES} files"
        elif self.size < 0:
            too_much = f"more than {LISTING_MAX_BYTES >> 20} MiB of records"
        elif time.monotonic() > self.until:
            too_much = f"more than can be read in {LISTING_MAX_S:g} s"
        else:
            return
        raise DiscoveryUnavailable(f"{self.directory} holds {too_much}. Remove what is no record.")


class DirectoryListing:
    """Reads what is below a directory. Nothing is followed or waited for.

    Args:
        ttl_s: how long a file is live after it was touched.
        reader: names in the log what is left out.
    """

    def __init__(self, root: Path, ttl_s: float, reader: RecordReader) -> None:
        self._root = root
        self._ttl_s = ttl_s
        self._reader = reader

    def find(self, path: Path) -> LiveFile | None:
        """A live file."""
        return self._find_live(path, self._budget(path.parent))

    def look(self, kind: Kind) -> DirectoryLook[RecordKey]:
        """The live files of a kind whose names are keys."""
        directory = self._root / kind
        return self._look(directory, self._budget(directory), partial(_record_key, kind))

    def look_raw(self) -> dict[str, DirectoryLook[str]]:
        """Each bucket below `v1/`, with what is live in it."""
        directory = self._root / ROOT
        budget = self._budget(directory)
        found = {}
        for entry in _entries(directory):
            budget.take(names=1)
            bucket = f"{ROOT}/{entry.name}"
            if is_bucket(entry.name) and entry.is_dir(follow_symlinks=False):
                found[bucket] = self._look(self._root / bucket, budget, partial(_raw_name, bucket))
            else:
                self._reader.leave_out(bucket, "it is no directory of records")
        return found

    def _budget(self, directory: Path) -> _Budget:
        until = time.monotonic() + LISTING_MAX_S
        return _Budget(directory, until, names=LISTING_MAX_NAMES, size=LISTING_MAX_BYTES)

    def _look(
        self, directory: Path, budget: _Budget, find_key: Callable[[str], K]
    ) -> DirectoryLook[K]:
        before, found = _find_place(directory), {}
        for entry in _entries(directory):
            budget.take(names=1)
            if entry.name.startswith("."):
                continue
            try:
                key = find_key(entry.name)
            except (Invalid, ValueError):
                self._reader.leave_out(entry.name, "its name is not that of a record")
                continue
            file = self._find_live(directory / entry.name, budget)
            if file is not None:
                found[key] = file.content
        return DirectoryLook(before, _find_place(directory), found)

    def _find_live(self, path: Path, budget: _Budget) -> LiveFile | None:
        try:
            descriptor = open_regular(path)
            try:
                status = os.fstat(descriptor)
                # A time ahead is another host's clock. Far ahead it would never lapse.
                if abs(time.time() - status.st_mtime) > self._ttl_s:
                    return None
                content = read_at_most(descriptor, RECORD_MAX_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not is_about_the_file(error):
                # Out of descriptors, say: that must not look as if the model were gone.
                raise DiscoveryUnavailable(
                    f"{path} cannot be read: {error.strerror or error}. Check this machine."
                ) from error
            if error.errno != errno.ENOENT:
                self._reader.leave_out(path.name, error.strerror or str(error))
            return None
        budget.take(size=len(content))
        return LiveFile(content, status)


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a directory: nothing when it is not there."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiscoveryUnavailable(
            f"{directory} cannot be listed: {error.strerror}. Check the discovery URL."
        ) from error


def _find_place(directory: Path) -> Place | None:
    try:
        here, above = directory.stat(), directory.parent.stat()
    except OSError:
        # Listing it says what is wrong.
        return None
    return Place((here.st_dev, here.st_ino), above.st_mtime_ns)


def filename_of(key: str) -> str:
    """The name of the file for a key."""
    return _quoted.sub(lambda found: b"%%%02X" % ord(found[0]), key.encode()).decode()


def _record_key(kind: Kind, filename: str) -> RecordKey:
    key = RecordKey.parse(kind, unquote(filename, errors="strict"))
    _check_filename(key.name, filename)
    return key


def _raw_name(bucket: str, filename: str) -> str:
    key = unquote(filename, errors="strict")
    split_name(f"{bucket}/{key}")
    _check_filename(key, filename)
    return f"{bucket}/{key}"


def _check_filename(key: str, filename: str) -> None:
    if filename_of(key) != filename:
        raise Invalid("Each key has one name.")
