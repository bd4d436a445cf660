"""The schema of a database: made, brought up to date, compared, or refused.

`prepare` is for whoever opens a database: the service, the in-process registry. The other
functions are for administrators. A schema is changed in one transaction, by one process at a
time, and after a backup if there was one.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry import __version__
from registry.core import stopping
from registry.errors import DatabaseRefused, Invalid, Refused, RegistryError
from registry.store.sqlite import backup as backup_module
from registry.store.sqlite.in_use import find_holders, find_id
from registry.store.sqlite.inspect import (
    LOCK_TIMEOUT_S,
    Found,
    claim,
    explained,
    locate,
    look,
    look_through,
    looking,
    no_registry,
    opened,
)
from registry.store.tables import HEAD_REVISION, MIN_PROGRAM_REVISION

if TYPE_CHECKING:
    from alembic.config import Config

Notify = Callable[[str], None]

OTHERS_LEAVE_S = 30.0
"""How long programs that an upgrade would break are waited for: those of an older version that
has the database open, and is perhaps just being stopped."""

LOOKED_FOR_EVERY_S = 0.1

_alembic = threading.Lock()  # Alembic keeps the running environment in a global.


@dataclass(frozen=True, slots=True)
class Revision:
    """A step in the history of the schema."""

    revision: str
    down_revision: str | None
    title: str


def prepare(url: str, *, notify: Notify | None = None) -> None:
    """Make sure that this program can work with the database.

    A new or empty file gets the schema. An older schema is upgraded, after a backup next to the
    file. A newer one is left as it is if it still admits this program. Any number of processes
    may do this at once. An upgrade that programs of the older version could not live with waits
    until nobody has the database open. `notify` is told, in a sentence, what is made or changed,
    and what is waited for if it takes longer than a second and a half.

    Raises:
        DatabaseRefused: the file is not one of ours, cannot be used as a database, or needs a
            newer program. It was left as it is; the message says what to do.
        Refused: the upgrade would break a program that has the database open, and kept it open
            for OTHERS_LEAVE_S.
        Busy: other processes kept it locked for LOCK_TIMEOUT_S.
        StorageUnavailable: the backup or the upgrade failed; the old schema is whole.
    """
    path = locate(url)
    with _telling_of_lock(path, notify):
        found = look(path)
    if _is_usable(path, found) or _is_usable(path, _alone(path, found, HEAD_REVISION, notify)):
        return
    try:
        _migrate(path, "upgrade", "head", notify)
    except DatabaseRefused:
        # A newer program may have been faster. Then this either works, or its refusal says more.
        if not _is_usable(path, look(path)):
            raise


def upgrade(url: str, revision: str = "head", *, notify: Notify | None = None) -> None:
    """Upgrade the schema to a revision, after a backup; a new or empty file gets the schema.

    Does nothing if the schema is there already, or newer and compatible.

    Raises:
        Invalid: there is no such revision.
        RegistryError: as `prepare`.
    """
    if revision == "head":
        prepare(url, notify=notify)
        return
    path = locate(url)
    _check_revision(revision)
    with _telling_of_lock(path, notify):
        found = look(path)
    _refuse_newer(path, found)
    _alone(path, found, revision, notify)
    _migrate(path, "upgrade", revision, notify)


def downgrade(url: str, revision: str, *, notify: Notify | None = None) -> None:
    """Take the schema back to a revision, or to `base`: nothing. A backup is written first.

    Raises:
        Invalid: there is no such revision.
        DatabaseRefused: there is no schema, or it is newer than this program.
        Refused: another process has the database open.
        RegistryError: as `prepare`.
    """
    path = locate(url)
    if revision != "base":
        _check_revision(revision)
    found = look(path)
    if found.revision is None:
        raise DatabaseRefused(f"{path} has no schema; there is nothing to take back.")
    _refuse_newer(path, found)
    with claim(path):
        pass  # A service would not survive it; one that starts meanwhile is looked for at the end.
    _migrate(path, "downgrade", revision, notify)


def current(url: str) -> str | None:
    """The schema revision of a database. None: there is no such file, or nothing in it.

    Raises:
        DatabaseRefused: the file is not one of ours.
    """
    return look(locate(url), to_write=False).revision


def history() -> list[Revision]:
    """Every revision that this program knows, the oldest first."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    revisions = [
        Revision(each.revision, each.down_revision, each.doc.rstrip("."))  # type: ignore[arg-type]
        for each in script.walk_revisions()
    ]
    return revisions[::-1]


