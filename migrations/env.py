"""Runs the revisions: all of them in one transaction, by one process at a time.

The lock is taken before the schema's revision is read. Of two upgrades at once the second waits,
finds everything done and does nothing; a revision that fails leaves the schema as it was.

The views are made anew after the last revision: those of the program at the newest revision, and
at an older one what its programs need, see `views_at`. On PostgreSQL, where nothing that a view
speaks of can be changed, they are dropped before the first one; where there is none to run they
stay, and nobody who reads them waits.

Whoever calls Alembic from a program passes what it wants in `config.attributes`:

    connection      a connection to an empty database that nobody else has: nothing else is asked
    url             the database, a string or, on SQLite, a SQLAlchemy URL
    lock_timeout_s  how long to wait for other processes (60)
    guard           makes a context manager of what has `interrupt()`, for while it is in use
    on_wait         called once if others keep the database locked for a second and a half
    before_commit   called with the revision before and after (None: no schema) if they differ,
                    while other connections still see the schema as it was; may refuse by raising
    on_views        called when only the views were made anew
"""

from __future__ import annotations

import logging.config
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from registry.core.stopping import SAID_AFTER_S, Interruptible
from registry.errors import DatabaseRefused
from registry.store.postgresql import views as postgresql_views
from registry.store.postgresql.address import is_postgresql, place_of
from registry.store.postgresql.locks import WRITE_LOCK
from registry.store.sqlite import locks, views

APPLICATION_ID = 0x4D524547
LOCK_TIMEOUT_S = 60.0
LOCK_PAUSE_MAX_S = 0.05
TABLE_LOCK_TIMEOUT_S = 10.0
"""On PostgreSQL, for a table that somebody reads: whoever comes later waits behind us."""

LOCK_NOT_AVAILABLE = "55P03"

T = TypeVar("T")

config = context.config


def main() -> None:
    set_up_logging()
    if (connection := config.attributes.get("connection")) is not None:
        migrate(connection)
        return
    url = database_url()
    is_server = isinstance(url, str) and is_postgresql(url)
    if context.is_offline_mode():
        write_sql("postgresql" if is_server else "sqlite")
    elif is_server:
        migrate_postgresql(str(url))
    else:
        migrate_sqlite(make_url(url))


def set_up_logging() -> None:
    """For the `alembic` command from its file; a program tells its users itself what it does."""
    if config.config_file_name is not None:
        logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)
        return
    logger = logging.getLogger("alembic")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


def database_url() -> str | URL:
    given: str | URL = (
        config.attributes.get("url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("REGISTRY_DATABASE_URL")
        or "sqlite:///registry.db"
    )
    return given


def write_sql(dialect: str) -> None:
    """`--sql`: the statements go to standard output, as one transaction."""
    reached: list[str | None] = []
    context.configure(
        dialect_name=dialect,
        transactional_ddl=True,
        literal_binds=True,
        on_version_apply=lambda heads, **_: reached.append(next(iter(heads), None)),
    )
    with context.begin_transaction():
        if dialect == "postgresql":
            write_all(postgresql_views.dropping())
        context.run_migrations()
        if reached:
            write_all(view_statements(dialect, reached[-1]))


def write_all(statements: Iterator[str]) -> None:
    for statement in statements:
        context.execute(statement.replace(":", "\\:"))  # No colon begins a parameter.


def migrate_sqlite(url: URL) -> None:
    # Without an isolation level the driver never begins or commits by itself: it would commit
    # before every DDL statement. Its own waiting for locks is off, see `patiently`.
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"isolation_level": None, "timeout": 0}
    )
    event.listen(engine, "begin", begin_immediate)
    with engine.connect() as connection:
        driver = driver_of(connection)
        with guarded(driver):
            refuse_foreign(driver)
            prepare_connection(driver)
            with connection.begin():
                refuse_foreign(driver)
                changed = migrate(connection)
                if changed:
                    check_foreign_keys(driver)
            if changed:
                # The application id is in the file itself from here on, not only in its log.
                with closing(driver.execute("PRAGMA wal_checkpoint(PASSIVE)")) as cursor:
                    cursor.fetchall()


