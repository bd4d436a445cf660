"""A whole registry read from a SQLite file, or written into a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Table

from registry.errors import StorageUnavailable
from registry.store.copying import TABLES, columns_of, ordered, query_of, require_head
from registry.store.sql import Row
from registry.store.sqlite.backup import new_partial, publish, sync
from registry.store.sqlite.in_use import find_holders, find_id
from registry.store.sqlite.inspect import explained, locate, look, looking, opened
from registry.store.sqlite.revisions import run_revisions

NEW_FILE_MODE = 0o644


@contextmanager
def source(url: str) -> Iterator[SQLiteSource]:
    """One snapshot of a registry.

    Raises:
        DatabaseRefused: there is none, or it has another schema than this program.
        RegistryError: what SQLite raised, as ours.
    """
    path = locate(url)
    require_head(path, look(path, to_write=False))
    users = len(find_holders(find_id(str(path))))
    with looking(path) as connection:
        connection.execute("BEGIN")
        yield SQLiteSource(connection, str(path), users)
        connection.execute("ROLLBACK")


@contextmanager
def target(url: str) -> Iterator[SQLiteTarget]:
    """A new file, which gets its name when the block ends. What is left of one that was killed ends
    in `.partial`.

    Raises:
        Refused: something is there.
        RegistryError: it could not be written; nothing is left of it.
    """
    path = locate(url)
    try:
        partial = new_partial(path, NEW_FILE_MODE)
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be made: {error}.") from error
    try:
        run_revisions(partial, "upgrade", "head", lambda sentence: None)
        with opened(partial, "rw") as connection:
            # Nobody sees it before it is whole, and on the disk.
            connection.execute("PRAGMA journal_mode = OFF").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA foreign_keys = OFF")
            yield SQLiteTarget(connection, path)
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        sync(partial)
        publish(partial, path)
    except OSError as error:
        raise StorageUnavailable(f"{path} could not be written: {error}.") from error
    finally:
        for name in ("", "-wal", "-shm", "-journal"):
            partial.with_name(partial.name + name).unlink(missing_ok=True)


class SQLiteSource:
    """The rows of a snapshot."""

    def __init__(self, connection: sqlite3.Connection, name: str, users: int) -> None:
        self._connection = connection
        self.name = name
        self.users = users

    def count(self, table: Table) -> int:
        query = f"SELECT count(*) FROM ({query_of(table)})"
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)

    def rows(self, table: Table) -> Iterator[Row]:
        yield from self._connection.execute(ordered(table))

    def last_ids(self) -> dict[str, int]:
        given = dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        return {each.name: given.get(each.name, 0) for each in TABLES if "id" in each.columns}


class SQLiteTarget:
    """Tables without indexes, until they are filled."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self.name = str(path)
        self._indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        connection.execute("BEGIN")
        for name, _ in self._indexes:
            connection.execute(f"DROP INDEX {name}")
        connection.execute("DELETE FROM settings WHERE name = 'min_program_revision'")

    def load(self, table: Table, rows: Iterator[Row]) -> None:
        places = ", ".join("?" * len(table.columns))
        statement = f"INSERT INTO {table.name} ({columns_of(table)}) VALUES ({places})"
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise explained(self._path, error) from error

    def complete(self, last_ids: Mapping[str, int]) -> None:
        for _, definition in self._indexes:
            self._connection.execute(definition)
        for table, last_id in last_ids.items():
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            if last_id:
                values = (table, last_id)
                self._connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", values)
        self._connection.execute("COMMIT")
        broken = self._connection.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise StorageUnavailable(
                f"{len(broken)} rows would refer to nothing, the first of {broken[0][0]}. Nothing "
                "was copied."
            )

    def rows(self, table: Table) -> Iterator[Row]:
        yield from self._connection.execute(ordered(table))
