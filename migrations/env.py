"""Runs the revisions: all of them in one transaction, by one process at a time.

The lock is taken before the schema's revision is read. Of two upgrades at once the second waits,
finds everything done and does nothing; a revision that fails leaves the schema as it was.

On SQLite the views are made anew after the last revision: those of the program at the newest
revision, and at an older one what its programs need, see `views_at`.

Whoever calls Alembic from a program passes what it wants in `config.attributes`:

    connection      a connection to an empty database that nobody else has: nothing else is asked
    url             the database, a string or a SQLAlchemy URL
    lock_timeout_s  how long to wait for other processes (60)
    guard           makes a context manager of the driver's connection, for while it is in use
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

from registry.store.sqlite import locks, views

APPLICATION_ID = 0x4D524547
LOCK_TIMEOUT_S = 60.0
LOCK_PAUSE_MAX_S = 0.05
ADVISORY_LOCK = 0x4D524547

T = TypeVar("T")

config = context.config


def main() -> None:
    set_up_logging()
    if (connection := config.attributes.get("connection")) is not None:
        migrate(connection)
        return
    url = database_url()
    if context.is_offline_mode():
        write_sql(url)
    elif url.get_backend_name() == "sqlite":
        migrate_sqlite(url)
    else:
        migrate_server(url)


def set_up_logging() -> None:
    """For the `alembic` command from its file; a program tells its users itself what it does."""
    if config.config_file_name is not None:
        logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)
        return
    logger = logging.getLogger("alembic")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


def database_url() -> URL:
    given = (
        config.attributes.get("url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("REGISTRY_DATABASE_URL")
        or "sqlite:///registry.db"
    )
    return make_url(given)


def write_sql(url: URL) -> None:
    """`--sql`: the statements go to standard output, as one transaction."""
    reached: list[str | None] = []
    context.configure(
        url=url,
        transactional_ddl=True,
        literal_binds=True,
        on_version_apply=lambda heads, **_: reached.append(next(iter(heads), None)),
    )
    with context.begin_transaction():
        context.run_migrations()
        if reached and url.get_backend_name() == "sqlite":
            for statement in view_statements(reached[-1]):
                context.execute(statement)


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


def guarded(driver: sqlite3.Connection) -> AbstractContextManager[object]:
    guard: Callable[[sqlite3.Connection], AbstractContextManager[object]]
    guard = config.attributes.get("guard", nullcontext)
    return guard(driver)


def migrate_server(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        connection.execute(
            text("SELECT set_config('lock_timeout', :ms, true)"),
            {"ms": f"{lock_timeout_s() * 1000:.0f}"},
        )
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        migrate(connection)


def migrate(connection: Connection) -> bool:
    """Run the revisions within the transaction that is open. Whether the schema changed."""
    context.configure(connection=connection, transactional_ddl=True)
    before = current_revision()
    context.run_migrations()
    after = current_revision()
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


# Views


def make_views(connection: Connection, revision: str | None) -> None:
    if connection.dialect.name == "sqlite":
        for statement in view_statements(revision):
            connection.exec_driver_sql(statement)


def replace_old_views(connection: Connection, revision: str | None) -> None:
    """Also a program that has no revision to run may be newer than the views."""
    if connection.dialect.name != "sqlite" or revision != context.script.get_current_head():
        return
    driver = driver_of(connection)
    found = dict(query(driver, "SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    recorded = query(driver, f"SELECT value FROM settings WHERE name = '{views.RECORDED_AS}'")
    if views.are_outdated(found, recorded[0][0] if recorded else None):
        make_views(connection, revision)
        config.attributes.get("on_views", lambda: None)()


def view_statements(revision: str | None) -> Iterator[str]:
    if revision is None:
        return (f"DROP VIEW IF EXISTS {name}" for name in views.VIEWS)
    is_head = revision == context.script.get_current_head()
    return views.replacing(views_at(revision), views.VERSION if is_head else None)


def views_at(revision: str) -> dict[str, str]:
    """The program's views; but a revision's `VIEWS` say what its programs, and older ones, need
    instead (None: no such view)."""
    wanted: dict[str, str | None] = dict(views.VIEWS)
    for script in context.script.walk_revisions(revision, "heads"):
        wanted |= getattr(script.module, "VIEWS", {})
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
