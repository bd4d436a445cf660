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
