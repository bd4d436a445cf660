"""The tables. Change them together with a migration; a test holds the two equal. The views are in
`views.py`.

    owners ──1────n── owner_refs ──n────1── entries          blobs
    who holds         owner_id              slug             checksum
    state, lease      entry_id              suffix           size
                      path          (in     filename         uploaded_at
                      file_identity place)  checksum         content
                      blob_checksum ───────────n────1─────── (copied)
                                            base_slug: of which model it is a revision, if it is one
                      event_id ─ ─ ─ ┐
                                     ▼ explains the ref
    settings  name, value         events   append-only journal; names owners and keys by value,
                                           and by ids that are never used twice

An entry has at least one owner ref, an owner ref has exactly one source of bytes (a file at `path`
or a row of `blobs`), and an ended owner holds nothing. Times are UTC in integer milliseconds.
`base_slug` is stored since it cannot be told from the slug, which may be cut (S17).
`instance_id` is text because an unsigned 64-bit number fits neither a SQLite INTEGER nor a JSON
double; `lora_slug` is '' for the base model because NULL would break uniqueness.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.types import TypeEngine

HEAD_REVISION = "0005"
"""The newest revision in migrations/versions; this program reads and writes that schema."""

MIN_PROGRAM_REVISION = "0003"
"""The oldest revision whose programs can work with HEAD_REVISION, as its migration says."""

_text: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")
_integer: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")


def _partial(where: str) -> dict[str, Any]:
    """The options of an index of some rows only. With those of PostgreSQL SQLAlchemy would load its
    dialect, also where nothing but SQLite is used: they follow when a table is made there."""
    return {"sqlite_where": text(where), "info": {"where": where}}


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(constraint_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)


def _checksum(column: str) -> str:
    return f"length({column}) = 71 AND substr({column}, 1, 7) = 'blake3:'"


owners = Table(
    "owners",
    metadata,
    Column("id", _integer, Identity(always=False), primary_key=True),
    Column("namespace", _text, nullable=False),
    Column("component", _text, nullable=False),
    Column("endpoint", _text, nullable=False),
    Column("instance_id", _text, nullable=False),
    Column("lora_slug", _text, nullable=False, server_default=text("''")),
    Column("worker_name", _text),
    Column("state", _text, nullable=False),
    Column("lease_ttl_ms", _integer),
    Column("lease_expires_at", _integer),
    Column("registered_at", _integer, nullable=False),
    Column("renewed_at", _integer, nullable=False),
    Column("drain_deadline_at", _integer),
    Column("ended_at", _integer),
    Column("end_reason", _text),
    UniqueConstraint(
        "namespace", "component", "endpoint", "instance_id", "lora_slug", name="identity"
    ),
    CheckConstraint(
        "state IN ('active', 'draining', 'detached', 'expired', 'superseded')", name="state"
    ),
    CheckConstraint("(lease_ttl_ms IS NULL) = (lease_expires_at IS NULL)", name="lease"),
    CheckConstraint("(state IN ('active', 'draining')) = (ended_at IS NULL)", name="ended"),
    CheckConstraint("(state = 'draining') = (drain_deadline_at IS NOT NULL)", name="drain"),
    CheckConstraint("length(instance_id) BETWEEN 1 AND 20", name="instance_id"),
    Index(
        "ix_owners_worker",
        "namespace",
        "component",
        "endpoint",
        "worker_name",
        "state",
        **_partial("worker_name IS NOT NULL"),
    ),
    Index(
        "ix_owners_superseded",
        "namespace",
        "component",
        "endpoint",
        "instance_id",
        **_partial("state = 'superseded'"),
    ),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

entries = Table(
    "entries",
    metadata,
    Column("id", _integer, Identity(always=False), primary_key=True),
    Column("slug", _text, nullable=False),
    Column("suffix", _text, nullable=False),
    Column("filename", _text, nullable=False),
    Column("checksum", _text, nullable=False),
    Column("size", _integer, nullable=False),
    Column("generation", _integer, nullable=False),
    Column("created_at", _integer, nullable=False),
    Column("updated_at", _integer, nullable=False),
    Column("base_slug", _text),
    UniqueConstraint("slug", "suffix", "filename", name="key"),
    CheckConstraint(_checksum("checksum"), name="checksum"),
    CheckConstraint("size >= 0", name="size"),
    CheckConstraint("generation >= 1", name="generation"),
    CheckConstraint("base_slug <> slug", name="base_slug"),
    Index(
        "ix_entries_base_slug",
        *("base_slug", "suffix", "filename"),
        **_partial("base_slug IS NOT NULL"),
    ),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

blobs = Table(
    "blobs",
    metadata,
    Column("checksum", _text, nullable=False),
    Column("size", _integer, nullable=False),
    Column("uploaded_at", _integer, nullable=False),
    # Last: columns behind the content would sit on its overflow pages.
    Column("content", LargeBinary, nullable=False),
    PrimaryKeyConstraint("checksum"),
    CheckConstraint(_checksum("checksum"), name="checksum"),
    CheckConstraint("size = length(content)", name="size"),
    sqlite_strict=True,
)


@event.listens_for(metadata, "before_create")
def _say_where(_: MetaData, connection: Connection, **__: Any) -> None:
    if connection.dialect.name == "postgresql":
        for index in (index for table in metadata.tables.values() for index in table.indexes):
            if "where" in index.info:
                index.dialect_options["postgresql"]["where"] = text(index.info["where"])


# Not compressed: a part of it can be read without the rest.
event.listen(
    blobs,
    "after_create",
    DDL("ALTER TABLE blobs ALTER COLUMN content SET STORAGE EXTERNAL").execute_if(  # type: ignore[no-untyped-call]
        dialect="postgresql"
    ),
)

owner_refs = Table(
    "owner_refs",
    metadata,
    Column("owner_id", _integer, ForeignKey("owners.id", ondelete="RESTRICT"), nullable=False),
    Column("entry_id", _integer, ForeignKey("entries.id", ondelete="RESTRICT"), nullable=False),
    Column("blob_checksum", _text, ForeignKey("blobs.checksum", ondelete="RESTRICT")),
    Column("path", _text),
    Column("file_identity", _text),
    Column("status", _text, nullable=False),
    Column("verified_at", _integer, nullable=False),
    Column("created_at", _integer, nullable=False),
    Column("event_id", _integer, nullable=False),
    PrimaryKeyConstraint("owner_id", "entry_id"),
    CheckConstraint("(path IS NULL) = (blob_checksum IS NOT NULL)", name="source"),
    CheckConstraint("file_identity IS NULL OR path IS NOT NULL", name="file_identity"),
    CheckConstraint("status IN ('ok', 'drifted', 'missing')", name="status"),
    Index("ix_owner_refs_entry_id", "entry_id"),
    Index(
        "ix_owner_refs_blob_checksum",
        "blob_checksum",
        **_partial("blob_checksum IS NOT NULL"),
    ),
    Index(
        "ix_owner_refs_verified_at",
        "verified_at",
        **_partial("path IS NOT NULL"),
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

KINDS = (
    *("released", "registered", "created", "removed"),
    *("attached", "drained", "detached", "expired", "superseded"),
    *("uploaded", "replaced", "refused", "drifted", "missing", "restored"),
    *("expiry_paused", "expiry_resumed", "upgraded"),
)
"""What events are of, the most frequent first: so they are looked for."""

# Each event is in the two short indexes of ids. What leads from a name to the ids that it had is in
# the tables as long as the owner or the entry is there, and in the partial indexes afterwards.
ABOUT_OWNERS = "slug IS NULL OR kind = 'refused'"
"""The events that are found by the name of their owner: `ix_events_owner` has them."""

events = Table(
    "events",
    metadata,
    Column("id", _integer, Identity(always=False), primary_key=True),
    Column("at", _integer, nullable=False),
    Column("kind", _text, nullable=False),
    Column("owner_id", _integer),
    Column("entry_id", _integer),
    Column("namespace", _text),
    Column("component", _text),
    Column("endpoint", _text),
    Column("instance_id", _text),
    Column("lora_slug", _text),
    Column("slug", _text),
    Column("suffix", _text),
    Column("filename", _text),
    Column("checksum", _text),
    Column("previous_checksum", _text),
    Column("reason", _text),
    Column("actor", _text),
    Column("request_id", _text),
    Column("size", _integer),
    Column("previous_size", _integer),
    # Not IN: SQLite would build its list anew for every row.
    CheckConstraint(" OR ".join(f"kind = '{kind}'" for kind in KINDS), name="kind"),
    # What an older program would write, and nobody would find.
    CheckConstraint("(slug IS NULL) = (entry_id IS NULL)", name="entry"),
    Index("ix_events_owner_id", "owner_id", "entry_id"),
    Index("ix_events_entry_id", "entry_id"),
    Index(
        "ix_events_owner",
        *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
        **_partial(ABOUT_OWNERS),
    ),
    Index(
        "ix_events_removed",
        *("slug", "suffix", "filename"),
        **_partial("kind = 'removed'"),
    ),
    Index(
        "ix_events_refused",
        "at",
        **_partial("kind = 'refused'"),
    ),
    Index(
        "ix_events_uploaded",
        "checksum",
        **_partial("kind = 'uploaded'"),
    ),
    Index(
        "ix_events_request_id",
        "request_id",
        **_partial("request_id IS NOT NULL"),
    ),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

settings = Table(
    "settings",
    metadata,
    Column("name", _text, nullable=False),
    Column("value", _text, nullable=False),
    PrimaryKeyConstraint("name"),
    sqlite_strict=True,
)
