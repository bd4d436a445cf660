"""The first schema.

Frozen: it spells its DDL out and imports nothing of `registry`.
"""

from __future__ import annotations

from textwrap import dedent

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ID = 0x4D524547

SQLITE_TABLES = (
    """
    CREATE TABLE owners (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        component TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        lora_slug TEXT DEFAULT '' NOT NULL,
        worker_name TEXT,
        state TEXT NOT NULL,
        lease_ttl_ms INTEGER,
        lease_expires_at INTEGER,
        registered_at INTEGER NOT NULL,
        renewed_at INTEGER NOT NULL,
        drain_deadline_at INTEGER,
        ended_at INTEGER,
        end_reason TEXT,
        CONSTRAINT uq_owners_identity
            UNIQUE (namespace, component, endpoint, instance_id, lora_slug),
        CONSTRAINT ck_owners_state
            CHECK (state IN ('active', 'draining', 'detached', 'expired', 'superseded')),
        CONSTRAINT ck_owners_lease
            CHECK ((lease_ttl_ms IS NULL) = (lease_expires_at IS NULL)),
        CONSTRAINT ck_owners_ended
            CHECK ((state IN ('active', 'draining')) = (ended_at IS NULL)),
        CONSTRAINT ck_owners_drain
            CHECK ((state = 'draining') = (drain_deadline_at IS NOT NULL)),
        CONSTRAINT ck_owners_instance_id CHECK (length(instance_id) BETWEEN 1 AND 20)
    ) STRICT
    """,
    """
    CREATE TABLE entries (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        slug TEXT NOT NULL,
        suffix TEXT NOT NULL,
        filename TEXT NOT NULL,
        checksum TEXT NOT NULL,
        size INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        CONSTRAINT uq_entries_key UNIQUE (slug, suffix, filename),
        CONSTRAINT ck_entries_checksum
            CHECK (length(checksum) = 71 AND substr(checksum, 1, 7) = 'blake3:'),
        CONSTRAINT ck_entries_size CHECK (size >= 0),
        CONSTRAINT ck_entries_generation CHECK (generation >= 1)
    ) STRICT
    """,
    """
    CREATE TABLE blobs (
        checksum TEXT NOT NULL,
        size INTEGER NOT NULL,
        uploaded_at INTEGER NOT NULL,
        content BLOB NOT NULL,
        CONSTRAINT pk_blobs PRIMARY KEY (checksum),
        CONSTRAINT ck_blobs_checksum
            CHECK (length(checksum) = 71 AND substr(checksum, 1, 7) = 'blake3:'),
        CONSTRAINT ck_blobs_size CHECK (size = length(content))
    ) STRICT
    """,
    """
    CREATE TABLE owner_refs (
        owner_id INTEGER NOT NULL,
        entry_id INTEGER NOT NULL,
        blob_checksum TEXT,
        path TEXT,
        file_identity TEXT,
        status TEXT NOT NULL,
        verified_at INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        event_id INTEGER NOT NULL,
        CONSTRAINT pk_owner_refs PRIMARY KEY (owner_id, entry_id),
        CONSTRAINT ck_owner_refs_source CHECK ((path IS NULL) = (blob_checksum IS NOT NULL)),
        CONSTRAINT ck_owner_refs_file_identity CHECK (file_identity IS NULL OR path IS NOT NULL),
        CONSTRAINT ck_owner_refs_status CHECK (status IN ('ok', 'drifted', 'missing')),
        CONSTRAINT fk_owner_refs_owner_id
            FOREIGN KEY (owner_id) REFERENCES owners (id) ON DELETE RESTRICT,
        CONSTRAINT fk_owner_refs_entry_id
            FOREIGN KEY (entry_id) REFERENCES entries (id) ON DELETE RESTRICT,
        CONSTRAINT fk_owner_refs_blob_checksum
            FOREIGN KEY (blob_checksum) REFERENCES blobs (checksum) ON DELETE RESTRICT
    ) WITHOUT ROWID, STRICT
    """,
    """
    CREATE TABLE events (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        namespace TEXT,
        component TEXT,
        endpoint TEXT,
        instance_id TEXT,
        lora_slug TEXT,
        slug TEXT,
        suffix TEXT,
        filename TEXT,
        checksum TEXT,
        previous_checksum TEXT,
        reason TEXT,
        actor TEXT,
        request_id TEXT,
        CONSTRAINT ck_events_kind CHECK (kind IN (
            'attached', 'drained', 'detached', 'expired', 'superseded', 'registered', 'replaced',
            'refused', 'released', 'drifted', 'missing', 'restored', 'created', 'removed',
            'expiry_paused', 'expiry_resumed', 'upgraded'))
    ) STRICT
    """,
    """
    CREATE TABLE settings (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        CONSTRAINT pk_settings PRIMARY KEY (name)
    ) STRICT
    """,
)

