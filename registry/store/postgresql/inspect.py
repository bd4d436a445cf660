"""A PostgreSQL database as an administrator finds it: whose it is, and which schema is in it.

What is not ours is left as it is. The tables are where the connection's search_path leads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from registry.core import stopping
from registry.errors import Busy, DatabaseRefused, RegistryError, StorageUnavailable
from registry.store import tables
from registry.store.compatibility import SchemaState, without_revision
from registry.store.postgresql import views
from registry.store.postgresql.address import conninfo_of, place_of
from registry.store.postgresql.errors import told
from registry.store.postgresql.server import refuse_pooler, refuse_read_only
from registry.store.postgresql.watchdog import Watchdog

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

    AdminConnection = psycopg.Connection[tuple[Any, ...]]

ADMIN_NAME = "metadata-registry db"
"""What connections that look at the schema or change it are called on the server, so that they are
not taken for those of a service."""

MIN_SERVER_VERSION = 140000
LOCK_TIMEOUT_S = 2

NOTHING = SchemaState()

_watchdog = Watchdog()

_RELATIONS = """
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
        AND NOT EXISTS (
            SELECT 1 FROM pg_depend d
            WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = c.oid
                AND d.deptype = 'e')
"""
"""What is in the schema, but for what belongs to an extension."""


class Cancel:
    """Lets a signal that ends the program break off what a connection is doing."""

    def __init__(self, connection: AdminConnection) -> None:
        self._connection = connection

    def interrupt(self) -> None:
        self._connection.cancel_safe(timeout=1)


@contextmanager
def opened(url: str) -> Iterator[AdminConnection]:
    """A connection on which each statement is a transaction of its own.

    Raises:
        RegistryError: the URL is refused, or what PostgreSQL raised in the block, as ours.
    """
    import psycopg

    conninfo, place = conninfo_of(url), place_of(url)
    with (
        explaining(place),
        psycopg.connect(conninfo, autocommit=True, application_name=ADMIN_NAME) as connection,
        stopping.interruptible(Cancel(connection)),
    ):
        with _watchdog.watching(connection):
            connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
            check_server(connection, place)
        yield connection


def admin_engine(url: str) -> Engine:
    """SQLAlchemy's view of a database, for Alembic. Every connection is a new one.

    Raises:
        DatabaseRefused: the URL is refused.
    """
    import psycopg
    from sqlalchemy import NullPool, create_engine

    conninfo = conninfo_of(url)
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo, application_name=ADMIN_NAME),
        poolclass=NullPool,
        use_native_hstore=False,
    )


def driver_of(connection: Connection) -> AdminConnection:
    """The driver's connection below one of SQLAlchemy's."""
    import psycopg

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def check_server(connection: AdminConnection, place: str) -> None:
    """Raise DatabaseRefused for a server that cannot keep a registry."""
    version = connection.info.server_version
    if version < MIN_SERVER_VERSION:
        raise DatabaseRefused(
            f"{place} is PostgreSQL {version // 10000}; the registry needs "
            f"{MIN_SERVER_VERSION // 10000} or newer."
        )
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise DatabaseRefused(
            f"The database {place} has the encoding {encoding}; names may have any character. "
            "Make one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0."
        )
    refuse_pooler(connection, place)


def look(url: str, *, to_write: bool = False, to_serve: bool = False) -> SchemaState:
    """What is in a database. An empty one holds nothing.

    Raises:
        DatabaseRefused: it is not ours.
        StorageUnavailable: it cannot be reached; or, with `to_write`, it takes no writes; or, with
            `to_serve`, a column or a view is missing.
    """
    with opened(url) as connection, _watchdog.watching(connection):
        if to_write:
            refuse_read_only(connection, place_of(url))
        found = look_through(connection, place_of(url))
        if to_serve and found.revision == tables.HEAD_REVISION:
            _read_nothing(connection)
        return found


def missing_rights(url: str) -> str | None:
    """What the user of a URL may not do and a service does, in a sentence; None: nothing.

    Raises:
        RegistryError: the database cannot be reached.
    """
    with opened(url) as connection, _watchdog.watching(connection):
        ((schema, user),) = connection.execute("SELECT current_schema(), current_user").fetchall()
        if schema is None:
            return "No schema of the search_path is there, of the URL or of the user."
        if look_through(connection, place_of(url)).revision is None:
            query = "SELECT has_schema_privilege(%s, 'CREATE')"
            ((may,),) = connection.execute(query, (schema,)).fetchall()
            return None if may else f"The user {user} may not make tables in the schema {schema}."
        rights = " AND ".join(
            f"has_table_privilege(name, '{each}')" for each in ("SELECT", "INSERT", "DELETE")
        )
        # The journal is only added to, and pruned.
        rights += " AND (name = 'events' OR has_table_privilege(name, 'UPDATE'))"
        names = list(tables.metadata.tables)
        found = connection.execute(
            f"SELECT name FROM unnest(%s::text[]) AS name WHERE NOT ({rights})".encode(), (names,)
        ).fetchall()
        shown = ", ".join(name for (name,) in found)
        return f"The user {user} may not read and write {shown}." if found else None


def _read_nothing(connection: AdminConnection) -> None:
    """Name every table, column and view that a service uses, and take no row."""
    for table in tables.metadata.tables.values():
        connection.execute(
            f"SELECT {', '.join(each.name for each in table.c)} FROM {table.name} LIMIT 0".encode()
        )
    for view in views.VIEWS:
        connection.execute(f"SELECT FROM {view} LIMIT 0".encode())


def look_through(connection: AdminConnection, place: str) -> SchemaState:
    """What is in the database of a connection.

    Raises:
        DatabaseRefused: it is not ours.
    """
    names = {name for (name,) in connection.execute(_RELATIONS).fetchall()}
    if not names - {"alembic_version"}:
        return NOTHING
    if not {"owners", "entries", "owner_refs", "settings"} <= names:
        if {"owner_refs", "entries"} & names and "settings" in names:
            raise without_revision(place)
        raise _foreign(connection, place)
    revisions = (
        connection.execute("SELECT version_num FROM alembic_version").fetchall()
        if "alembic_version" in names
        else []
    )
    if len(revisions) != 1:
        raise without_revision(place)
    settings: dict[str, str] = dict(
        connection.execute("SELECT name, value FROM settings").fetchall()
    )
    return SchemaState(
        revision=revisions[0][0],
        min_program_revision=settings.get("min_program_revision"),
        program_version=settings.get("program_version"),
        views=dict(connection.execute(views.IS_OURS).fetchall()),
        views_version=settings.get("views_version"),
    )


def _foreign(connection: AdminConnection, place: str) -> DatabaseRefused:
    ((schema,),) = connection.execute("SELECT current_schema()").fetchall()
    return DatabaseRefused(
        f"The schema {schema} of {place} has tables of another program; it was left as it is. Give "
        "the registry a database of its own, or a schema: add ?options=-csearch_path%3DNAME to the "
        "URL."
    )


@contextmanager
def explaining(place: str) -> Iterator[None]:
    """What PostgreSQL raises in the block, as ours."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise explained(place, error) from error


def explained(place: str, error: Exception) -> RegistryError:
    """PostgreSQL's error about a database as ours, told by its SQLSTATE."""
    state = getattr(error, "sqlstate", None) or ""
    said = told(error)
    if state == "25006":
        return DatabaseRefused(
            f"{place} can only be read, as a standby can. Name the primary, or all servers with a "
            "comma between them."
        )
    if state in ("42703", "42P01"):
        return StorageUnavailable(
            f"{place}: {said}. `metadata-registry db check` names what is missing; a view is made "
            "anew by `metadata-registry db upgrade`."
        )
    if state == "3F000":
        return DatabaseRefused(
            f"{place}: {said}. Make it (CREATE SCHEMA), or correct the search_path of the URL or "
            "of the user."
        )
    if state in ("55P03", "40P01"):
        return Busy(f"{place}: others kept what is to be changed locked. Try again. ({said})")
    if state.startswith(("42501", "3F")):
        return DatabaseRefused(f"{place}: {said}. The registry's user needs this right.")
    if state == "2BP01":
        return DatabaseRefused(f"{place}: {said}. Drop what uses it, then start again.")
    return StorageUnavailable(f"{place}: {said}.")
