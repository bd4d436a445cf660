"""The views that people audit with: one text, and what engines spell differently in it.

They hold no data, so they need no revision: a program that starts replaces those whose text is
another than here, and so does every upgrade and downgrade (migrations/env.py). Raise VERSION
whenever a text changes: of two programs at the same schema revision that use one database, the one
with the higher number has its views there, and the other leaves them alone.

They use only tables, `clock` and `settings`, so that any SQL client sees what the service sees.
Where a time bounds a range of an index, it comes from a subquery of its own: joined with `policy`,
SQLite would look at every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from textwrap import dedent
from typing import NamedTuple

from registry.core.policy import DEFAULTS
from registry.store.journal import UNRESOLVED

VERSION = 4
"""The number of these texts. A test holds the two together."""

RECORDED_AS = "views_version"
"""The row of `settings` that has the number of the views in a database."""


class Spelling(NamedTuple):
    """How an engine spells what is not the same everywhere. `{}` stands for an operand."""

    now_ms: str
    """The time in milliseconds."""
    utc: str
    """A time in milliseconds as text: `2026-01-31T12:00:00.000Z`."""
    same: str
    """The comparison in which NULL is equal to NULL."""
    items: str
    """The items of a JSON array of texts as a table `j` with a column `value`."""


def spelled(engine: Spelling) -> dict[str, str]:
    """The views as an engine spells them, in the order in which they are made."""
    same = engine.same
    words = {
        "now_ms": engine.now_ms,
        "utc": _Operands(engine.utc),
        "items": engine.items.format("s.value"),
        "defaults": DEFAULTS,
        "unresolved": UNRESOLVED,
        "has_bytes": f"r.status = 'ok' AND (r.path IS NOT NULL OR b.checksum {same} e.checksum)",
        "is_explained": f"v.owner_id {same} r.owner_id AND v.entry_id {same} r.entry_id "
        f"AND v.checksum {same} e.checksum AND v.kind IN ('registered', 'replaced')",
    }
    return {name: text.format_map(words) for name, text in _TEXTS.items()}


class _Operands:
    """`{utc[o.ended_at]}` is the spelling with that operand."""

    def __init__(self, spelling: str) -> None:
        self._spelling = spelling

    def __getitem__(self, operand: str) -> str:
        return self._spelling.format(operand)


def version_of(recorded: str | None) -> int:
    """The number in a database; 0: there is none that one could read."""
    return int(recorded) if recorded is not None and recorded.isdecimal() else 0


def dropping(names: Iterable[str]) -> Iterator[str]:
    """The statements that take views away."""
    for name in sorted({*names} - {"clock"}):
        yield f"DROP VIEW IF EXISTS {name}"
    yield "DROP VIEW IF EXISTS clock"  # Others speak of it.


def replacing(
    names: Iterable[str], wanted: Mapping[str, str], version: int | None
) -> Iterator[str]:
    """The statements that put views in the place of those that are there. Without a version any
    program at the revision may replace them by its own."""
    yield from dropping({*names, *wanted})
    for text in wanted.values():
        yield dedent(text).strip()
    yield f"DELETE FROM settings WHERE name = '{RECORDED_AS}'"
    if version is not None:
        yield f"INSERT INTO settings (name, value) VALUES ('{RECORDED_AS}', '{version}')"


_OWNER_FOOTPRINT = """
CREATE VIEW owner_footprint AS
SELECT o.namespace, o.component, o.endpoint, o.instance_id, o.lora_slug, o.worker_name, o.state,
    COUNT(r.entry_id) AS refs,
    CAST(COALESCE(SUM(e.size), 0) AS BIGINT) AS bytes,
    COUNT(r.blob_checksum) AS copied,
    COUNT(r.path) AS in_place,
    {utc[o.registered_at]} AS registered_at,
    {utc[o.renewed_at]} AS renewed_at,
    {utc[o.lease_expires_at]} AS lease_expires_at,
    {utc[o.ended_at]} AS ended_at,
    o.id AS owner_id
FROM owners o
LEFT JOIN owner_refs r ON r.owner_id = o.id
LEFT JOIN entries e ON e.id = r.entry_id
GROUP BY o.id
"""

_HOLDERS = """
CREATE VIEW holders AS
SELECT e.slug, e.suffix, e.filename, o.namespace, o.component, o.endpoint, o.instance_id,
    o.lora_slug, o.worker_name, o.state,
    CASE WHEN r.path IS NULL THEN 'copied' ELSE 'in_place' END AS source,
    r.path, r.status, e.checksum, e.size,
    {utc[r.created_at]} AS since,
    {utc[o.lease_expires_at]} AS lease_expires_at,
    r.owner_id, r.entry_id