def guarded(work: Interruptible) -> AbstractContextManager[object]:
    guard: Callable[[Interruptible], AbstractContextManager[object]]
    guard = config.attributes.get("guard", nullcontext)
    return guard(work)


def migrate_postgresql(url: str) -> None:
    from registry.store.postgresql import inspect as postgresql  # It needs psycopg.

    with postgresql.admin_engine(url).connect() as connection:
        driver = postgresql.driver_of(connection)
        place = place_of(url)
        with guarded(postgresql.Cancel(driver)), connection.begin():
            try:
                postgresql.check_server(driver, place)
                take_write_lock(connection)
                postgresql.look_through(driver, place)
            except DatabaseRefused as error:
                if config.config_file_name is None:
                    raise
                raise CommandError(error.detail) from error  # The `alembic` command shows it.
            migrate(connection)


def take_write_lock(connection: Connection) -> None:
    """Nobody else writes from now on, until the transaction ends."""
    # What a role or a database may have by default would end a long change.
    connection.exec_driver_sql(
        "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
        "('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
    )
    patience_s = lock_timeout_s()
    told_after_s = min(SAID_AFTER_S, patience_s)
    try:
        with connection.begin_nested():
            wait_for_lock(connection, told_after_s)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        config.attributes.get("on_wait", lambda: None)()
        wait_for_lock(connection, patience_s - told_after_s)
    set_lock_timeout(connection, min(TABLE_LOCK_TIMEOUT_S, patience_s))


def wait_for_lock(connection: Connection, patience_s: float) -> None:
    set_lock_timeout(connection, patience_s)
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Of 0 it would be none at all."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(seconds * 1000))}")


def migrate(connection: Connection) -> bool:
    """Run the revisions within the transaction that is open. Whether the schema changed."""
    context.configure(connection=connection, transactional_ddl=True)
    before = current_revision()
    after = run_revisions(connection, before)
    if before == after:
        replace_old_views(connection, after)
        return False
    make_views(connection, after)
    if before is not None and after is not None and before < after:
        write_journal(connection, f"schema {before} to {after}")
    before_commit = config.attributes.get("before_commit")
    if before_commit is not None:
        before_commit(before, after)
    return True


def run_revisions(connection: Connection, before: str | None) -> str | None:
    """Run them; the revision that the schema has then."""
    there = before is not None and before == destination()
    if connection.dialect.name != "postgresql" or there:
        context.run_migrations()
        return current_revision()
    with connection.begin_nested() as attempt:
        for statement in postgresql_views.dropping():
            connection.exec_driver_sql(statement)
        context.run_migrations()
        after = current_revision()
        if after == before:
            attempt.rollback()  # The views are there again.
        return after


def destination() -> object:
    """The revision that is asked for. A command that asks for none runs none."""
    if "destination_rev" not in context.get_context().opts:
        return current_revision()
    return context.get_revision_argument()


# Views


def make_views(connection: Connection, revision: str | None) -> None:
    for statement in view_statements(connection.dialect.name, revision):
        connection.exec_driver_sql(statement)


def replace_old_views(connection: Connection, revision: str | None) -> None:
    """Also a program that has no revision to run may be newer than the views."""
    if revision == context.script.get_current_head() and has_old_views(connection):
        make_views(connection, revision)
        config.attributes.get("on_views", lambda: None)()


