"""The read path's point read: from a key to an entry and one of its holders.

Where the database is a file, it runs inline in the event loop on one held connection: a few
microseconds. What was found is remembered only while the engine says that nobody has committed
anything since, so that what was unregistered is gone for every process at once. Where the database
is a server, look-ups wait for it, many in one query, and nothing is remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    exists,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.engine import Dialect

from registry.core.memo import Memo
from registry.core.records import ArtifactKey
from registry.store.engine import Connection, Engine
from registry.store.sql import Statement, json_rows
from registry.store.tables import entries, owner_refs, owners

T = TypeVar("T")
Columns = list[bytes | None]
"""The columns of a `Location` as a server spells them."""

REMEMBERED_BYTES = 16 << 20
ABSENT_BYTES = 2 << 20


class Location(NamedTuple):
    """An entry, and where one of its holders has the bytes: a file at `path`, or a copy."""

    entry_id: int
    checksum: str
    size: int
    owner_id: int
    path: str | None
    file_identity: str | None
    status: str


_columns = (
    entries.c.id.label("entry_id"),
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
_LOCATE = Statement(_by_key.limit(1), Location)
_LOCATE_AT_ENDPOINT = Statement(_by_key.where(_held_by_endpoint).limit(1), Location)
_FIND_LOCATIONS = Statement(
    _by_key.order_by(owner_refs.c.path.is_not(None), owner_refs.c.owner_id).limit(
        bindparam("row_limit")
    ),
    Location,
)
_LOCATIONS = Statement(
    _held.where(entries.c.id == bindparam("entry_id"), entries.c.checksum == bindparam("checksum"))
    .order_by(owner_refs.c.path.is_not(None), owner_refs.c.owner_id)
    .limit(bindparam("row_limit")),
    Location,
)
_NAMES = ("namespace", "component", "endpoint", "slug", "suffix", "filename")


class Locator:
    """Point reads for one event loop. `key` is (slug, suffix, filename), or the same behind
    (namespace, component, endpoint) for entries that an owner of that endpoint holds.
    """

    def __init__(self, engine: Engine) -> None:
        self._reader = _required(engine.point_reader())
        self._token = -1
        self._found: Memo[tuple[str, ...], Location] = Memo(REMEMBERED_BYTES)
        # Apart: there is no end of keys that nobody holds, and they must not push the others out.
        self._absent: Memo[tuple[str, ...], bool] = Memo(ABSENT_BYTES)
        self._by_length = {
            3: _LOCATE.compiled(engine.dialect),
            6: _LOCATE_AT_ENDPOINT.compiled(engine.dialect),
        }

    def find(self, key: tuple[str, ...]) -> Location | None:
        """Where the bytes of a key are, or None: nobody holds it.

        Raises:
            StorageUnavailable: the database cannot be read.
            Busy: it is just being replaced.
        """
        token = self._reader.change_token()
        if token == self._token:
            location = self._found.get(key)
            if location is not None:
                return location
            if key in self._absent:
                return None
        else:
            self._found.clear()
            self._absent.clear()
            self._token = token
        text, fixed = self._by_length[len(key)]
        parameters = dict(zip(_NAMES[-len(key) :], key, strict=True)) | fixed
        rows = self._reader.run(text, parameters)
        if not rows:
            self._absent.keep(key, True, *key)
            return None
        location = Location._make(rows[0])
        self._remember(key, location)
        return location

    def _remember(self, key: tuple[str, ...], location: Location) -> None:
        self._found.keep(key, location, *key, *location)

    def prefer(self, key: tuple[str, ...], found: Location, location: Location) -> None:
        """Remember the holder that turned out to have the bytes instead of the one that was found.

        Only until anything is committed, and only if nothing was since: what was looked up anew
        meanwhile is not overwritten with what was true before.
        """
        if self._found.get(key) is found:
            self._remember(key, location)

    def close(self) -> None:
        """Let go of the connection; the next read opens another."""
        self._reader.close()


class GroupLocator:
    """Look-ups of one event loop where the engine has to be waited for: as `Locator`."""

    def __init__(self, engine: Engine) -> None:
        self._reader = _required(engine.group_reader())
        # Not where anything is, only what was read from columns: that takes longer than a look.
        self._read: Memo[tuple[str, ...], tuple[Columns, Location]] = Memo(REMEMBERED_BYTES)
        self._by_length = {
            len(names): self._reader.prepare(_numbered(_group_of(names), engine.dialect))
            for names in (_NAMES[-3:], _NAMES)
        }

    async def find(self, key: tuple[str, ...]) -> Location | None:
        """Where the bytes of a key are, or None: nobody holds it. What was committed before the
        call is seen.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        return self.location_of(key, await self.begin(key))

    def begin(self, key: tuple[str, ...]) -> asyncio.Future[Columns | None]:
        """A look-up that is waited for without a task: `location_of` what it answers."""
        return self._reader.find(self._by_length[len(key)], key)

    def location_of(self, key: tuple[str, ...], columns: Columns | None) -> Location | None:
        """What such a look-up says of its key."""
        if columns is None:
            return None
        before = self._read.get(key)
        if before is not None and before[0] == columns:
            return before[1]
        location = _location_of(columns)
        self._read.keep(key, (columns, location), *key, *columns, *location)
        return location

    def close(self) -> None:
        """Let go of the connection; the next read opens another."""
        self._reader.close()


