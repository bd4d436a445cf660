"""The revisions in `migrations/`: which there are, and running them through Alembic."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.core import stopping
from registry.errors import DatabaseRefused, Invalid
from registry.store.sqlite.inspect import LOCK_TIMEOUT_S, explained
from registry.store.sqlite.schema_change import Notify, SchemaChange

if TYPE_CHECKING:
    from alembic.config import Config

_alembic = threading.Lock()  # Alembic keeps the running environment in a global.


@dataclass(frozen=True, slots=True)
class Revision:
    """A step in the history of the schema."""

    revision: str
    down_revision: str | None
    title: str


def history() -> list[Revision]:
    """Every revision that this program knows, the oldest first."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    revisions = [
        Revision(each.revision, each.down_revision, each.doc.rstrip("."))  # type: ignore[arg-type]
        for each in script.walk_revisions()
    ]
    return revisions[::-1]


def check_revision(revision: str) -> None:
    """Raise Invalid for a revision that this program does not know."""
    known = [each.revision for each in history()]
    if revision not in known:
        raise Invalid(
            f"There is no schema revision {revision!r}; there are {', '.join(known)} and head."
        )


def run_revisions(
    path: Path, direction: Literal["upgrade", "downgrade"], revision: str, notify: Notify
) -> None:
    """Bring a database to a revision, with its views, after a backup if it had a schema.

    Raises:
        RegistryError: nothing was changed.
    """
    from alembic import command
    from sqlalchemy import URL

    change = SchemaChange(path, notify, is_for_one=direction == "downgrade")
    config = _config()
    config.attributes["url"] = URL.create("sqlite", database=str(path))
    config.attributes["lock_timeout_s"] = LOCK_TIMEOUT_S
    config.attributes["guard"] = stopping.interruptible
    config.attributes["on_wait"] = lambda: change.notify(waiting_for_lock(path))
    config.attributes["before_commit"] = change.before_commit
    config.attributes["on_views"] = change.on_views
    with _alembic, _translated(path), _temporary_files_in(path.parent):
        getattr(command, direction)(config, revision)
    change.after_commit()


@contextmanager
def fresh_schema() -> Iterator[sqlite3.Connection]:
    """A database in memory that the revisions made just now: what others are compared with."""
    from alembic import command
    from sqlalchemy import create_engine

    engine = create_engine("sqlite://", connect_args={"isolation_level": None})
    try:
        with engine.connect() as connection:
            config = _config()
            config.attributes["connection"] = connection
            with _alembic:
                command.upgrade(config, "head")
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


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrations_directory() -> Path:
    """Where the revisions are: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for directory in (package / "migrations", package.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise DatabaseRefused(
        f"The migrations are neither in {package} nor beside it. Install metadata-registry again."
    )