SQLITE_VIEWS = (
    """
    CREATE VIEW clock AS
    SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AS now_ms
    """,
    """
    CREATE VIEW holders AS
    SELECT e.slug, e.suffix, e.filename, o.namespace, o.component, o.endpoint, o.instance_id,
           o.lora_slug, o.worker_name, o.state,
           CASE WHEN r.path IS NULL THEN 'copied' ELSE 'in_place' END AS source,
           r.path, r.status, e.checksum, e.size,
           strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at / 1000.0, 'unixepoch') AS since,
           strftime('%Y-%m-%dT%H:%M:%fZ', o.lease_expires_at / 1000.0, 'unixepoch')
               AS lease_expires_at,
           r.owner_id, r.entry_id
    FROM owner_refs r
    JOIN owners o ON o.id = r.owner_id
    JOIN entries e ON e.id = r.entry_id
    """,
)

# On PostgreSQL text compares bytewise, as on SQLite.
POSTGRESQL_TABLES = (
    """
    CREATE TABLE owners (
        id BIGINT GENERATED BY DEFAULT AS IDENTITY,
        namespace TEXT COLLATE "C" NOT NULL,
        component TEXT COLLATE "C" NOT NULL,
        endpoint TEXT COLLATE "C" NOT NULL,
        instance_id TEXT COLLATE "C" NOT NULL,
        lora_slug TEXT COLLATE "C" DEFAULT '' NOT NULL,
        worker_name TEXT COLLATE "C",
        state TEXT COLLATE "C" NOT NULL,
        lease_ttl_ms BIGINT,
        lease_expires_at BIGINT,
        registered_at BIGINT NOT NULL,
        renewed_at BIGINT NOT NULL,
        drain_deadline_at BIGINT,
        ended_at BIGINT,
        end_reason TEXT COLLATE "C",
        CONSTRAINT pk_owners PRIMARY KEY (id),
        CONSTRAINT uq_owners_identity
            UNIQUE (namespace, component, endpoint, instance_id, lora_slug),
        CONSTRAINT ck_owners_state
            CHECK (state IN ('active', 'draining', 'detached', 'expired', 'superseded')),
        CONSTRAINT ck_owners_lease
            CHECK ((lease_ttl_ms IS NULL) = (lease_expires_at IS NULL)),
        CONSTRAINT ck_owners_ended
            CHECK ((state IN ('active', 'draining')) = (ended_at IS NULL)),
        CONSTRAINT ck_owners_drain
            CHECK ((state = 'draining') = (drain_deadline_at IS NOT NULL)),
        CONSTRAINT ck_owners_instance_id CHECK (length(instance_id) BETWEEN 1 AND 20)
    )
    """,
    """
    CREATE TABLE entries (
        id BIGINT GENERATED BY DEFAULT AS IDENTITY,
        slug TEXT COLLATE "C" NOT NULL,
        suffix TEXT COLLATE "C" NOT NULL,
        filename TEXT COLLATE "C" NOT NULL,
        checksum TEXT COLLATE "C" NOT NULL,
        size BIGINT NOT NULL,
        generation BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        CONSTRAINT pk_entries PRIMARY KEY (id),
        CONSTRAINT uq_entries_key UNIQUE (slug, suffix, filename),
        CONSTRAINT ck_entries_checksum
            CHECK (length(checksum) = 71 AND substr(checksum, 1, 7) = 'blake3:'),
        CONSTRAINT ck_entries_size CHECK (size >= 0),
        CONSTRAINT ck_entries_generation CHECK (generation >= 1)
    )
    """,
    """
    CREATE TABLE blobs (
        checksum TEXT COLLATE "C" NOT NULL,
        size BIGINT NOT NULL,
        uploaded_at BIGINT NOT NULL,
        content BYTEA NOT NULL,
        CONSTRAINT pk_blobs PRIMARY KEY (checksum),
        CONSTRAINT ck_blobs_checksum
            CHECK (length(checksum) = 71 AND substr(checksum, 1, 7) = 'blake3:'),
        CONSTRAINT ck_blobs_size CHECK (size = length(content))
    )
    """,
    """
    CREATE TABLE owner_refs (
        owner_id BIGINT NOT NULL,
        entry_id BIGINT NOT NULL,
        blob_checksum TEXT COLLATE "C",
        path TEXT COLLATE "C",
        file_identity TEXT COLLATE "C",
        status TEXT COLLATE "C" NOT NULL,
        verified_at BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        event_id BIGINT NOT NULL,
        CONSTRAINT pk_owner_refs PRIMARY KEY (owner_id, entry_id),
        CONSTRAINT ck_owner_refs_source CHECK ((path IS NULL) = (blob_checksum IS NOT NULL)),
        CONSTRAINT ck_owner_refs_file_identity CHECK (file_identity IS NULL OR path IS NOT NULL),
        CONSTRAINT ck_owner_refs_status CHECK (status IN ('ok', 'drifted', 'missing')),
        CONSTRAINT fk_owner_refs_owner_id
            FOREIGN KEY (owner_id) REFERENCES owners (id) ON DELETE RESTRICT,
        CONSTRAINT fk_owner_refs_entry_id
            FOREIGN KEY (entry_id) REFERENCES entries (id) ON DELETE RESTRICT,
        CONSTRAINT fk_owner_refs_blob_checksum
            FOREIGN KEY (blob_checksum) REFERENCES blobs (checksum) ON DELETE RESTRICT
    )
    """,
    """
    CREATE TABLE events (
        id BIGINT GENERATED BY DEFAULT AS IDENTITY,
        at BIGINT NOT NULL,
        kind TEXT COLLATE "C" NOT NULL,
        namespace TEXT COLLATE "C",
        component TEXT COLLATE "C",
        endpoint TEXT COLLATE "C",
        instance_id TEXT COLLATE "C",
        lora_slug TEXT COLLATE "C",
        slug TEXT COLLATE "C",
        suffix TEXT COLLATE "C",
        filename TEXT COLLATE "C",
        checksum TEXT COLLATE "C",
        previous_checksum TEXT COLLATE "C",
        reason TEXT COLLATE "C",
        actor TEXT COLLATE "C",
        request_id TEXT COLLATE "C",
        CONSTRAINT pk_events PRIMARY KEY (id),
        CONSTRAINT ck_events_kind CHECK (kind IN (
            'attached', 'drained', 'detached', 'expired', 'superseded', 'registered', 'replaced',
            'refused', 'released', 'drifted', 'missing', 'restored', 'created', 'removed',
            'expiry_paused', 'expiry_resumed', 'upgraded'))
    )
    """,
    """
    CREATE TABLE settings (
        name TEXT COLLATE "C" NOT NULL,
        value TEXT COLLATE "C" NOT NULL,
        CONSTRAINT pk_settings PRIMARY KEY (name)
    )
    """,
)

