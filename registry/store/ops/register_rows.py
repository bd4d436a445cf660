"""The rows that a list of manifests speaks of: read at once, written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, func, insert, literal, null, select, update

from registry.core.identity import Identity
from registry.core.records import ArtifactKey, Lease, Owner, RefStatus
from registry.store.engine import Connection
from registry.store.ops.release import FIND_OWNERS
from registry.store.owner_columns import identity, identity_of
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import entries, owner_refs, owners


@dataclass(slots=True)
class OwnerDraft:
    """An owner as it is, or as it will be when the list is written."""

    id: int
    state: str
    worker_name: str | None
    is_new: bool = False
    attached_at: int | None = None
    lease: Lease | None = None


@dataclass(slots=True)
class EntryDraft:
    """An entry as it is, or as it will be."""

    id: int
    checksum: str
    size: int
    base_slug: str | None = None
    is_new: bool = False


@dataclass(slots=True)
class RefDraft:
    """An owner ref as it is, or as it will be."""

    blob_checksum: str | None = None
    path: str | None = None
    file_identity: str | None = None
    status: str = RefStatus.OK
    event_id: int = 0
    is_new: bool = False


# Reading what a list of manifests speaks of. What is found is called for when all was asked: where
# the database is a server, that is one trip.

_keys = json_rows("rows", slug=str, suffix=str, filename=str)


class _FoundEntry(NamedTuple):
    slug: str
    suffix: str
    filename: str
    id: int
    checksum: str
    size: int
    base_slug: str | None


_FIND_ENTRIES = Statement(
    select(
        entries.c.slug,
        entries.c.suffix,
        entries.c.filename,
        entries.c.id,
        entries.c.checksum,
        entries.c.size,
        entries.c.base_slug,
    ).join(
        _keys,
        (entries.c.slug == _keys.c.slug)
        & (entries.c.suffix == _keys.c.suffix)
        & (entries.c.filename == _keys.c.filename),
    ),
    _FoundEntry,
)


class _FoundRef(NamedTuple):
    owner_id: int
    entry_id: int
    blob_checksum: str | None
    path: str | None
    file_identity: str | None
    status: str
    event_id: int


_pairs = json_rows("rows", owner_id=int, entry_id=int)
_FIND_REFS = Statement(
    select(
        owner_refs.c.owner_id,
        owner_refs.c.entry_id,
        owner_refs.c.blob_checksum,
        owner_refs.c.path,
        owner_refs.c.file_identity,
        owner_refs.c.status,
        owner_refs.c.event_id,
    ).join(
        _pairs,
        (owner_refs.c.owner_id == _pairs.c.owner_id) & (owner_refs.c.entry_id == _pairs.c.entry_id),
    ),
    _FoundRef,
)


def find_owners(
    conn: Connection, items: Iterable[Owner]
) -> Callable[[], dict[Identity, OwnerDraft]]:
    """Those of the owners that have a row."""
    rows = conn.ask(FIND_OWNERS, rows=as_rows([identity(owner) for owner in items]))
    return lambda: {
        identity_of(row): OwnerDraft(row.id, row.state, row.worker_name) for row in rows()
    }


def find_entries(
    conn: Connection, keys: set[ArtifactKey]
) -> Callable[[], dict[ArtifactKey, EntryDraft]]:
    """Those of the keys that somebody holds."""
    if not keys:
        return dict
    by_name = {_names(key): key for key in keys}
    rows = conn.ask(_FIND_ENTRIES, rows=as_rows(by_name))
    return lambda: {
        by_name[row.slug, row.suffix, row.filename]: EntryDraft(
            row.id, row.checksum, row.size, row.base_slug
        )
        for row in rows()
    }


def find_refs(
    conn: Connection, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], RefDraft]:
    """Those of the pairs (owner id, entry id) that are owner refs."""
    rows = conn.run(_FIND_REFS, rows=as_rows(sorted(set(pairs)))) if pairs else []
    return {
        (row.owner_id, row.entry_id): RefDraft(
            blob_checksum=row.blob_checksum,
            path=row.path,
            file_identity=row.file_identity,
            status=row.status,
            event_id=row.event_id,
        )
        for row in rows
    }


# Writing it

_owner_rows = json_rows(
    "rows",
    id=int,
    namespace=str,
    component=str,
    endpoint=str,
    instance_id=str,
    lora_slug=str,
    worker_name=str,
    lease_ttl_ms=int,
    registered_at=int,
)
_UPDATE_OWNERS = Statement(
    update(owners)
    .values(
        state="active",
        worker_name=_owner_rows.c.worker_name,
        lease_ttl_ms=_owner_rows.c.lease_ttl_ms,
        lease_expires_at=bindparam("now") + _owner_rows.c.lease_ttl_ms,
        registered_at=func.coalesce(_owner_rows.c.registered_at, owners.c.registered_at),
        renewed_at=bindparam("now"),
        drain_deadline_at=null(),
        ended_at=null(),
        end_reason=null(),
    )
    .where(owners.c.id == _owner_rows.c.id)
)
_INSERT_OWNERS = Statement(
    insert(owners).from_select(
        [
            *("id", "namespace", "component", "endpoint", "instance_id", "lora_slug"),
            *("worker_name", "state", "lease_ttl_ms", "lease_expires_at"),
            *("registered_at", "renewed_at"),
        ],
        select(
            _owner_rows.c.id,
            _owner_rows.c.namespace,
            _owner_rows.c.component,
            _owner_rows.c.endpoint,
            _owner_rows.c.instance_id,
            _owner_rows.c.lora_slug,
            _owner_rows.c.worker_name,
            literal("active"),
            _owner_rows.c.lease_ttl_ms,
            bindparam("now") + _owner_rows.c.lease_ttl_ms,
            bindparam("now"),
            bindparam("now"),
        ),
    )
)
_entry_rows = json_rows(
    "rows", id=int, slug=str, suffix=str, filename=str, checksum=str, size=int, base_slug=str
)
_INSERT_ENTRIES = Statement(
    insert(entries).from_select(
        [*_entry_rows.c.keys(), "generation", "created_at", "updated_at"],
        select(*_entry_rows.c, literal(1), bindparam("now"), bindparam("now")),
    )
)
_REPLACE_ENTRY = Statement(
    update(entries)
    .values(
        checksum=bindparam("new_checksum"),
        size=bindparam("new_size"),
        generation=entries.c.generation + 1,
        updated_at=bindparam("now"),
    )
    .where(entries.c.id == bindparam("entry_id"))
)
_base_slug_rows = json_rows("rows", id=int, base_slug=str)
_MARK_REVISIONS = Statement(
    update(entries)
    .values(base_slug=_base_slug_rows.c.base_slug)
    .where(entries.c.id == _base_slug_rows.c.id)
)
_UNMARK_REVISION = Statement(
    update(entries)
    .values(base_slug=null())
    .where(
        entries.c.slug == bindparam("revision"),
        entries.c.suffix == bindparam("model_suffix"),
        entries.c.base_slug.is_not(None),
    )
)
_ref_rows = json_rows(
    "rows",
    owner_id=int,
    entry_id=int,
    blob_checksum=str,
    path=str,
    file_identity=str,
    event_id=int,
)
_INSERT_REFS = Statement(
    insert(owner_refs).from_select(
        [*_ref_rows.c.keys(), "status", "verified_at", "created_at"],
        select(*_ref_rows.c, literal("ok"), bindparam("now"), bindparam("now")),
    )
)
_UPDATE_REFS = Statement(
    update(owner_refs)
    .values(
        blob_checksum=_ref_rows.c.blob_checksum,
        path=_ref_rows.c.path,
        file_identity=_ref_rows.c.file_identity,
        event_id=_ref_rows.c.event_id,
        status="ok",
        verified_at=bindparam("now"),
    )
    .where(
        owner_refs.c.owner_id == _ref_rows.c.owner_id,
        owner_refs.c.entry_id == _ref_rows.c.entry_id,
    )
)


def _names(key: ArtifactKey) -> tuple[str, str, str]:
    return key.slug, key.suffix, key.filename


def write_owners(conn: Connection, now: int, touched: Iterable[tuple[Owner, OwnerDraft]]) -> None:
    """Insert or update owners, alive and with their leases renewed."""
    new: list[object] = []
    changed: list[object] = []
    for owner, row in touched:
        ttl_ms = row.lease.ttl_ms if row.lease else None
        values = (row.id, *identity(owner), row.worker_name, ttl_ms, row.attached_at)
        (new if row.is_new else changed).append(values)
    if new:
        conn.run(_INSERT_OWNERS, now=now, rows=as_rows(new))
    if changed:
        conn.run(_UPDATE_OWNERS, now=now, rows=as_rows(changed))


def write_entries(
    conn: Connection,
    now: int,
    drafts: Mapping[ArtifactKey, EntryDraft],
    replaced: Iterable[EntryDraft],
) -> None:
    """Insert the new ones of the entries, and give those that were replaced their new content."""
    new = [
        (entry.id, *_names(key), entry.checksum, entry.size, entry.base_slug)
        for key, entry in drafts.items()
        if entry.is_new
    ]
    if new:
        conn.run(_INSERT_ENTRIES, now=now, rows=as_rows(new))
    for entry in replaced:
        conn.run(
            _REPLACE_ENTRY,
            now=now,
            entry_id=entry.id,
            new_checksum=entry.checksum,
            new_size=entry.size,
        )


def mark_revisions(
    conn: Connection, marked: Iterable[EntryDraft], unmarked: Iterable[tuple[str, str]]
) -> None:
    """Give entries that were there the base slug that they now have, and take it from all entries
    of the (slug, suffix) that are no revisions any more. Mostly there are neither."""
    if rows := [(entry.id, entry.base_slug) for entry in marked]:
        conn.run(_MARK_REVISIONS, rows=as_rows(rows))
    for slug, suffix in unmarked:
        conn.run(_UNMARK_REVISION, revision=slug, model_suffix=suffix)


def write_refs(conn: Connection, now: int, touched: Mapping[tuple[int, int], RefDraft]) -> None:
    """Insert or update owner refs; their bytes were just verified."""
    new: list[object] = []
    changed: list[object] = []
    for pair, ref in touched.items():
        values = (*pair, ref.blob_checksum, ref.path, ref.file_identity, ref.event_id)
        (new if ref.is_new else changed).append(values)
    if new:
        conn.run(_INSERT_REFS, now=now, rows=as_rows(new))
    if changed:
        conn.run(_UPDATE_REFS, now=now, rows=as_rows(changed))
