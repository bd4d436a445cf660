"""Revisions of a model side by side: an entry has the slug of the model that it is a revision of.

It only expands: programs that know revision 0003 go on working with it, and what they register is
no revision. Going back forgets which entries are revisions; they stay under the slugs they have.

Frozen: it spells its DDL out and imports nothing of `registry`.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEX = """
CREATE INDEX ix_entries_base_slug
ON entries (base_slug, suffix, filename)
WHERE base_slug IS NOT NULL
"""


def upgrade() -> None:
    text = "TEXT" if op.get_context().dialect.name == "sqlite" else 'TEXT COLLATE "C"'
    op.execute(
        f"ALTER TABLE entries ADD COLUMN base_slug {text} "
        "CONSTRAINT ck_entries_base_slug CHECK (base_slug <> slug)"
    )
    op.execute(INDEX.strip())


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        # It drops no column that a view speaks of; the views are made anew afterwards.
        op.execute("DROP VIEW IF EXISTS leaks")
    op.execute("DROP INDEX ix_entries_base_slug")
    op.execute("ALTER TABLE entries DROP COLUMN base_slug")


# What uses the revision behind this one.
VIEWS = {"journal": None}
POSTGRESQL_VIEWS = {"journal": None}
