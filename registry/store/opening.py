"""Opening a database by its URL: the only place in the store that chooses an engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from registry.core.progress import OnProgress
from registry.store.copying import Copied, copy
from registry.store.engine import Engine
from registry.store.postgresql.address import is_postgresql as is_postgresql
from registry.store.postgresql.address import require_driver
from registry.store.query_result import ANSWER_MAX_BYTES, QueryResult
from registry.store.sqlite.address import sqlite_path
from registry.store.sqlite.compatibility import acceptor, check_there
from registry.store.sqlite.engine import Database
from registry.store.sqlite.place import ALLOWED_BY as ALLOWED_BY

Notify = Callable[[str], None]


class Migrations(Protocol):
    """What both engines do with the schema of a database; their modules say what they promise."""

    def prepare(self, url: str, *, notify: Notify = ...) -> None: ...

    def upgrade(self, url: str, revision: str = ..., *, notify: Notify = ...) -> None: ...

    def downgrade(self, url: str, revision: str, *, notify: Notify = ...) -> None: ...

    def current(self, url: str) -> str | None: ...

    def check(self, url: str) -> list[str]: ...


def open_database(
    url: str, *, busy_timeout_s: float = 5.0, clock: Callable[[], int] | None = None
) -> Engine:
    """The database at a URL, which has been prepared; no connection is made yet.

    `clock` gives the time in milliseconds; the default is the system's.

    Raises:
        DatabaseRefused: there is no engine for the URL.
    """
    if _needs_postgresql(url):
        from registry.store.postgresql import compatibility as of_postgresql
        from registry.store.postgresql.engine import PostgreSQLDatabase

        accept = of_postgresql.acceptor(url)
        return PostgreSQLDatabase(url, busy_timeout_s=busy_timeout_s, clock=clock, accept=accept)
    return Database(url, busy_timeout_s=busy_timeout_s, clock=clock, accept=acceptor(url))


def open_for_command(url: str, *, to_write: bool) -> Engine:
    """The database at a URL for one command, if a registry is there that it can work with as it is.
    Without `to_write` nothing is changed, not even files beside it.

    Raises:
        DatabaseRefused: there is none.
    """
    if _needs_postgresql(url):
        from registry.store.postgresql import compatibility as of_postgresql

        of_postgresql.check_there(url)
        return open_database(url)
    check_there(url, to_write=to_write)
    return Database(url, read_only=not to_write)


def run_query(
    url: str,
    query: str,
    *,
    timeout_s: float,
    max_rows: int,
    max_bytes: int = ANSWER_MAX_BYTES,
) -> QueryResult:
    """What one statement answers that somebody typed, and that can only read.

    Raises:
        Refused: it would change something, or it took too much time or memory, or answered too
            much.
        Invalid: it is no statement, or more than one.
        RegistryError: the database cannot be read.
    """
    if _needs_postgresql(url):
        from registry.store.postgresql import adhoc_sql as of_postgresql

        run = of_postgresql.run_query
    else:
        from registry.store.sqlite import adhoc_sql as of_sqlite

        run = of_sqlite.run_query
    return run(url, query, timeout_s=timeout_s, max_rows=max_rows, max_bytes=max_bytes)


def migrations_of(url: str) -> Migrations:
    """What makes, changes and compares the schema of the database at a URL."""
    if _needs_postgresql(url):
        from registry.store.postgresql import migrate as of_postgresql

        return of_postgresql
    from registry.store.sqlite import migrate as of_sqlite

    return of_sqlite


def missing_rights(url: str) -> str | None:
    """What a server does not let the user of a URL do, in a sentence; None: nothing, or it is a
    file.

    Raises:
        RegistryError: the database cannot be reached.
    """
    if not _needs_postgresql(url):
        return None
    from registry.store.postgresql import inspect as of_postgresql

    return of_postgresql.missing_rights(url)


def prepare(url: str, *, notify: Notify = lambda sentence: None) -> None:
    """Make sure that this program can work with the database at a URL: see `migrate.prepare` of its
    engine."""
    migrations_of(url).prepare(url, notify=notify)


def copy_database(source: str, target: str, on_progress: OnProgress | None = None) -> Copied:
    """Copy the registry at one URL into the empty database at another: see `copying.copy`."""
    return copy(_copying_of(source).source(source), _copying_of(target).target(target), on_progress)


def _copying_of(url: str) -> Any:
    """What reads and writes whole registries."""
    if _needs_postgresql(url):
        from registry.store.postgresql import copying as of_postgresql

        return of_postgresql
    from registry.store.sqlite import copying as of_sqlite

    return of_sqlite


def find_problem(url: str) -> str | None:
    """Why a running service cannot work with the database as it is now, or None if it can."""
    if _needs_postgresql(url):
        from registry.store.postgresql import compatibility as of_postgresql

        return of_postgresql.find_problem(url)
    from registry.store.sqlite import compatibility as of_sqlite

    return of_sqlite.find_problem(url)


def place_of(url: str) -> str:
    """Where the database at a URL is, to be shown: no password is in it."""
    if is_postgresql(url):
        from registry.store.postgresql import address

        return address.place_of(url)
    return os.path.abspath(sqlite_path(url))


def _needs_postgresql(url: str) -> bool:
    """Whether a URL is one of PostgreSQL, whose modules can be imported then.

    Raises:
        DatabaseRefused: its driver is not installed.
    """
    if not is_postgresql(url):
        return False
    require_driver()
    return True
