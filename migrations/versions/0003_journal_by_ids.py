"""The journal by ids: events carry the ids of their owner and entry, and short indexes of them take
the place of the long ones of names.

Ids are never used twice, so they stand for an owner or a key also after it is gone. Events from
before this revision get the ids of what is there; where it is gone, a negative number that all
events of that owner or key have in common.

An older program would write events without ids, so this revision asks for a program that knows it;
what one that still runs would write is refused.

Frozen: it spells its DDL out and imports nothing of `registry`.
"""

from __future__ import annotations

from textwrap import dedent

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KIND = """
    kind = 'released' OR kind = 'registered' OR kind = 'created' OR kind = 'removed' OR
    kind = 'attached' OR kind = 'drained' OR kind = 'detached' OR kind = 'expired' OR
    kind = 'superseded' OR kind = 'replaced' OR kind = 'refused' OR kind = 'drifted' OR
    kind = 'missing' OR kind = 'restored' OR kind = 'expiry_paused' OR kind = 'expiry_resumed' OR
    kind = 'upgraded'
""".strip()

ENTRY = "(slug IS NULL) = (entry_id IS NULL)"

KIND_BEFORE = """
    kind IN (
        'attached', 'drained', 'detached', 'expired', 'superseded', 'registered', 'replaced',
        'refused', 'released', 'drifted', 'missing', 'restored', 'created', 'removed',
        'expiry_paused', 'expiry_resumed', 'upgraded')
""".strip()

IDS = ("owner_id", "entry_id")

NAMES = (
    *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
    *("slug", "suffix", "filename"),
    *("checksum", "previous_checksum", "reason", "actor", "request_id"),
)

INDEXES = (
    "CREATE INDEX ix_events_owner_id ON events (owner_id, entry_id)",
    "CREATE INDEX ix_events_entry_id ON events (entry_id)",
    """
    CREATE INDEX ix_events_owner
    ON events (namespace, component, endpoint, instance_id, lora_slug)
    WHERE slug IS NULL OR kind = 'refused'
    """,
    """
    CREATE INDEX ix_events_removed
    ON events (slug, suffix, filename)
    WHERE kind = 'removed'
    """,
)

INDEXES_BEFORE = (
    """
    CREATE INDEX ix_events_owner
    ON events (namespace, component, endpoint, instance_id, lora_slug, slug)
    """,
    "CREATE INDEX ix_events_key ON events (slug, suffix, filename)",
)

REFUSED = "CREATE INDEX ix_events_refused ON events (at) WHERE kind = 'refused'"

# Of the owner and the entry as they are now, or else the first event of the same name.
OWNER_ID = """
    COALESCE(o.id, -MIN(v.id) OVER (
        PARTITION BY v.namespace, v.component, v.endpoint, v.instance_id, v.lora_slug))
"""
ENTRY_ID = "COALESCE(e.id, -MIN(v.id) OVER (PARTITION BY v.slug, v.suffix, v.filename))"
WITH_IDS = f"""
    SELECT v.id, v.at, v.kind,
        CASE WHEN v.namespace IS NOT NULL AND v.kind <> 'refused' THEN {OWNER_ID.strip()} END
            AS owner_id,
        CASE WHEN v.slug IS NOT NULL THEN {ENTRY_ID} END AS entry_id,
        {", ".join("v." + name for name in NAMES)}
    FROM events v
    LEFT JOIN owners o ON o.namespace = v.namespace AND o.component = v.component
        AND o.endpoint = v.endpoint AND o.instance_id = v.instance_id
        AND o.lora_slug = v.lora_slug
    LEFT JOIN entries e ON e.slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
    ORDER BY v.id
"""
WITHOUT_IDS = f"SELECT id, at, kind, {', '.join(NAMES)} FROM events ORDER BY id"


def upgrade() -> None:
    if on_sqlite():
        op.execute("DROP VIEW IF EXISTS leaks")
        rebuild((*IDS, *NAMES), {"kind": KIND, "entry": ENTRY}, WITH_IDS)
        run((*INDEXES, REFUSED))
    else:
        for column in IDS:
            op.execute(f"ALTER TABLE events ADD COLUMN {column} BIGINT")
        fill = f"UPDATE events SET owner_id = w.owner_id, entry_id = w.entry_id FROM ({WITH_IDS}) w"
        run(
            (
                f"{fill} WHERE w.id = events.id",
                "DROP INDEX ix_events_owner",
                "DROP INDEX ix_events_key",
                "ALTER TABLE events DROP CONSTRAINT ck_events_kind",
                f"ALTER TABLE events ADD CONSTRAINT ck_events_kind CHECK ({KIND})",
                f"ALTER TABLE events ADD CONSTRAINT ck_events_entry CHECK ({ENTRY})",
                *INDEXES,
            )
        )
    ask_for("0003")


def downgrade() -> None:
    if on_sqlite():
        op.execute("DROP VIEW IF EXISTS leaks")
        rebuild(NAMES, {"kind": KIND_BEFORE}, WITHOUT_IDS)
        run((*INDEXES_BEFORE, REFUSED))
    else:
        for index in ("owner_id", "entry_id", "owner", "removed"):
            op.execute(f"DROP INDEX ix_events_{index}")
        op.execute("ALTER TABLE events DROP CONSTRAINT ck_events_entry")
        for column in IDS:
            op.execute(f"ALTER TABLE events DROP COLUMN {column}")
        op.execute("ALTER TABLE events DROP CONSTRAINT ck_events_kind")
        op.execute(f"ALTER TABLE events ADD CONSTRAINT ck_events_kind CHECK ({KIND_BEFORE})")
        run(INDEXES_BEFORE)
    ask_for("0001")


