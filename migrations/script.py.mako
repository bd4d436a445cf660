"""${message}.

A revision is frozen: it spells its DDL out and imports nothing of `registry`. It only expands what
older programs use; a later release contracts it and raises `min_program_revision` in `settings`.

Rebuilding a SQLite table: drop the views first and make them anew afterwards, and state again what
batch mode loses without a word: STRICT, AUTOINCREMENT, partial and expression indexes, triggers,
ON DELETE of inline references.
"""

from __future__ import annotations

from alembic import op
${imports if imports else ""}
revision = "${up_revision}"
down_revision = ${'"%s"' % down_revision if down_revision else None}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "op.execute(...)"}


def downgrade() -> None:
    ${downgrades if downgrades else "op.execute(...)"}