POSTGRESQL_VIEWS = (
    """
    CREATE VIEW clock AS
    SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT) AS now_ms
    """,
    """
    CREATE VIEW holders AS
    SELECT e.slug, e.suffix, e.filename, o.namespace, o.component, o.endpoint, o.instance_id,
           o.lora_slug, o.worker_name, o.state,
           CASE WHEN r.path IS NULL THEN 'copied' ELSE 'in_place' END AS source,
           r.path, r.status, e.checksum, e.size,
           to_char(to_timestamp(r.created_at / 1000.0) AT TIME ZONE 'UTC',
                   'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since,
           to_char(to_timestamp(o.lease_expires_at / 1000.0) AT TIME ZONE 'UTC',
                   'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS lease_expires_at,
           r.owner_id, r.entry_id
    FROM owner_refs r
    JOIN owners o ON o.id = r.owner_id
    JOIN entries e ON e.id = r.entry_id
    """,
)

INDEXES = (
    "CREATE INDEX ix_owner_refs_entry_id ON owner_refs (entry_id)",
    """
    CREATE INDEX ix_owner_refs_blob_checksum ON owner_refs (blob_checksum)
    WHERE blob_checksum IS NOT NULL
    """,
    """
    CREATE INDEX ix_events_owner
    ON events (namespace, component, endpoint, instance_id, lora_slug, slug)
    """,
    "CREATE INDEX ix_events_key ON events (slug, suffix, filename)",
)


def upgrade() -> None:
    if on_sqlite():
        run(SQLITE_TABLES + INDEXES + SQLITE_VIEWS)
        op.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    else:
        run(POSTGRESQL_TABLES + INDEXES + POSTGRESQL_VIEWS)
    op.execute("INSERT INTO settings (name, value) VALUES ('min_program_revision', '0001')")


def downgrade() -> None:
    for view in ("holders", "clock"):
        op.execute(f"DROP VIEW {view}")
    for table in ("settings", "events", "owner_refs", "blobs", "entries", "owners"):
        op.execute(f"DROP TABLE {table}")
    if on_sqlite():
        op.execute("PRAGMA application_id = 0")


def on_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def run(statements: tuple[str, ...]) -> None:
    for statement in statements:
        op.execute(dedent(statement).strip())
