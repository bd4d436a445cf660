"""Running the revisions on SQLite files."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.core import stopping
from registry.errors import DatabaseRefused
from registry.store.revisions import Direction, run_alembic
from registry.store.sqlite.inspect import LOCK_TIMEOUT_S, explained
from registry.store.sqlite.schema_change import Notify, SchemaChange


def run_revisions(path: Path, direction: Direction, revision: str, notify: Notify) -> None:
    """Bring a database to a revision, with its views, after a backup if it had a schema.

    Raises:
        RegistryError: nothing was changed.
    """
    from sqlalchemy import URL

    change = SchemaChange(path, notify, is_for_one=direction == "downgrade")
    with _translated(path), _temporary_files_in(path.parent):
        run_alembic(
            direction,
            revision,
            url=URL.create("sqlite", database=str(path)),
            lock_timeout_s=LOCK_TIMEOUT_S,
            guard=stopping.interruptible,
            on_wait=lambda: change.notify(waiting_for_lock(path)),
            before_commit=change.before_commit,
            on_views=change.on_views,
        )
    change.after_commit()


@contextmanager
def fresh_schema() -> Iterator[sqlite3.Connection]:
    """A database in memory that the revisions made just now: what others are compared with."""
    from sqlalchemy import create_engine

    engine = create_engine("sqlite://", connect_args={"isolation_level": None})
    try:
        with engine.connect() as connection:
            run_alembic("upgrade", "head", connection=connection)
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            yield driver
    finally:
        engine.dispose()


def waiting_for_lock(path: Path) -> str:
    """What is told while another process has the write lock."""
    return f"Waiting for the lock of {path}, which another process holds."


@contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """SQLite sorts in files when it makes an index: beside the database, which has to be written
    anyway, unless the environment names another place."""
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"))
    if any(each and os.access(each, os.W_OK | os.X_OK) for each in named):
        yield
        return
    os.environ["SQLITE_TMPDIR"] = str(directory)
    try:
        yield
    finally:
        os.environ.pop("SQLITE_TMPDIR", None)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What Alembic, SQLAlchemy and SQLite raise, as ours. A revision's own mistakes stay."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except CommandError as error:
        raise DatabaseRefused(f"{path}: {error}") from error
    except sqlite3.Error as error:
        raise explained(path, error) from error
    except DBAPIError as error:
        if not isinstance(error.orig, sqlite3.Error):
            raise
        raise explained(path, error.orig) from error
