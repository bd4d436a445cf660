"""The whole database looked through: what no view can state."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import bindparam, select

from registry.core import hashing
from registry.core.findings import Finding, Severity
from registry.core.times import format_time
from registry.errors import StorageUnavailable
from registry.store.engine import Connection, Engine
from registry.store.ops.blobs import find_content
from registry.store.reads.audit import find_leaks
from registry.store.sql import Statement
from registry.store.tables import blobs

PAGE_ROWS = 1000

_BLOB_NAMES = Statement(
    select(blobs.c.checksum)
    .where(blobs.c.checksum > bindparam("after"))
    .order_by(blobs.c.checksum)
    .limit(bindparam("row_limit"))
)
_WRONG_CONTENT = """
    SELECT e.slug || '/' || e.suffix || '/' || e.filename, r.blob_checksum, e.checksum
    FROM owner_refs r JOIN entries e ON e.id = r.entry_id
    WHERE r.blob_checksum IS NOT NULL AND r.blob_checksum <> e.checksum
"""
_WRONG_SIZE = """
    SELECT e.slug || '/' || e.suffix || '/' || e.filename, b.size, e.size
    FROM entries e JOIN blobs b ON b.checksum = e.checksum
    WHERE b.size <> e.size
"""
_HELD = """
    SELECT v.namespace || '/' || v.component || '/' || v.endpoint || '/' || v.instance_id || '/'
            || CASE v.lora_slug WHEN '' THEN '_base' ELSE v.lora_slug END,
        v.slug || '/' || v.suffix || '/' || v.filename, v.at, v.id
    FROM events v
    WHERE v.kind IN ('registered', 'replaced')
        AND NOT EXISTS (
            SELECT 1 FROM events s
            WHERE s.owner_id = v.owner_id AND s.entry_id = v.entry_id AND s.id > v.id
                AND s.kind IN ('registered', 'replaced', 'released'))
        AND NOT EXISTS (
            SELECT 1 FROM owner_refs r
            JOIN owners o ON o.id = r.owner_id
            JOIN entries e ON e.id = r.entry_id
            WHERE r.owner_id = v.owner_id AND r.entry_id = v.entry_id)
"""


def verify(engine: Engine) -> Iterator[Finding]:
    """The database as it is stored and as a story: pages, references, content, the journal.

    Reads everything; a large database takes its time. What one look cannot read is a finding, and
    the next look goes on.

    Raises:
        Busy, StorageUnavailable: it cannot be looked at, for reasons that tell nothing of it.
    """
    yield from map(_integrity, engine.find_damage())
    for look in (_verify_content, _verify_journal):
        try:
            with engine.read() as conn:
                yield from look(conn)
        except StorageUnavailable as error:
            if not engine.is_damage(error):
                raise
            yield _integrity(f"it cannot be read: {error.detail}")
    yield from _verify_blobs(engine)


def _verify_content(conn: Connection) -> Iterator[Finding]:
    for entry, held, registered in conn.run_text(_WRONG_CONTENT):
        yield _integrity(f"a ref holds {held} where {registered} is registered", entry=entry)
    for entry, size, registered in conn.run_text(_WRONG_SIZE):
        yield _integrity(f"its content has {size} bytes, not {registered}", entry=entry)


def _verify_journal(conn: Connection) -> Iterator[Finding]:
    yield from find_leaks(conn, ["journal_says_gone"])
    for owner, entry, at, event_id in conn.run_text(_HELD):
        detail = f"event {event_id} registered it and nothing says that it was released"
        since = format_time(at)
        yield Finding("journal_says_held", Severity.CORRUPTION, owner, entry, since, detail)


def _verify_blobs(engine: Engine) -> Iterator[Finding]:
    """Hash every copy, each in a read of its own, so that the service's log can be folded in."""
    after: str | None = ""
    while after is not None:
        try:
            with engine.read() as conn:
                names = conn.run(_BLOB_NAMES, after=after, row_limit=PAGE_ROWS)
        except StorageUnavailable as error:
            if not engine.is_damage(error):
                raise
            yield _integrity(f"the list of copies cannot be read: {error.detail}")
            return
        for (name,) in names:
            wrong = _wrong_with_blob(engine, name)
            if wrong is not None:
                yield _integrity(wrong, entry=name)
        after = names[-1][0] if names else None


def _wrong_with_blob(engine: Engine, checksum: str) -> str | None:
    try:
        with engine.read() as conn:
            content = find_content(conn, checksum)
    except StorageUnavailable as error:
        if not engine.is_damage(error):
            raise
        return f"its bytes cannot be read: {error.detail}"
    if content is None or hashing.checksum_of(content) == checksum:
        return None  # It is right, or it was removed meanwhile.
    return "its bytes have another checksum"


def _integrity(detail: str, entry: str | None = None) -> Finding:
    advice = f"{detail}; restore a backup"
    return Finding("integrity", Severity.CORRUPTION, None, entry, None, advice)