FROM owner_refs r
JOIN owners o ON o.id = r.owner_id
JOIN entries e ON e.id = r.entry_id
"""

_LEAKS = """
CREATE VIEW leaks AS
WITH policy AS (
    SELECT (SELECT now_ms FROM clock) AS now,
        COALESCE((SELECT CAST(value AS BIGINT) FROM settings
            WHERE name = 'lease_grace_ms'), {defaults.lease_grace_ms}) AS lease_grace,
        COALESCE((SELECT CAST(value AS BIGINT) FROM settings
            WHERE name = 'upload_grace_ms'), {defaults.upload_grace_ms}) AS upload_grace,
        COALESCE((SELECT CAST(value AS BIGINT) FROM settings
            WHERE name = 'scrub_period_ms'), {defaults.scrub_period_ms}) AS scrub_period
),
/* The refs with anything wrong: whatever can be said of a ref is looked for in one pass. */
wrong AS MATERIALIZED (
    SELECT r.owner_id, r.entry_id, r.path, r.blob_checksum, r.status, r.verified_at, r.created_at,
        r.event_id, o.id AS owner, e.id AS entry, b.checksum AS blob, v.id AS event,
        {has_bytes} AS has_bytes,
        {is_explained} AS is_explained
    FROM owner_refs r
    LEFT JOIN owners o ON o.id = r.owner_id
    LEFT JOIN entries e ON e.id = r.entry_id
    LEFT JOIN blobs b ON b.checksum = r.blob_checksum
    LEFT JOIN events v ON v.id = r.event_id
    WHERE NOT ({has_bytes}) OR NOT ({is_explained}) OR o.id IS NULL OR e.id IS NULL
),
found (class, severity, owner_id, entry_id, owner, entry, since_ms, detail) AS (
    SELECT 'orphan_entry', 'leak', NULL, e.id, NULL, NULL, e.updated_at,
        'nobody holds it: remove it with an administrator''s delete'
    FROM entries e
    WHERE e.id IN (
        SELECT n.id FROM entries n
        WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.entry_id = n.id))
    UNION ALL
    SELECT 'ref_of_ended_owner', 'leak', o.id, r.entry_id, NULL, NULL, o.ended_at,
        'the owner is ' || o.state || ' and still holds it: unregister the owner'
    FROM owners o JOIN owner_refs r ON r.owner_id = o.id
    WHERE o.state IN ('detached', 'expired', 'superseded')
    UNION ALL
    SELECT 'dangling_ref', 'corruption', w.owner_id, w.entry_id,
        CASE WHEN w.owner IS NULL THEN 'owner ' || w.owner_id END,
        CASE WHEN w.entry IS NULL THEN 'entry ' || w.entry_id END, w.created_at,
        'its ' || CASE WHEN w.owner IS NULL THEN 'owner' ELSE 'entry' END
            || ' is not there: somebody wrote with foreign keys off; restore a backup'
    FROM wrong w
    WHERE w.owner IS NULL OR w.entry IS NULL
    UNION ALL
    SELECT 'lapsed_lease', 'leak', o.id, NULL, NULL, NULL, o.lease_expires_at,
        'its lease lapsed longer ago than the grace period: sweep'
    FROM owners o, policy p
    WHERE o.state = 'active' AND o.lease_expires_at + p.lease_grace < p.now
        AND EXISTS (SELECT 1 FROM owner_refs r WHERE r.owner_id = o.id)
    UNION ALL
    SELECT 'superseded_incarnation', 'leak', o.id, NULL, NULL, NULL, o.renewed_at,
        'a newer instance of ' || o.worker_name || ' has registered since: unregister this one'
    FROM owners o
    WHERE o.state = 'active' AND o.worker_name IS NOT NULL
        AND EXISTS (SELECT 1 FROM owner_refs r WHERE r.owner_id = o.id)
        AND EXISTS (
            SELECT 1 FROM owners n
            WHERE n.namespace = o.namespace AND n.component = o.component
                AND n.endpoint = o.endpoint AND n.worker_name = o.worker_name
                AND n.instance_id <> o.instance_id AND n.registered_at > o.renewed_at
                AND n.state IN ('active', 'draining'))
    UNION ALL
    SELECT 'stuck_drain', 'leak', o.id, NULL, NULL, NULL, o.drain_deadline_at,
        'draining past its deadline: see that discovery does not list it, then unregister it'
    FROM owners o, policy p
    WHERE o.state = 'draining' AND o.drain_deadline_at < p.now
    UNION ALL
    SELECT 'orphan_blob', 'leak', NULL, NULL, NULL, b.checksum, b.uploaded_at,
        b.size || ' bytes were uploaded and not registered in time: sweep'
    FROM policy p, blobs b
    WHERE b.uploaded_at + p.upload_grace < p.now
        AND NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.blob_checksum = b.checksum)
    UNION ALL
    SELECT 'immortal_owner', 'note', o.id, NULL, NULL, NULL, o.registered_at,
        'it has no lease and holds entries until it is unregistered'
    FROM owners o
    WHERE o.state = 'active' AND o.lease_expires_at IS NULL
        AND EXISTS (SELECT 1 FROM owner_refs r WHERE r.owner_id = o.id)
    UNION ALL
    SELECT 'ghost_owner', 'note', o.id, NULL, NULL, NULL, o.registered_at,
        'active for an hour and holds nothing: it ends with its lease'
    FROM owners o, policy p
    WHERE o.state = 'active' AND o.registered_at + 3600000 < p.now
        AND NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.owner_id = o.id)
    UNION ALL
    SELECT 'unserveable_entry', 'fault', NULL, e.id, NULL, NULL, e.updated_at,
        'no holder has bytes with ' || e.checksum || ': tell the holders'
    FROM (SELECT entry_id, COUNT(*) AS refs FROM wrong WHERE NOT has_bytes GROUP BY entry_id) w
    JOIN entries e ON e.id = w.entry_id
    WHERE w.refs = (SELECT COUNT(*) FROM owner_refs r WHERE r.entry_id = e.id)
    UNION ALL
    SELECT CASE WHEN w.status <> 'missing' THEN 'drifted_ref'
            WHEN w.is_outside THEN 'root_missing' ELSE 'missing_file' END, 'fault',
        w.owner_id, w.entry_id, NULL, NULL, w.verified_at,
        CASE WHEN w.status <> 'missing' THEN w.path || ' holds other bytes than were registered'
            WHEN w.is_outside THEN w.path || ' lies below no artifact root of the service that is'
                || ' there: start it with that root, or unregister its owner'
            ELSE w.path || ' is gone or cannot be read' END
            || CASE WHEN w.is_outside THEN '' ELSE ': tell the owner' END
    FROM (
        SELECT w.*, w.status = 'missing'
            AND EXISTS (SELECT 1 FROM settings s WHERE s.name = 'artifact_roots')
            AND NOT EXISTS (
                SELECT 1 FROM settings s, {items}
                WHERE s.name = 'artifact_roots'
                    AND substr(w.path, 1, length(j.value)) = j.value) AS is_outside
        FROM wrong w
        WHERE w.status <> 'ok') w
    UNION ALL
    SELECT 'missing_blob', 'corruption', w.owner_id, w.entry_id, NULL, NULL, w.created_at,
        'its content ' || w.blob_checksum || ' is not there: upload it again, or restore a backup'
    FROM wrong w
    WHERE w.blob_checksum IS NOT NULL AND w.blob IS NULL
    UNION ALL
    SELECT 'unverified_ref', 'note', r.owner_id, r.entry_id, NULL, NULL, r.verified_at,
        r.path || ' was not hashed for longer than the scrub period'
    FROM owner_refs r
    WHERE r.path IS NOT NULL
        AND r.verified_at < (SELECT now - scrub_period FROM policy WHERE scrub_period > 0)
    UNION ALL
    SELECT 'journal_says_gone', 'corruption', w.owner_id, w.entry_id, NULL, NULL, w.created_at,
        'event ' || w.event_id || CASE WHEN w.event IS NULL THEN ' is not in the journal'
            ELSE ' is not its registration' END || ': somebody wrote past the registry'
    FROM wrong w
    WHERE NOT w.is_explained AND w.owner IS NOT NULL AND w.entry IS NOT NULL
    UNION ALL
    SELECT 'unresolved_conflict', 'fault', NULL, NULL,
        v.namespace || '/' || v.component || '/' || v.endpoint || '/' || v.instance_id || '/'
            || CASE v.lora_slug WHEN '' THEN '_base' ELSE v.lora_slug END,
        v.slug || '/' || v.suffix || '/' || v.filename, v.at,
        'refused ' || v.checksum || ' for it, ' || v.reason || ': which bytes are right?'
    FROM events v
    WHERE v.at > (SELECT now - 3600000 FROM policy)
        AND {unresolved}
)
SELECT f.class, f.severity,
    COALESCE(f.owner, o.namespace || '/' || o.component || '/' || o.endpoint || '/'
        || o.instance_id || '/' || CASE o.lora_slug WHEN '' THEN '_base' ELSE o.lora_slug END)
        AS owner,
    COALESCE(f.entry, e.slug || '/' || e.suffix || '/' || e.filename) AS entry,
    {utc[f.since_ms]} AS since,
    f.detail
FROM found f
LEFT JOIN owners o ON o.id = f.owner_id
LEFT JOIN entries e ON e.id = f.entry_id
"""

_JOURNAL = """
CREATE VIEW journal AS
SELECT v.id, {utc[v.at]} AS at, v.kind,
    v.namespace, v.component, v.endpoint, v.instance_id, v.lora_slug,
    v.slug, v.suffix, v.filename, v.checksum, v.previous_checksum, v.size, v.previous_size,
    CASE v.kind WHEN 'created' THEN v.size WHEN 'removed' THEN -v.size
        WHEN 'replaced' THEN v.size - v.previous_size ELSE 0 END AS growth,
    v.reason, v.actor, v.request_id, v.owner_id, v.entry_id, v.at AS at_ms
FROM events v
"""

_TEXTS = {
    "clock": "CREATE VIEW clock AS SELECT {now_ms} AS now_ms",
    "holders": _HOLDERS.strip(),
    "owner_footprint": _OWNER_FOOTPRINT.strip(),
    "leaks": _LEAKS.strip(),
    "journal": _JOURNAL.strip(),
}
