"""One statement of SQL that reads, for people who look into a registry.

It runs in a process of its own, adhoc_sql_process.py: the driver takes a value whole, however large
it is, and waits for a server that has gone silent.
"""

from __future__ import annotations

from registry.store.query_result import ANSWER_MAX_BYTES, QueryResult
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
        Refused: it would write or change settings, or it took too much time or memory, or answered
            too much.
        Invalid: it is no statement that PostgreSQL understands, or more than one.
        DatabaseRefused: there is no registry at the URL.
        RegistryError: the database cannot be read.
    """
    return run_in_process(
        f"{__name__}_process",
        url,
        query,
        timeout_s=timeout_s,
        max_rows=max_rows,
        max_bytes=max_bytes,
    )
