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

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from registry.discovery import Change, Kind, Listed, RawChange, Record, RecordKey
from registry.discovery.file.comparing import C, Comparison, K, V
from registry.discovery.file.listing import DirectoryListing, DirectoryLook, filename_of
from registry.discovery.file.writing import NotOurs, swap, touch, write
from registry.discovery.keeper import Keeper
from registry.discovery.raw_names import ROOT, split_name
from registry.discovery.record_io import (
    RecordReader,
    check_size,
    encode_record,
    encode_replacement,
)
from registry.errors import DiscoveryUnavailable, Invalid

TTL_S = 10.0
WATCH_EVERY_S = 0.5
FILENAME_MAX_CHARACTERS = 255

log = logging.getLogger("registry.discovery")


class FileDiscovery:
    """A directory of records, which is made when something is published.

    A thread of this process touches what was published here until it is withdrawn, or until
    `close`. What is asked of a file system that hangs fails after 10 s. For the methods see
    `Discovery`, `Rewriting` and `RawStore`.
    """

    def __init__(self, root: str | os.PathLike[str], *, ttl_s: float = TTL_S) -> None:
        self.liveness_s = ttl_s
        self._root = Path(root)
        self._published: dict[Path, bytes] = {}
        self._keeper = Keeper(f"The discovery directory {root}", self._touch, ttl_s / 3)
        self._closed = threading.Event()
        self._reader = RecordReader(self._root)
        self._listing = DirectoryListing(self._root, ttl_s, self._reader)
        self._touch_fails = False

    @property
    def root(self) -> Path:
        """The directory, which need not be there."""
        return self._root

    def publish(self, record: Record) -> None:
        self._publish(str(record.key), encode_record(record))

    def withdraw(self, key: RecordKey) -> None:
        self._withdraw(str(key))

    def find(self, key: RecordKey) -> Record | None:
        path = self._path(str(key))
        file = self._keeper.do(lambda: self._listing.find(path))
        return None if file is None else self._find_record(key, file.content)

    def list(self, kind: Kind) -> list[Record]:
        return list(self.scan(kind))

    def scan(self, kind: Kind) -> Iterator[Record]:
        live = self._keeper.do(lambda: self._listing.look(kind)).files
        for key in sorted(live, key=lambda key: key.name):
            record = self._find_record(key, live.pop(key))
            if record is not None:
                yield record

    def watch(self, kind: Kind) -> Iterator[Change | Listed]:
        comparison = Comparison(Change, self._find_record)
        return self._follow(lambda: {kind: self._listing.look(kind)}, comparison)

    def replace(self, old: Record, new: Record) -> bool:
        """As of every store. A record whose file belongs to another user is replaced only by root,
        since it could not be kept live any more otherwise."""
        content = encode_replacement(old, new)
        path = self._path(str(old.key))

        def put() -> bool:
            file = self._listing.find(path)
            found = None if file is None else self._find_record(old.key, file.content)
            if file is None or found is None or found.content != old.content:
                return False
            try:
                is_done = swap(path, file.status, content)
            except (OSError, NotOurs) as error:
                raise _unavailable(str(old.key), "replaced", error) from error
            if is_done and path in self._published:
                self._published[path] = content
            return is_done

        return self._keeper.do(put)

    def list_raw(self) -> dict[str, bytes]:
        looks = self._keeper.do(self._listing.look_raw).values()
        return dict(sorted(item for look in looks for item in look.files.items()))

    def watch_raw(self) -> Iterator[RawChange | Listed]:
        return self._follow(
            self._listing.look_raw, Comparison(RawChange, lambda _, content: content)
        )

    def publish_raw(self, name: str, content: bytes) -> None:
        split_name(name)
        check_size(name, content)
        self._publish(name, content)

    def withdraw_raw(self, name: str) -> None:
        split_name(name)
        self._withdraw(name)

    def close(self) -> None:
        self._closed.set()
        self._keeper.close()

    def _path(self, name: str) -> Path:
        bucket, key = split_name(name)
        filename = filename_of(key)
        if len(filename) > FILENAME_MAX_CHARACTERS:
            raise Invalid(f"{name} is too long for the name of a file.")
        return self._root / ROOT / bucket / filename

    def _publish(self, name: str, content: bytes) -> None:
        path = self._path(name)

        def put() -> None:
            if self._closed.is_set():
                raise DiscoveryUnavailable(f"{self._root} was closed; {name} is not there.")
            try:
                write(path, content)
            except OSError as error:
                raise _unavailable(name, "published", error) from error
            self._published[path] = content

        self._keeper.do(put)

    def _withdraw(self, name: str) -> None:
        path = self._path(name)

        def remove() -> None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(name, "withdrawn", error) from error
            self._published.pop(path, None)

        self._keeper.do(remove)

    def _follow(
        self,
        look: Callable[[], dict[str, DirectoryLook[K]]],
        comparison: Comparison[K, V, C],
    ) -> Iterator[C | Listed]:
        while True:
            yield from comparison.compare(self._keeper.do(look))
            if self._closed.wait(WATCH_EVERY_S):
                return

    def _find_record(self, key: RecordKey, content: bytes) -> Record | None:
        return self._reader.find_record(key, filename_of(key.name), content)

    # In the keeper's thread

    def _touch(self) -> bool:
        """Keep what was published live; whether there is anything to keep."""
        problem = None
        for path, content in self._published.items():
            try:
                touch(path, content)
            except OSError as error:
                problem = error
        if problem is not None and not self._touch_fails:
            log.warning("records of this worker may lapse: %s", problem)
        self._touch_fails = problem is not None
        return bool(self._published) and not self._closed.is_set()


def _unavailable(name: str, what: str, error: Exception) -> DiscoveryUnavailable:
    reason = getattr(error, "strerror", None) or error
    return DiscoveryUnavailable(
        f"{name} cannot be {what}: {reason}. Check the discovery directory."
    )
