"""Opening a database by its URL: the only place in the store that chooses an engine."""

from __future__ import annotations

import os
from collections.abc import Callable

from registry.store.engine import Engine
from registry.store.query_result import QueryResult
from registry.store.sqlite import adhoc_sql
from registry.store.sqlite.address import sqlite_path
from registry.store.sqlite.compatibility import acceptor
from registry.store.sqlite.compatibility import find_problem as find_problem
from registry.store.sqlite.engine import Database
from registry.store.sqlite.migrate import prepare as prepare
from registry.store.sqlite.place import ALLOWED_BY as ALLOWED_BY


def open_database(
    url: str, *, busy_timeout_s: float = 5.0, clock: Callable[[], int] | None = None
) -> Engine:
    """The database at a URL, which has been prepared; no connection is made yet.

    `clock` gives the time in milliseconds; the default is the system's.

    Raises:
        DatabaseRefused: there is no engine for the URL.
    """
    return Database(url, busy_timeout_s=busy_timeout_s, clock=clock, accept=acceptor(url))


def place_of(url: str) -> str:
    """Where the database at a URL is, to be shown: no password is in it."""
    return os.path.abspath(sqlite_path(url))


def run_query(
    url: str, query: str, *, timeout_s: float, max_rows: int, max_bytes: int
) -> QueryResult:
    """What one statement answers that somebody typed, and that can only read.

    Raises:
        Refused: it would change something, or it took too much time or memory, or answered too
            much.
        Invalid: it is no statement, or more than one.
        RegistryError: the database cannot be read.
    """
    return adhoc_sql.run_query(
        url, query, timeout_s=timeout_s, max_rows=max_rows, max_bytes=max_bytes
    )
