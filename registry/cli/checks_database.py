"""Whether a database can be used: SQLite's file with its file system, or PostgreSQL's server."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from registry.cli.checks import CheckLine, Lines, failed, note, ok, skipped
from registry.cli.text import shown_size
from registry.errors import RegistryError

if TYPE_CHECKING:
    from registry.config import Settings
    from registry.store.engine import Engine

CLOCK_NOTE_MS = 2_000
CLOCK_MAX_MS = 60_000
CLOCK_TODO = "Set the clock (timedatectl set-ntp true, chrony)."


class DatabaseCheck:
    """Looks at the database of some settings. `public_urls` are what the service that ran last on
    it has noted, once it was looked at."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.public_urls: tuple[str, ...] = ()

    def look(self) -> Lines:
        """The lines `database`, `file_system`, `space` and `clock`.

        Raises:
            DatabaseRefused: the URL is none, or the database is none of ours.
            StorageUnavailable: the server does not answer.
        """
        from registry.store.opening import is_postgresql

        if is_postgresql(self._settings.database_url):
            elsewhere = "The server's; PostgreSQL does not tell."
            lines = [skipped("file_system", elsewhere), skipped("space", elsewhere)]
            return [*self._look_inside(), *lines]
        return self._look_at_file()

    def _look_at_file(self) -> Lines:
        from registry.store.sqlite import place
        from registry.store.sqlite.address import sqlite_path

        path = os.path.abspath(sqlite_path(self._settings.database_url))
        directory = os.path.dirname(path)
        if not os.path.isdir(directory):
            todo = f"Make it (mkdir -p {directory}), mount it, or name another --database-url."
            return [failed("database", f"The directory {directory} is not there.", todo)]
        where = place.find_mount(os.path.realpath(path))
        on = (
            "an unknown file system" if where is None else f"{where.type}, mounted at {where.point}"
        )
        file_system = ok("file_system", f"On {on}.")
        danger = place.find_danger(path)
        if danger is not None:
            is_allowed = self._settings.allow_unsafe_storage or place.is_allowed(os.environ)
            file_system = (note if is_allowed else failed)("file_system", danger)
            if not is_allowed:
                return [skipped("database", "See file_system."), file_system]
            os.environ[place.ALLOWED_BY] = "true"
        space = check_space(directory, path, self._settings.min_free_bytes)
        try:
            database, *clock = self._look_inside()
        except RegistryError as error:
            database, clock = failed("database", error.detail), []
        if database.state == "ok" or not os.path.exists(path):
            database = _unless_writable(path, directory) or database
        return [database, file_system, space, *clock]

    def _look_inside(self) -> Lines:
        """The lines `database` and `clock`."""
        from registry.store import tables
        from registry.store.opening import (
            migrations_of,
            missing_rights,
            open_for_command,
            place_of,
        )

        url = self._settings.database_url
        name, revision = place_of(url), migrations_of(url).current(url)
        if (missing := missing_rights(url)) is not None:
            return [failed("database", missing, "GRANT it on the server, as its owner.")]
        if revision is None:
            found = f"There is no registry in {name} yet."
            return [note("database", found, "`metadata-registry serve` makes it.")]
        if revision < tables.HEAD_REVISION:
            found = f"{name} has schema revision {revision}, older than {tables.HEAD_REVISION}."
            todo = "`metadata-registry serve` brings it up to date, or `db upgrade`."
            return [note("database", found, todo)]
        database = open_for_command(url, to_write=False)
        try:
            clock = self._read(database)
            warnings = database.warnings().values()
        finally:
            database.close()
        if warnings:
            return [note("database", f"{name}: {'; '.join(warnings)}."), clock]
        return [ok("database", f"{name}, schema revision {revision}."), clock]

    def _read(self, database: Engine) -> CheckLine:
        from registry.store.opening import is_postgresql
        from registry.store.ops.settings_table import public_urls_in, read_variables

        before = time.time_ns() // 1_000_000
        with database.read() as conn:
            variables, there = read_variables(conn), conn.now
        after = time.time_ns() // 1_000_000
        self.public_urls = public_urls_in(variables)
        if is_postgresql(self._settings.database_url):
            return compare_clocks("clock", "the database's server", before, after, there)
        last = max(int(variables.get(each, 0)) for each in ("last_sweep_at", "probed_at"))
        return check_past(last, before)


def _unless_writable(path: str, directory: str) -> CheckLine | None:
    places = [directory, *([path] if os.path.exists(path) else [])]
    for each in places:
        if not os.access(each, os.W_OK | (os.X_OK if each == directory else os.R_OK)):
            todo = "Give it to the user of the service, or run this as that user."
            found = f"{each} may not be written by this user ({os.geteuid()})."
            return failed("database", found, todo)
    return None


def check_space(directory: str, path: str, bound: int) -> CheckLine:
    """Whether there is room for a database to grow, and for a copy of it."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    size = os.path.getsize(path) if os.path.exists(path) else 0
    found = f"{shown_size(free)} are free at {directory}."
    todo = "Free some space, or move the database."
    if free < bound:
        return failed("space", f"{found} A service needs {shown_size(bound)}.", todo)
    if free < size:
        return note("space", f"{found} The backup of an upgrade takes {shown_size(size)}.", todo)
    return ok("space", found)


def check_past(last: int, now: int) -> CheckLine:
    """Whether this clock is behind what a service on the same file has seen already."""
    if last > now + CLOCK_NOTE_MS:
        found = f"This clock is {(last - now) / 1000:.0f} s behind what the database has seen."
        return failed("clock", found, CLOCK_TODO)
    return ok("clock", "Not behind what the database has seen.")


def compare_clocks(check: str, whose: str, before: int, after: int, there: int) -> CheckLine:
    """How this clock compares with another, which was read between two moments of this one."""
    ahead = there - after if there > after else min(0, there - before)
    shown = f"This clock is {abs(ahead) / 1000:.1f} s {'behind' if ahead > 0 else 'ahead of'} "
    if abs(ahead) <= CLOCK_NOTE_MS:
        return ok(check, f"That of {whose} and this one agree.")
    level = note if abs(ahead) <= CLOCK_MAX_MS else failed
    return level(check, f"{shown}{whose}.", CLOCK_TODO)
