"""A whole registry read from PostgreSQL, or written into it, by COPY."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import LargeBinary, Table, Text

from registry.core import stopping
from registry.errors import Refused
from registry.store import tables
from registry.store.copying import TABLES, columns_of, ordered, query_of, require_head
from registry.store.postgresql import views
from registry.store.postgresql.address import place_of
from registry.store.postgresql.inspect import (
    Cancel,
    admin_engine,
    check_server,
    driver_of,
    look_through,
    opened,
)
from registry.store.postgresql.locks import WRITE_LOCK
from registry.store.postgresql.migrate import LOCK_TIMEOUT_S, translated
from registry.store.postgresql.upgrade_lock import count_services
from registry.store.revisions import run_alembic
from registry.store.sql import Row

if TYPE_CHECKING:
    from registry.store.postgresql.inspect import AdminConnection

UNBOUNDED = """
    SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN
    ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')
"""
"""What a role or a database may have by default would end a long copy."""

MAINTENANCE_MEMORY = "128MB"

_CONSTRAINTS = """
    SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
    FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid
    WHERE c.relname = ANY(%s) AND k.contype IN ('p', 'u', 'f')
        AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
    ORDER BY k.contype = 'f', k.conname
"""
"""Those that a load is faster without; references last."""

_INDEXES = """
    SELECT i.relname, pg_get_indexdef(x.indexrelid)
    FROM pg_class c JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
    WHERE c.relname = ANY(%s) AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
        AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = x.indexrelid
            AND k.contype IN ('p', 'u', 'x'))
    ORDER BY i.relname
"""


@contextmanager
def source(url: str) -> Iterator[PostgreSQLSource]:
    """One snapshot of a registry.

    Raises:
        DatabaseRefused: there is none, or it has another schema than this program.
        RegistryError: what PostgreSQL raised, as ours.
    """
    place, users = place_of(url), count_services(url)
    with opened(url) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(UNBOUNDED)
        require_head(place, look_through(connection, place))
        yield PostgreSQLSource(connection, place, users)
        connection.execute("ROLLBACK")


@contextmanager
def target(url: str) -> Iterator[PostgreSQLTarget]:
    """A registry without rows. What is done with it is committed when the block ends.

    Raises:
        DatabaseRefused: the database is not ours, cannot keep a registry, or has another schema.
        Refused: it holds something.
        RegistryError: what PostgreSQL raised, as ours.
    """
    place = place_of(url)
    with translated(place), admin_engine(url).connect() as connection, connection.begin():
        driver = driver_of(connection)
        with stopping.interruptible(Cancel(driver)):
            check_server(driver, place)
            driver.execute(UNBOUNDED)
            driver.execute(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT_S * 1000)}")
            driver.execute(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
            found = look_through(driver, place)
            if found.revision is None:
                run_alembic("upgrade", "head", connection=connection)
            else:
                require_head(place, found)
            _refuse_filled(driver, place)
            yield PostgreSQLTarget(driver, place)


class PostgreSQLSource:
    """The rows of a snapshot."""

    def __init__(self, connection: AdminConnection, name: str, users: int) -> None:
        self._connection = connection
        self.name = name
        self.users = users

    def count(self, table: Table) -> int:
        query = f"SELECT count(*) FROM ({query_of(table)}) AS rows"
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)

    def rows(self, table: Table) -> Iterator[Row]:
        return rows_of(self._connection, table)

    def last_ids(self) -> dict[str, int]:
        return last_ids_of(self._connection)


class PostgreSQLTarget:
    """Tables without indexes and references, until they are filled."""

    def __init__(self, connection: AdminConnection, name: str) -> None:
        self._connection = connection
        self.name = name
        for statement in views.dropping():  # One of them depends on a primary key.
            self._run(statement)
        names = [table.name for table in TABLES]
        self._constraints = connection.execute(_CONSTRAINTS, (names,)).fetchall()
        self._indexes = connection.execute(_INDEXES, (names,)).fetchall()
        for table, constraint, _ in reversed(self._constraints):
            self._run(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
        for index, _ in self._indexes:
            self._run(f"DROP INDEX {index}")
        self._run("DELETE FROM settings")

    def load(self, table: Table, rows: Iterator[Row]) -> None:
        into = f"COPY {table.name} ({columns_of(table)}) FROM STDIN (FORMAT BINARY)"
        with self._connection.cursor() as cursor, cursor.copy(into) as copy:
            copy.set_types(types_of(table))
            for row in rows:
                copy.write_row(row)

    def complete(self, last_ids: Mapping[str, int]) -> None:
        self._run(f"SET LOCAL maintenance_work_mem = '{MAINTENANCE_MEMORY}'")
        references = [each for each in self._constraints if each[2].startswith("FOREIGN KEY")]
        keys = [each for each in self._constraints if each not in references]
        for table, name, definition in keys:
            self._run(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        for _, definition in self._indexes:
            self._run(definition)
        for table, name, definition in references:
            self._run(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        for statement in views.replacing(views.VIEWS, views.VERSION):
            self._run(statement)
        for table, last_id in last_ids.items():
            sequence = f"pg_get_serial_sequence('{table}', 'id')"
            self._run(f"SELECT setval({sequence}, {max(last_id, 1)}, {last_id > 0})")
        self._run(f"ANALYZE {', '.join(table.name for table in TABLES)}")

    def rows(self, table: Table) -> Iterator[Row]:
        return rows_of(self._connection, table)

    def _run(self, statement: str) -> None:
        stopping.check()
        self._connection.execute(statement)


def rows_of(connection: AdminConnection, table: Table) -> Iterator[Row]:
    """The rows of a table in the order of its primary key."""
    out_of = f"COPY ({ordered(table)}) TO STDOUT (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(out_of) as copy:
        copy.set_types(types_of(table))
        yield from copy.rows()


def last_ids_of(connection: AdminConnection) -> dict[str, int]:
    """The last id ever given in each table that gives ids; 0: none was."""
    found = {}
    for table in TABLES:
        if "id" in table.columns:
            ((name,),) = connection.execute(
                "SELECT pg_get_serial_sequence(%s, 'id')", (table.name,)
            ).fetchall()
            ((last, is_called),) = connection.execute(
                f"SELECT last_value, is_called FROM {name}"
            ).fetchall()
            found[table.name] = last if is_called else last - 1
    return found


def types_of(table: Table) -> Sequence[str]:
    """The types of the columns."""
    return [
        "bytea"
        if isinstance(column.type, LargeBinary)
        else "text"
        if isinstance(column.type, Text)
        else "int8"
        for column in table.columns
    ]


def _refuse_filled(connection: AdminConnection, place: str) -> None:
    for table in TABLES:
        if table is not tables.settings:
            query = f"SELECT 1 FROM {table.name} LIMIT 1"
            if connection.execute(query).fetchall():
                raise Refused(
                    f"{place} is not empty: it has {table.name}. Nothing was copied. Name an empty "
                    "database."
                )
