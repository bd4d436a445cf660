"""One statement of SQL that reads, for people who look into a registry.

It runs in a process of its own that can be ended at any moment and may take only so much memory:
SQLite cannot be interrupted within a function, and its limits count for a whole process. What runs
there is adhoc_sql_process.py; here it is started, listened to and ended.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from registry.errors import (
    RegistryError,
)
from registry.store.query_result import ANSWER_MAX_BYTES, QueryResult
from registry.store.sqlite.file_access import may_write
from registry.store.sqlite.inspect import locate, opened
from registry.store.statement_process import run_in_process


def run_query(
    url: str,
    query: str,
    *,
    timeout_s: float,
    max_rows: int,
    max_bytes: int = ANSWER_MAX_BYTES,
) -> QueryResult:
    """Run one statement that reads.

    Raises:
        Refused: it would write, attach, load or change settings, or it took too much time or
            memory, or answered too much.
        Invalid: it is no statement that SQLite understands, or more than one.
        DatabaseRefused: there is no registry at the URL.
        RegistryError: the database cannot be read.
    """
    path = locate(url)
    has_log = path.with_name(path.name + "-wal").exists()
    try:
        return run_in_process(
            f"{__name__}_process",
            url,
            query,
            timeout_s=timeout_s,
            max_rows=max_rows,
            max_bytes=max_bytes,
        )
    finally:
        if not has_log and may_write(path):
            _remove_log(path)


def _remove_log(path: Path) -> None:
    """A read-only connection leaves an empty log behind; one that may write takes it away."""
    with suppress(RegistryError), opened(path, "rw") as connection:
        connection.execute("PRAGMA schema_version").fetchall()
