"""Whether a SQLite database is whole: its pages, and the references between rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from registry.store.engine import Connection

ROWS_MAX = 100
"""As many faults of the pages are listed."""

Look = Callable[[Connection], Iterator[str]]


def find_damaged_pages(conn: Connection) -> Iterator[str]:
    """A sentence for each fault of the stored pages."""
    for (line,) in conn.run_text(f"PRAGMA integrity_check({ROWS_MAX})"):
        if line != "ok":
            yield line


def find_dangling_references(conn: Connection) -> Iterator[str]:
    """A sentence for each row that refers to one that is not there."""
    for name, rowid, parent, _ in conn.run_text("PRAGMA foreign_key_check"):
        which = "a row" if rowid is None else f"row {rowid}"
        yield f"{which} of {name} refers to nothing in {parent}"


LOOKS: tuple[Look, ...] = (find_damaged_pages, find_dangling_references)
