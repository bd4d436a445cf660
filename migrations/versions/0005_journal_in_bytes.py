"""The journal in bytes: events have the size of what they are about, and uploads have an event.

It only expands: programs that know revision 0003 go on working with it, and what they journal has
no sizes. Going back forgets sizes and uploads.

Frozen: it spells its DDL out and imports nothing of `registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import dedent

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KINDS_BEFORE = (
    *("released", "registered", "created", "removed"),
    *("attached", "drained", "detached", "expired", "superseded"),
    *("replaced", "refused", "drifted", "missing", "restored"),
    *("expiry_paused", "expiry_resumed", "upgraded"),
)
KINDS = (*KINDS_BEFORE[:9], "uploaded", *KINDS_BEFORE[9:])

NAMES = (
    *("namespace", "component", "endpoint", "instance_id", "lora_slug"),
    *("slug", "suffix", "filename"),
    *("checksum", "previous_checksum", "reason", "actor", "request_id"),
)
SIZES = ("size", "previous_size")

INDEXES_BEFORE = (
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
    "CREATE INDEX ix_events_refused ON events (at) WHERE kind = 'refused'",
)

INDEXES = (
    "CREATE INDEX ix_events_uploaded ON events (checksum) WHERE kind = 'uploaded'",
    "CREATE INDEX ix_events_request_id ON events (request_id) WHERE request_id IS NOT NULL",
)


def upgrade() -> None:
    if on_sqlite():
        rebuild_on_sqlite(KINDS, SIZES)
        run(INDEXES_BEFORE)
    else:
        run(f"ALTER TABLE events ADD COLUMN {name} BIGINT" for name in SIZES)
        run(rules_on_postgresql(KINDS))
    run(INDEXES)


def downgrade() -> None:
    run(["DELETE FROM events WHERE kind = 'uploaded'"])
    if on_sqlite():
        rebuild_on_sqlite(KINDS_BEFORE, ())
        run(INDEXES_BEFORE)
    else:
        run(["DROP INDEX ix_events_uploaded", "DROP INDEX ix_events_request_id"])
        run(f"ALTER TABLE events DROP COLUMN {name}" for name in SIZES)
        run(rules_on_postgresql(KINDS_BEFORE))


def rules_on_postgresql(kinds: tuple[str, ...]) -> Iterator[str]:
    yield "ALTER TABLE events DROP CONSTRAINT ck_events_kind"
    yield f"ALTER TABLE events ADD CONSTRAINT ck_events_kind CHECK ({one_of(kinds)})"


def rebuild_on_sqlite(kinds: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    """Make the table anew, as SQLite changes no constraint. Its ids go on where they were."""
    for view in ("leaks", "journal"):
        op.execute(f"DROP VIEW IF EXISTS {view}")
    columns = [f"    {name} TEXT" for name in NAMES] + [f"    {name} INTEGER" for name in sizes]
    lines = ",\n".join(columns)
    table = f"""
CREATE TABLE events_made_anew (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    owner_id INTEGER,
    entry_id INTEGER,
{lines},
    CONSTRAINT ck_events_kind CHECK ({one_of(kinds)}),
    CONSTRAINT ck_events_entry CHECK ((slug IS NULL) = (entry_id IS NULL))
) STRICT
"""
    kept = ", ".join(("id", "at", "kind", "owner_id", "entry_id", *NAMES))
    copied = f"INSERT INTO events_made_anew ({kept}) SELECT {kept} FROM events ORDER BY id"
    run((table, copied, *TAKES_PLACE))


TAKES_PLACE = (
    "DELETE FROM sqlite_sequence WHERE name = 'events_made_anew'",
    """
        INSERT INTO sqlite_sequence (name, seq)
        SELECT 'events_made_anew', seq FROM sqlite_sequence WHERE name = 'events'
    """,
    "DROP TABLE events",
    "ALTER TABLE events_made_anew RENAME TO events",
)


def one_of(kinds: tuple[str, ...]) -> str:
    return " OR ".join(f"kind = '{kind}'" for kind in kinds)


def on_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def run(statements: Iterable[str]) -> None:
    for statement in statements:
        op.execute(dedent(statement).strip())