def check(url: str) -> list[str]:
    """How the database differs from this program's schema, a sentence each. Empty: not at all.

    Raises:
        DatabaseRefused: there is no such database, or it is not one of ours.
    """
    path = locate(url)
    found = look(path, to_write=False)
    if found.revision is None:
        raise DatabaseRefused(f"{no_registry(path)[:-1]}, or make one with `db upgrade`.")
    from registry.store.sqlite.differences import find_differences

    with looking(path) as connection:
        differences = find_differences(connection)
    if found.revision != HEAD_REVISION:
        differences.insert(
            0, f"the schema revision is {found.revision!r} instead of {HEAD_REVISION!r}"
        )
    return differences


def find_problem(url: str) -> str | None:
    """Why a running service cannot work with the database as it is now, or None if it can."""
    try:
        path = locate(url)
        found = look(path)
        if _is_usable(path, found):
            return None
    except RegistryError as error:
        return error.detail
    return _why_unusable(path, found)


def check_there(url: str, *, to_write: bool) -> None:
    """Raise DatabaseRefused unless a registry is there that a command can work with as it is."""
    path = locate(url)
    found = look(path, to_write=to_write)
    if found.revision is None:
        raise DatabaseRefused(no_registry(path))
    if not _is_usable(path, found if to_write else replace(found, has_wal=True)):
        raise DatabaseRefused(_why_unusable(path, found))


def _why_unusable(path: Path, found: Found) -> str:
    if found.revision is None:
        return f"There is no registry in {path} any more. Restart the service, or restore a backup."
    return (
        f"{path} has schema revision {found.revision}, this program needs {HEAD_REVISION}. Restart "
        "the service, or run `metadata-registry db upgrade`."
    )


def acceptor(url: str) -> Callable[[sqlite3.Connection], None]:
    """A function that raises DatabaseRefused for a connection to the database at a URL, unless it
    holds a registry that this program can work with as it is."""
    path = locate(url)

    def accept(connection: sqlite3.Connection) -> None:
        found = look_through(connection, path)
        if not _is_usable(path, found):
            raise DatabaseRefused(_why_unusable(path, found))

    return accept


def check_usable(path: Path, found: Found) -> None:
    """Raise DatabaseRefused for a database that this program could not work with, even after an
    upgrade."""
    _is_usable(path, found)


# Judging


def _is_usable(path: Path, found: Found) -> bool:
    """Whether this program can work with a database as it is. False: it is to be upgraded.

    Raises:
        DatabaseRefused: it needs a newer program.
    """
    if found.revision is None:
        return False
    if not re.fullmatch("[0-9]{4}", found.revision):
        raise DatabaseRefused(
            f"{path} has the schema revision {found.revision!r}, which no version of this program "
            "has made. Restore a backup of it."
        )
    if found.revision > HEAD_REVISION:
        needed = found.min_program_revision
        if needed is None or needed > HEAD_REVISION:
            raise _too_new(path, found)
    return found.revision >= HEAD_REVISION and found.has_wal


def _refuse_newer(path: Path, found: Found) -> None:
    if found.revision is not None and found.revision > HEAD_REVISION:
        raise _too_new(path, found)


def _too_new(path: Path, found: Found) -> DatabaseRefused:
    last = f", last used by version {found.program_version}" if found.program_version else ""
    return DatabaseRefused(
        f"{path} has schema revision {found.revision}{last}; it needs a program that knows "
        f"revision {found.min_program_revision or found.revision}. This is metadata-registry "
        f"{__version__}, which knows up to {HEAD_REVISION}. Install a newer version, or go back "
        f"to a backup: an upgrade writes one beside the file, {path.name}.REVISION-TIME.backup."
    )