def rebuild(columns: tuple[str, ...], checks: dict[str, str], rows: str) -> None:
    """Make the table anew on SQLite. Its ids go on where they were."""
    types = dict.fromkeys(IDS, "INTEGER")
    parts = [f"    {name} {types.get(name, 'TEXT')}" for name in columns]
    parts += [f"    CONSTRAINT ck_events_{name} CHECK ({rule})" for name, rule in checks.items()]
    lines = ",\n".join(parts)
    table = f"""
CREATE TABLE events_made_anew (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
{lines}
) STRICT
"""
    sequence = """
        INSERT INTO sqlite_sequence (name, seq)
        SELECT 'events_made_anew', seq FROM sqlite_sequence WHERE name = 'events'
    """
    run(
        (
            table,
            f"INSERT INTO events_made_anew {rows.strip()}",
            "DELETE FROM sqlite_sequence WHERE name = 'events_made_anew'",
            sequence,
            "DROP TABLE events",
            "ALTER TABLE events_made_anew RENAME TO events",
        )
    )


def ask_for(revision: str) -> None:
    op.execute(f"UPDATE settings SET value = '{revision}' WHERE name = 'min_program_revision'")


def on_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def run(statements: tuple[str, ...]) -> None:
    for statement in statements:
        op.execute(dedent(statement).strip())


# What this revision's programs need instead of what uses the revision behind it.
LEAKS = """
CREATE VIEW leaks AS
WITH policy AS (
    SELECT (SELECT now_ms FROM clock) AS now,
        COALESCE((SELECT CAST(value AS INTEGER) FROM settings
            WHERE name = 'lease_grace_ms'), 300000) AS lease_grace,
        COALESCE((SELECT CAST(value AS INTEGER) FROM settings
            WHERE name = 'upload_grace_ms'), 900000) AS upload_grace,
        COALESCE((SELECT CAST(value AS INTEGER) FROM settings
            WHERE name = 'scrub_period_ms'), 86400000) AS scrub_period
),
/* The refs with anything wrong: whatever can be said of a ref is looked for in one pass. */
wrong AS MATERIALIZED (
    SELECT r.owner_id, r.entry_id, r.path, r.blob_checksum, r.status, r.verified_at, r.created_at,
        r.event_id, o.id AS owner, e.id AS entry, b.checksum AS blob, v.id AS event,
        r.status = 'ok' AND (r.path IS NOT NULL OR b.checksum IS e.checksum) AS has_bytes,
        v.owner_id IS r.owner_id AND v.entry_id IS r.entry_id AND v.checksum IS e.checksum
            AND v.kind IN ('registered', 'replaced') AS is_explained
    FROM owner_refs r
    LEFT JOIN owners o ON o.id = r.owner_id
    LEFT JOIN entries e ON e.id = r.entry_id
    LEFT JOIN blobs b ON b.checksum = r.blob_checksum
    LEFT JOIN events v ON v.id = r.event_id
    WHERE NOT has_bytes OR NOT is_explained OR o.id IS NULL OR e.id IS NULL
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
                SELECT 1 FROM settings s, json_each(s.value) j
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
        AND v.kind = 'refused'
        AND NOT EXISTS (
            SELECT 1 FROM events s
            WHERE s.namespace = v.namespace AND s.component = v.component
                AND s.endpoint = v.endpoint AND s.instance_id = v.instance_id
                AND s.lora_slug = v.lora_slug AND (s.slug IS NULL OR s.kind = 'refused')
                AND s.id > v.id
                AND (s.kind IN ('detached', 'expired', 'superseded')
                    OR s.kind = 'refused' AND s.slug = v.slug
                        AND s.suffix = v.suffix AND s.filename = v.filename))
        AND NOT EXISTS (
            SELECT 1 FROM owners o JOIN events s ON s.owner_id = o.id
            WHERE o.namespace = v.namespace AND o.component = v.component
                AND o.endpoint = v.endpoint AND o.instance_id = v.instance_id
                AND o.lora_slug = v.lora_slug
                AND s.id > v.id AND s.kind IN ('registered', 'replaced')
                AND s.entry_id IN (
                    SELECT e.id FROM entries e
                    WHERE e.slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
                    UNION ALL
                    SELECT g.entry_id FROM events g
                    WHERE g.slug = v.slug AND g.suffix = v.suffix AND g.filename = v.filename
                        AND g.kind = 'removed' AND g.id > v.id))
)
SELECT f.class, f.severity,
    COALESCE(f.owner, o.namespace || '/' || o.component || '/' || o.endpoint || '/'
        || o.instance_id || '/' || CASE o.lora_slug WHEN '' THEN '_base' ELSE o.lora_slug END)
        AS owner,
    COALESCE(f.entry, e.slug || '/' || e.suffix || '/' || e.filename) AS entry,
    strftime('%Y-%m-%dT%H:%M:%fZ', f.since_ms / 1000.0, 'unixepoch') AS since,
    f.detail
FROM found f
LEFT JOIN owners o ON o.id = f.owner_id
LEFT JOIN entries e ON e.id = f.entry_id
"""

VIEWS = {"leaks": LEAKS}