def _location_of(columns: Columns) -> Location:
    entry_id, checksum, size, owner_id, path, identity, status = map(_text, columns)
    return Location(
        int(entry_id or 0),
        checksum or "",
        int(size or 0),
        int(owner_id or 0),
        path,
        identity,
        status or "",
    )


def _group_of(names: Sequence[str]) -> Select[Any]:
    """A holder of each of a list of keys, with the number of the key: one whose bytes were right
    when they were looked at last, if there is one."""
    keys = json_rows("rows", number=int, **dict.fromkeys(names, str))
    one: ColumnElement[int] = literal_column("1")
    refs = select(
        *(owner_refs.c[name] for name in ("owner_id", "path", "file_identity", "status"))
    ).where(owner_refs.c.entry_id == entries.c.id)
    sound = refs.where(owner_refs.c.status == literal_column("'ok'"))
    either = (each.limit(one).correlate(entries).subquery().select() for each in (sound, refs))
    ref = union_all(*either).limit(one).subquery("ref").lateral()
    of_key = and_(*(entries.c[name] == keys.c[name] for name in _NAMES[-3:]))
    found = select(
        *(keys.c.number, entries.c.id, entries.c.checksum, entries.c.size, *ref.c)
    ).select_from(keys.join(entries, of_key).join(ref, true()))
    if len(names) < len(_NAMES):
        return found
    held = exists().where(
        *(owners.c[name] == keys.c[name] for name in _NAMES[:3]),
        _other_refs.c.owner_id == owners.c.id,
        _other_refs.c.entry_id == entries.c.id,
    )
    return found.where(held.correlate(keys, entries))


def _numbered(clause: Select[Any], dialect: Dialect) -> str:
    """The text of a query for a driver that numbers its parameters."""
    numbering: Any = type(dialect)
    return str(clause.compile(dialect=numbering(paramstyle="numeric_dollar")))


def _required(reader: T | None) -> T:
    """A reader that the engine must have here.

    Raises:
        TypeError: it has none of this kind.
    """
    if reader is None:
        raise TypeError("This engine reads keys in another way.")
    return reader


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def locations_of(conn: Connection, entry_id: int, checksum: str, limit: int) -> list[Location]:
    """Every holder of an entry that still has this content, copies first."""
    return conn.run(_LOCATIONS, entry_id=entry_id, checksum=checksum, row_limit=limit)


def find_locations(conn: Connection, key: ArtifactKey, limit: int = 1000) -> list[Location]:
    """Every holder of a key, or an empty list: nobody holds it."""
    return conn.run(
        _FIND_LOCATIONS,
        slug=key.slug,
        suffix=key.suffix,
        filename=key.filename,
        row_limit=limit,
    )
