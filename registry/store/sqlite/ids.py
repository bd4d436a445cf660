"""The ids that were given last. Under the write lock, the next ones are ours to give."""

from __future__ import annotations

from sqlalchemy import column, select, table

from registry.store.sqlite.engine import Connection, Statement

_sequence = table("sqlite_sequence", column("name"), column("seq"))
_LAST = Statement(select(_sequence.c.name, _sequence.c.seq))


def last_ids(conn: Connection) -> dict[str, int]:
    """The last id ever given in each table. Ids are never reused, so cursors stay right."""
    return dict(conn.run(_LAST))