def has_old_views(connection: Connection) -> bool:
    recorded = f"SELECT value FROM settings WHERE name = '{views.RECORDED_AS}'"
    if connection.dialect.name == "postgresql":
        found = dict(map(tuple, connection.exec_driver_sql(postgresql_views.IS_OURS)))
        return postgresql_views.are_outdated(found, connection.exec_driver_sql(recorded).scalar())
    driver = driver_of(connection)
    texts = dict(query(driver, "SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    rows = query(driver, recorded)
    return views.are_outdated(texts, rows[0][0] if rows else None)


def view_statements(dialect: str, revision: str | None) -> Iterator[str]:
    is_head = revision == context.script.get_current_head()
    if dialect == "postgresql":
        if revision is None:
            return postgresql_views.dropping()
        version = postgresql_views.VERSION if is_head else None
        return postgresql_views.replacing(views_at(dialect, revision), version)
    if revision is None:
        return views.dropping()
    return views.replacing(views_at(dialect, revision), views.VERSION if is_head else None)


def views_at(dialect: str, revision: str) -> dict[str, str]:
    """The program's views; but a revision's `VIEWS` (on PostgreSQL, `POSTGRESQL_VIEWS`) say what
    its programs, and older ones, need instead (None: no such view)."""
    is_postgresql = dialect == "postgresql"
    wanted: dict[str, str | None] = dict((postgresql_views if is_postgresql else views).VIEWS)
    for script in context.script.walk_revisions(revision, "heads"):
        wanted |= getattr(script.module, "POSTGRESQL_VIEWS" if is_postgresql else "VIEWS", {})
    return {name: sql for name, sql in wanted.items() if sql is not None}


def current_revision() -> str | None:
    heads = context.get_context().get_current_heads()
    return heads[0] if heads else None


def write_journal(connection: Connection, reason: str) -> None:
    connection.execute(
        text(
            "INSERT INTO events (at, kind, reason) "
            "SELECT now_ms, 'upgraded', CAST(:reason AS TEXT) FROM clock"
        ),
        {"reason": reason},
    )


def driver_of(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def begin_immediate(connection: Connection) -> None:
    driver = driver_of(connection)
    patiently(lambda: driver.execute("BEGIN IMMEDIATE"))


def prepare_connection(driver: sqlite3.Connection) -> None:
    # With foreign keys on, rebuilding a table would delete or refuse what refers to it.
    driver.execute("PRAGMA foreign_keys = OFF")
    driver.execute("PRAGMA synchronous = FULL")
    mode = patiently(lambda: driver.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    if mode != "wal":
        raise CommandError(
            f"SQLite cannot keep a write-ahead log here (journal mode {mode}). Put the database "
            "on a local disk."
        )


def refuse_foreign(driver: sqlite3.Connection) -> None:
    """Stop before anything is written to a database of another program."""
    application_id = query(driver, "PRAGMA application_id")[0][0]
    if application_id == APPLICATION_ID:
        return
    tables = query(
        driver,
        "SELECT name FROM sqlite_master "
        "WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~' AND tbl_name <> 'alembic_version' LIMIT 1",
    )
    if tables or application_id != 0:
        raise CommandError(
            "This is the SQLite database of another program; it was left as it is. Name another "
            "file."
        )


def check_foreign_keys(driver: sqlite3.Connection) -> None:
    broken = query(driver, "PRAGMA foreign_key_check")
    if broken:
        table, rowid, parent, _ = broken[0]
        raise CommandError(
            f"{len(broken)} rows would refer to nothing, the first in {table} (rowid {rowid}), to "
            f"{parent}; the schema was left as it is."
        )


def query(driver: sqlite3.Connection, statement: str) -> list[tuple[Any, ...]]:
    return patiently(lambda: driver.execute(statement).fetchall())


def patiently(step: Callable[[], T]) -> T:
    return locks.patiently(
        step,
        lock_timeout_s(),
        on_wait=config.attributes.get("on_wait", lambda: None),
        pause_max_s=LOCK_PAUSE_MAX_S,
    )


def lock_timeout_s() -> float:
    return float(config.attributes.get("lock_timeout_s", LOCK_TIMEOUT_S))


main()
