"""The read path's point read: from a key to an entry and one of its holders.

Runs inline in the event loop on one held read connection: a few microseconds. What was found is
remembered only while `PRAGMA data_version` says that no other connection has committed since, so
that what was unregistered is gone for every process at once.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any, NoReturn

from sqlalchemy import bindparam, exists, select

from registry.core.records import ArtifactKey
from registry.errors import Busy, StorageUnavailable
from registry.store.sqlite.engine import Connection, Database, Row, Statement
from registry.store.sqlite.errors import Trouble, translate
from registry.store.tables import entries, owner_refs, owners

REMEMBERED_KEYS = 16_384
LOOK_EVERY_S = 0.5
"""How long reads may go on from a file that was deleted or replaced."""
_UNKNOWN: Any = object()


@dataclass(frozen=True, slots=True)
class Location:
    """An entry, and where one of its holders has the bytes: a file at `path`, or a copy."""

    entry_id: int
    checksum: str
    size: int
    owner_id: int
    path: str | None
    file_identity: str | None
    status: str


_columns = (
    entries.c.id,
    entries.c.checksum,
    entries.c.size,
    owner_refs.c.owner_id,
    owner_refs.c.path,
    owner_refs.c.file_identity,
    owner_refs.c.status,
)
_held = select(*_columns).join(owner_refs, owner_refs.c.entry_id == entries.c.id)
_by_key = _held.where(
    entries.c.slug == bindparam("slug"),
    entries.c.suffix == bindparam("suffix"),
    entries.c.filename == bindparam("filename"),
)
_other_refs = owner_refs.alias("other_refs")
_held_by_endpoint = exists().where(
    owners.c.namespace == bindparam("namespace"),
    owners.c.component == bindparam("component"),
    owners.c.endpoint == bindparam("endpoint"),
    _other_refs.c.owner_id == owners.c.id,
    _other_refs.c.entry_id == entries.c.id,
)
_LOCATE = Statement(_by_key.limit(1))
_LOCATE_AT_ENDPOINT = Statement(_by_key.where(_held_by_endpoint).limit(1))
_FIND_LOCATIONS = Statement(
    _by_key.order_by(owner_refs.c.path.is_not(None), owner_refs.c.owner_id).limit(
        bindparam("row_limit")
    )
)
_LOCATIONS = Statement(
    _held.where(entries.c.id == bindparam("entry_id"), entries.c.checksum == bindparam("checksum"))
    .order_by(owner_refs.c.path.is_not(None), owner_refs.c.owner_id)
    .limit(bindparam("row_limit"))
)
_NAMES = ("namespace", "component", "endpoint", "slug", "suffix", "filename")


class Locator:
    """Point reads for one event loop. `key` is (slug, suffix, filename), or the same behind
    (namespace, component, endpoint) for entries that an owner of that endpoint holds.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._lock = Lock()
        """Held while the connection is used: another thread may have to close it."""
        self._version = -1
        self._generation = -1
        self._look_again_at = 0.0
        database.presence.on_change.append(self.close)
        self._trouble = Trouble("look-ups of files")
        self._found: dict[tuple[str, ...], Location | None] = {}
        self._by_length = {
            3: _LOCATE.compiled(database.dialect),
            6: _LOCATE_AT_ENDPOINT.compiled(database.dialect),
        }

    def find(self, key: tuple[str, ...]) -> Location | None:
        """Where the bytes of a key are, or None: nobody holds it.

        Raises:
            StorageUnavailable: the database cannot be read.
            Busy: it is just being replaced.
        """
        try:
            if monotonic() >= self._look_again_at:
                self._look_again()
            with self._lock:
                return self._find(key)
        except (sqlite3.Error, StorageUnavailable) as error:
            self._fail(error)

    def _find(self, key: tuple[str, ...]) -> Location | None:
        connection = self._connection
        if connection is None:
            raise Busy("The database is just being opened anew. Try again.")
        version: int = connection.execute("PRAGMA data_version").fetchall()[0][0]
        if version == self._version:
            location: Location | None = self._found.get(key, _UNKNOWN)
            if location is not _UNKNOWN:
                return location
        else:
            self._found.clear()
            self._version = version
        text, fixed = self._by_length[len(key)]
        parameters = dict(zip(_NAMES[-len(key) :], key, strict=True)) | fixed
        rows: list[Row] = connection.execute(text, parameters).fetchall()
        if len(self._found) >= REMEMBERED_KEYS:
            self._found.clear()
        location = self._found[key] = Location(*rows[0]) if rows else None
        return location

    def _look_again(self) -> None:
        """See to it that the connection is to the file that is there now."""
        presence = self._database.presence
        if self._connection is None or presence.require() != self._generation:
            self.close()
            self._open()
        self._look_again_at = monotonic() + LOOK_EVERY_S
        self._trouble.worked()

    def _open(self) -> None:
        presence = self._database.presence
        generation = presence.enter()
        try:
            connection = self._database.connect_to(generation, "ro")
        except BaseException:
            presence.leave()
            raise
        with self._lock:
            self._connection, self._generation, self._version = connection, generation, -1

    def _fail(self, error: sqlite3.Error | StorageUnavailable) -> NoReturn:
        """Look at the file before anything is read again."""
        self.close()
        ours = translate(error) if isinstance(error, sqlite3.Error) else error
        if isinstance(ours, StorageUnavailable):
            self._trouble.failed(ours)
        if ours is None or ours is error:
            raise error
        raise ours from error

    def prefer(self, key: tuple[str, ...], found: Location, location: Location) -> None:
        """Remember the holder that turned out to have the bytes instead of the one that was found.

        Only until anything is committed, and only if nothing was since: what was looked up anew
        meanwhile is not overwritten with what was true before.
        """
        if self._found.get(key) is found:
            self._found[key] = location

    def close(self) -> None:
        """Close the held connection; the next read opens another. Safe in any thread."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._look_again_at = 0.0
            self._found.clear()
            if connection is not None:
                connection.close()
        if connection is not None:
            self._database.presence.leave()


def locations_of(conn: Connection, entry_id: int, checksum: str, limit: int) -> list[Location]:
    """Every holder of an entry that still has this content, copies first."""
    rows = conn.run(_LOCATIONS, entry_id=entry_id, checksum=checksum, row_limit=limit)
    return [Location(*row) for row in rows]


def find_locations(conn: Connection, key: ArtifactKey, limit: int = 1000) -> list[Location]:
    """Every holder of a key, or an empty list: nobody holds it."""
    rows = conn.run(
        _FIND_LOCATIONS,
        slug=key.slug,
        suffix=key.suffix,
        filename=key.filename,
        row_limit=limit,
    )
    return [Location(*row) for row in rows]
