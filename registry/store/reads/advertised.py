"""What a comparison with discovery asks of the registry: who holds something, and what of that
which cards name is here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import and_, bindparam, exists, or_, select

from registry.core.identity import Identity
from registry.core.records import RefStatus
from registry.store.engine import Connection
from registry.store.owner_columns import OWNER_COLUMNS, identity_of
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import blobs, entries, owner_refs, owners


class FileKey(NamedTuple):
    """What the path of a file names; without an endpoint the first three are ''."""

    namespace: str
    component: str
    endpoint: str
    slug: str
    suffix: str
    filename: str


@dataclass(frozen=True, slots=True)
class HeldFile:
    """What stands under a key, and whether any holder has the bytes, by the last look at them."""

    checksum: str
    is_serveable: bool


@dataclass(frozen=True, slots=True)
class ActiveOwner:
    """An active owner that holds something and whose lease, if it has one, has not lapsed."""

    registered_at: int
    worker_name: str | None


@dataclass(frozen=True, slots=True)
class RegistryLook:
    """The registry at one moment, as far as it was asked: `files` has each key that was asked for,
    with None where it is not held."""

    now: int
    owners: Mapping[Identity, ActiveOwner]
    files: Mapping[FileKey, HeldFile | None]


class _ActiveRow(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    registered_at: int
    worker_name: str | None


class _WantedRow(NamedTuple):
    number: int
    checksum: str
    is_serveable: int


_OWNERS = Statement(
    select(*OWNER_COLUMNS, owners.c.registered_at, owners.c.worker_name).where(
        owners.c.state == "active",
        or_(owners.c.lease_expires_at.is_(None), owners.c.lease_expires_at > bindparam("now")),
        exists().where(owner_refs.c.owner_id == owners.c.id),
    ),
    _ActiveRow,
)
_wanted = json_rows(
    "wanted",
    number=int,
    namespace=str,
    component=str,
    endpoint=str,
    slug=str,
    suffix=str,
    filename=str,
)
_other_refs = owner_refs.alias("other_refs")
_FILES = Statement(
    select(
        _wanted.c.number,
        entries.c.checksum,
        exists()
        .where(
            owner_refs.c.entry_id == entries.c.id,
            owner_refs.c.status == RefStatus.OK.value,
            or_(
                owner_refs.c.path.is_not(None),
                and_(
                    owner_refs.c.blob_checksum == entries.c.checksum,
                    exists().where(blobs.c.checksum == owner_refs.c.blob_checksum),
                ),
            ),
        )
        .label("is_serveable"),
    )
    .select_from(_wanted)
    .join(
        entries,
        (entries.c.slug == _wanted.c.slug)
        & (entries.c.suffix == _wanted.c.suffix)
        & (entries.c.filename == _wanted.c.filename),
    )
    .where(
        or_(
            _wanted.c.namespace == "",
            exists().where(
                _other_refs.c.entry_id == entries.c.id,
                owners.c.id == _other_refs.c.owner_id,
                owners.c.namespace == _wanted.c.namespace,
                owners.c.component == _wanted.c.component,
                owners.c.endpoint == _wanted.c.endpoint,
            ),
        )
    ),
    _WantedRow,
)


def look_at_registry(conn: Connection, keys: Iterable[FileKey]) -> RegistryLook:
    """Who holds something now, and what stands under some keys."""
    wanted: Sequence[FileKey] = list(dict.fromkeys(keys))
    rows = [[number, *key] for number, key in enumerate(wanted)]
    files: dict[FileKey, HeldFile | None] = dict.fromkeys(wanted)
    for row in conn.run(_FILES, wanted=as_rows(rows)) if rows else ():
        files[wanted[row.number]] = HeldFile(row.checksum, bool(row.is_serveable))
    found = {
        identity_of(row): ActiveOwner(row.registered_at, row.worker_name)
        for row in conn.run(_OWNERS, now=conn.now)
    }
    return RegistryLook(conn.now, found, files)
