"""Leases, incarnations and the audit: indexes for the sweeper, the views `leaks` and
`owner_footprint`.

Frozen: it spells its DDL out and imports nothing of `registry`.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_owners_worker": """
        ON owners (namespace, component, endpoint, worker_name, state)
        WHERE worker_name IS NOT NULL
    """,
    "ix_owners_superseded": """
        ON owners (namespace, component, endpoint, instance_id) WHERE state = 'superseded'
    """,
    "ix_owner_refs_verified_at": "ON owner_refs (verified_at) WHERE path IS NOT NULL",
    "ix_events_refused": "ON events (at) WHERE kind = 'refused'",
}

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
found (class, severity, owner_id, entry_id, owner, entry, since_ms, detail) AS (
    SELECT 'orphan_entry', 'leak', NULL, e.id, NULL, NULL, e.updated_at,
        'nobody holds it: remove it with an administrator''s delete'
    FROM entries e
    WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.entry_id = e.id)
    UNION ALL
    SELECT 'ref_of_ended_owner', 'leak', o.id, r.entry_id, NULL, NULL, o.ended_at,
        'the owner is ' || o.state || ' and still holds it: unregister the owner'
    FROM owners o JOIN owner_refs r ON r.owner_id = o.id
    WHERE o.state IN ('detached', 'expired', 'superseded')
    UNION ALL
    SELECT 'dangling_ref', 'corruption', r.owner_id, r.entry_id,
        CASE WHEN o.id IS NULL THEN 'owner ' || r.owner_id END,
        CASE WHEN e.id IS NULL THEN 'entry ' || r.entry_id END, r.created_at,
        'its ' || CASE WHEN o.id IS NULL THEN 'owner' ELSE 'entry' END
            || ' is not there: somebody wrote with foreign keys off; restore a backup'
    FROM owner_refs r
    LEFT JOIN owners o ON o.id = r.owner_id
    LEFT JOIN entries e ON e.id = r.entry_id
    WHERE o.id IS NULL OR e.id IS NULL
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
    FROM entries e
    WHERE EXISTS (SELECT 1 FROM owner_refs r WHERE r.entry_id = e.id)
        AND NOT EXISTS (
            SELECT 1 FROM owner_refs r
            WHERE r.entry_id = e.id AND r.status = 'ok'
                AND (r.path IS NOT NULL OR EXISTS (
                    SELECT 1 FROM blobs b
                    WHERE b.checksum = r.blob_checksum AND b.checksum = e.checksum)))
    UNION ALL
    SELECT CASE r.status WHEN 'missing' THEN 'missing_file' ELSE 'drifted_ref' END, 'fault',
        r.owner_id, r.entry_id, NULL, NULL, r.verified_at,
        CASE r.status WHEN 'missing' THEN r.path || ' is gone or cannot be read'
            ELSE r.path || ' holds other bytes than were registered' END || ': tell the owner'
    FROM owner_refs r
    WHERE r.status <> 'ok'
    UNION ALL
    SELECT 'missing_blob', 'corruption', r.owner_id, r.entry_id, NULL, NULL, r.created_at,
        'its content ' || r.blob_checksum || ' is not there: upload it again, or restore a backup'
    FROM owner_refs r
    WHERE r.blob_checksum IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.checksum = r.blob_checksum)
    UNION ALL
    SELECT 'unverified_ref', 'note', r.owner_id, r.entry_id, NULL, NULL, r.verified_at,
        r.path || ' was not hashed for longer than the scrub period'
    FROM owner_refs r
    WHERE r.path IS NOT NULL
        AND r.verified_at < (SELECT now - scrub_period FROM policy WHERE scrub_period > 0)
    UNION ALL
    SELECT 'journal_says_gone', 'corruption', r.owner_id, r.entry_id, NULL, NULL, r.created_at,
        'event ' || r.event_id || CASE WHEN v.id IS NULL THEN ' is not in the journal'
            ELSE ' is not its registration' END || ': somebody wrote past the registry'
    FROM owner_refs r
    JOIN owners o ON o.id = r.owner_id
    JOIN entries e ON e.id = r.entry_id
    LEFT JOIN events v ON v.id = r.event_id
    WHERE v.id IS NULL OR v.kind NOT IN ('registered', 'replaced')
        OR v.slug <> e.slug OR v.suffix <> e.suffix OR v.filename <> e.filename
        OR v.checksum <> e.checksum
        OR v.namespace <> o.namespace OR v.component <> o.component OR v.endpoint <> o.endpoint
        OR v.instance_id <> o.instance_id OR v.lora_slug <> o.lora_slug
    UNION ALL
    SELECT 'unresolved_conflict', 'fault', NULL, NULL,
        v.namespace || '/' || v.component || '/' || v.endpoint || '/' || v.instance_id || '/'
            || CASE v.lora_slug WHEN '' THEN '_base' ELSE v.lora_slug END,
        v.slug || '/' || v.suffix || '/' || v.filename, v.at,
        'refused ' || v.checksum || ' for it, ' || v.reason || ': which bytes are right?'
    FROM events v
    WHERE v.kind = 'refused' AND v.at > (SELECT now - 3600000 FROM policy)
        AND NOT EXISTS (
            SELECT 1 FROM events s
            WHERE s.namespace = v.namespace AND s.component = v.component
                AND s.endpoint = v.endpoint AND s.instance_id = v.instance_id
                AND s.lora_slug = v.lora_slug AND s.id > v.id
                AND (s.kind IN ('detached', 'expired', 'superseded')
                    OR s.kind IN ('registered', 'replaced', 'refused') AND s.slug = v.slug
                        AND s.suffix = v.suffix AND s.filename = v.filename))
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


# The other views come from the program. This one finds the events by names, as later ones do not.
VIEWS = {"leaks": LEAKS}


def upgrade() -> None:
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX {name} {definition.strip()}")


def downgrade() -> None:
    for name in reversed(INDEXES):
        op.execute(f"DROP INDEX {name}")
