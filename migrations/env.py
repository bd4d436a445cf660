"""Runs the revisions: all of them in one transaction, by one process at a time.

The lock is taken before the schema's revision is read. Of two upgrades at once the second waits,
finds everything done and does nothing; a revision that fails leaves the schema as it was.

Whoever calls Alembic from a program passes what it wants in `config.attributes`:

    url             the database, a string or a SQLAlchemy URL
    lock_timeout_s  how long to wait for other processes (60)
    guard           makes a context manager of the driver's connection, for while it is in use
    on_wait         called once if others keep the database locked for a second and a half
    before_commit   called with the revision before and after (None: no schema) if they differ,
                    while other connections still see the schema as it was; may refuse by raising
"""

from __future__ import annotations

import logging.config
import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url, text

APPLICATION_ID = 0x4D524547
LOCK_TIMEOUT_S = 60.0
LOCK_PAUSE_S = (0.0002, 0.002)
LOCK_PAUSE_MAX_S = 0.05
WAIT_SAID_AFTER_S = 1.5
ADVISORY_LOCK = 0x4D524547

T = TypeVar("T")

config = context.config


def main() -> None:
    set_up_logging()
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
    context.configure(url=url, transactional_ddl=True, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


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
        return False
    if before is not None and after is not None and before < after:
        write_journal(connection, f"schema {before} to {after}")
    before_commit = config.attributes.get("before_commit")
    if before_commit is not None:
        before_commit(before, after)
    return True


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
    """Repeat what finds the database locked, in short random pauses.

    SQLite's own waiting is unfair between processes, and there is none while a file is switched
    to its write-ahead log.
    """
    began = time.monotonic()
    said = False
    low, high = LOCK_PAUSE_S
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            if not is_locked(error) or waited > lock_timeout_s():
                raise
            if waited > WAIT_SAID_AFTER_S and not said:
                said = True
                config.attributes.get("on_wait", lambda: None)()
        time.sleep(random.uniform(low, high))
        high = min(high * 1.2, LOCK_PAUSE_MAX_S)


def is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
    )


def lock_timeout_s() -> float:
    return float(config.attributes.get("lock_timeout_s", LOCK_TIMEOUT_S))


main()