def _check_revision(revision: str) -> None:
    known = [each.revision for each in history()]
    if revision not in known:
        raise Invalid(
            f"There is no schema revision {revision!r}; there are {', '.join(known)} and head."
        )


# Changing


def _telling_of_lock(path: Path, notify: Notify | None) -> AbstractContextManager[None]:
    return stopping.telling(notify or _ignore, _waiting_for_lock(path))


def _waiting_for_lock(path: Path) -> str:
    return f"Waiting for the lock of {path}, which another process holds."


def _ignore(_sentence: str) -> None:
    """Nobody wants to be told."""


def _alone(path: Path, found: Found, wanted: str, notify: Notify | None) -> Found:
    """Wait until nobody has a database open whose upgrade would break the programs that know only
    the revision that was found; what is in it then."""
    if found.revision is None or not found.revision < MIN_PROGRAM_REVISION <= wanted:
        return found
    began = time.monotonic()
    said = False
    while True:
        stopping.check()
        try:
            with claim(path):
                break
        except FileNotFoundError:
            break
        except Refused:
            now = look(path)
            waited = time.monotonic() - began
            if now.revision == found.revision and waited > OTHERS_LEAVE_S:
                now = _look_when_unlocked(path)
                if now.revision == found.revision:
                    raise _would_break(path, found) from None
            if now.revision != found.revision:
                return now
        if waited > stopping.SAID_AFTER_S and not said:
            said = True
            (notify or _ignore)(
                f"Waiting for another process that has {path} open, perhaps a service of an older "
                f"version: it could not go on after the upgrade from {found.revision} to {wanted}."
            )
        time.sleep(LOOKED_FOR_EVERY_S)
    return look(path)


def _look_when_unlocked(path: Path) -> Found:
    """What is in a database when nobody writes: another upgrade may have been going on."""
    with opened(path, "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    return look(path)


def _would_break(path: Path, found: Found) -> Refused:
    return Refused(
        f"{path} has schema revision {found.revision}, and another process has it open, as a "
        "running service of an older version does. It could not write any more after the upgrade. "
        "Stop it first, then start again. Nothing was changed."
    )


def _migrate(
    path: Path, direction: Literal["upgrade", "downgrade"], revision: str, notify: Notify | None
) -> None:
    from alembic import command
    from sqlalchemy import URL

    change = _Change(path, notify or _ignore, is_for_one=direction == "downgrade")
    config = _config()
    config.attributes["url"] = URL.create("sqlite", database=str(path))
    config.attributes["lock_timeout_s"] = LOCK_TIMEOUT_S
    config.attributes["guard"] = stopping.interruptible
    config.attributes["on_wait"] = lambda: change.notify(_waiting_for_lock(path))
    config.attributes["before_commit"] = change.before_commit
    with _alembic, _translated(path), _temporary_files_in(path.parent):
        getattr(command, direction)(config, revision)
    change.after_commit()


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


class _Change:
    """What is done around the one commit that changes a schema."""

    def __init__(self, path: Path, notify: Notify, *, is_for_one: bool) -> None:
        self._path = path
        self._is_for_one = is_for_one
        self.notify = notify
        self._result: str | None = None

    def before_commit(self, before: str | None, after: str | None) -> None:
        """Write a backup: other connections still see the schema as it was, and all rows."""
        path = self._path
        if before is None:
            self._result = f"Made {path} with schema revision {after}."
            return
        backup = backup_module.find_free_name(path, before)
        self.notify(
            f"Changing {path} from schema revision {before} to {after or 'none'}; "
            f"the backup is {backup.name}."
        )
        backup_module.write_backup(path, backup)
        if self._is_for_one and (holders := find_holders(find_id(str(path)))):
            backup.unlink()
            raise Refused(
                f"Another process (pid {', '.join(map(str, sorted(holders)))}) has opened {path} "
                "meanwhile, as a service that starts does. Nothing was changed. Stop it first, "
                "then do this again."
            )
        self._result = f"{path} has schema revision {after or 'none'}."

    def after_commit(self) -> None:
        if self._result is not None:
            self.notify(self._result)


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
