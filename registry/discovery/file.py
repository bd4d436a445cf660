"""Discovery by files, in the layout of NVIDIA Dynamo's file store.

A record is the file `ROOT/v1/mdc/<key, every byte outside of A-Z a-z 0-9 as %XX>`. It is live
while its modification time is within 10 s of now, so its publisher touches it every third of that.
Whoever reads the directory may remove files that have lapsed; Dynamo's frontends do. A publisher
that was held up therefore writes its record again when it finds it gone. Files whose names begin
with a dot are being written, or are no records.

Others write in the directory as well, so nothing in it is believed: a record is a regular file
under the one name that its key has, of bounded size, which holds one well-formed JSON object.
What is anything else is left out, without being followed or waited for.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from registry.core.hashing import is_about_the_file
from registry.core.regular import open_regular, read_at_most
from registry.discovery import Change, Kind, Record, RecordKey
from registry.discovery.keeper import ANSWER_MAX_S, Keeper
from registry.discovery.record_io import (
    LISTING_MAX_BYTES,
    LISTING_MAX_NAMES,
    RECORD_MAX_BYTES,
    RecordReader,
    encode_record,
    name_of,
)
from registry.errors import DiscoveryUnavailable, Invalid

TTL_S = 10.0
WATCH_EVERY_S = 0.5
LISTING_MAX_S = ANSWER_MAX_S / 2

_TEMPORARY = ".tmp_"
_quoted = re.compile(rb"[^A-Za-z0-9]")

log = logging.getLogger("registry.discovery")


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


class FileDiscovery:
    """A directory of records, which is made when something is published.

    A thread of this process touches what was published here until it is withdrawn, or until
    `close`. What is asked of a file system that hangs fails after 10 s. For the methods see
    `Discovery`.
    """

    def __init__(self, root: str | os.PathLike[str], *, ttl_s: float = TTL_S) -> None:
        self._root = Path(root)
        self._ttl_s = ttl_s
        self._published: dict[Path, bytes] = {}
        self._keeper = Keeper(f"The discovery directory {root}", self._touch, ttl_s / 3)
        self._closed = threading.Event()
        self._reader = RecordReader(self._root)
        self._touch_fails = False

    def publish(self, record: Record) -> None:
        path = self._path(record.key)
        content = encode_record(record)

        def write() -> None:
            if self._closed.is_set():
                raise DiscoveryUnavailable(f"{self._root} was closed; {record.key} is not there.")
            try:
                _write(path, content)
            except OSError as error:
                raise _unavailable(record.key, "published", error) from error
            self._published[path] = content

        self._keeper.do(write)

    def withdraw(self, key: RecordKey) -> None:
        path = self._path(key)

        def remove() -> None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(key, "withdrawn", error) from error
            self._published.pop(path, None)

        self._keeper.do(remove)

    def find(self, key: RecordKey) -> Record | None:
        path = self._path(key)
        content = self._keeper.do(lambda: self._find_live(path, self._budget(path.parent)))
        return None if content is None else self._find_record(key, content)

    def list(self, kind: Kind) -> list[Record]:
        live = self._keeper.do(lambda: self._read(kind))
        records = [self._find_record(key, content) for key, content in live.items()]
        return sorted((record for record in records if record is not None), key=name_of)

    def watch(self, kind: Kind) -> Iterator[Change]:
        known: dict[RecordKey, Record] = {}
        while True:
            found = {record.key: record for record in self.list(kind)}
            for key in known.keys() - found.keys():
                yield Change(key, None)
            for key, record in found.items():
                if known.get(key) != record:
                    yield Change(key, record)
            known = found
            if self._closed.wait(WATCH_EVERY_S):
                return

    def close(self) -> None:
        self._closed.set()
        self._keeper.close()

    def _path(self, key: RecordKey) -> Path:
        return self._root / key.kind / _filename_of(key)

    # In the keeper's thread

    def _read(self, kind: Kind) -> dict[RecordKey, bytes]:
        """The live files of a kind whose names are keys."""
        directory = self._root / kind
        budget = self._budget(directory)
        found = {}
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    budget.take(names=1)
                    key = self._find_key(kind, entry.name)
                    if key is not None:
                        content = self._find_live(directory / entry.name, budget)
                        if content is not None:
                            found[key] = content
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DiscoveryUnavailable(
                f"{directory} cannot be listed: {error.strerror}. Check the discovery URL."
            ) from error
        return found

    def _budget(self, directory: Path) -> _Budget:
        until = time.monotonic() + LISTING_MAX_S
        return _Budget(directory, until, names=LISTING_MAX_NAMES, size=LISTING_MAX_BYTES)

    def _find_live(self, path: Path, budget: _Budget) -> bytes | None:
        try:
            descriptor = open_regular(path)
            try:
                # A time ahead is another host's clock. Far ahead it would never lapse.
                age_s = time.time() - os.fstat(descriptor).st_mtime
                if abs(age_s) > self._ttl_s:
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
        return content

    def _touch(self) -> bool:
        """Keep what was published live; whether there is anything to keep."""
        problem = None
        for path, content in self._published.items():
            try:
                _touch(path, content)
            except OSError as error:
                problem = error
        if problem is not None and not self._touch_fails:
            log.warning("records of this worker may lapse: %s", problem)
        self._touch_fails = problem is not None
        return bool(self._published) and not self._closed.is_set()

    # What is no record

    def _find_key(self, kind: Kind, filename: str) -> RecordKey | None:
        if filename.startswith("."):
            return None
        try:
            key = RecordKey.parse(kind, unquote(filename, errors="strict"))
            if _filename_of(key) == filename:
                return key
        except (Invalid, ValueError):
            pass
        self._reader.leave_out(filename, "its name is not that of a record")
        return None

    def _find_record(self, key: RecordKey, content: bytes) -> Record | None:
        return self._reader.find_record(key, _filename_of(key), content)


def _touch(path: Path, content: bytes) -> None:
    try:
        if stat.S_ISREG(path.lstat().st_mode):
            os.utime(path, follow_symlinks=False)
            return
    except (FileNotFoundError, PermissionError):
        # Removed as lapsed, or another user's file.
        pass
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _filename_of(key: RecordKey) -> str:
    return _quoted.sub(lambda found: b"%%%02X" % ord(found[0]), key.name.encode()).decode()


def _unavailable(key: RecordKey, what: str, error: OSError) -> DiscoveryUnavailable:
    return DiscoveryUnavailable(
        f"{key} cannot be {what}: {error.strerror or error}. Check the discovery directory."
    )
