"""Whether this program can work with a PostgreSQL database as it is, and if not, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from registry.errors import DatabaseRefused, RegistryError
from registry.store import compatibility
from registry.store.compatibility import SchemaState, admits, no_registry, why_unusable
from registry.store.postgresql.address import place_of
from registry.store.postgresql.inspect import look, look_through

BACKUPS = "PostgreSQL's tools make them, or the managed service"


def find_problem(url: str) -> str | None:
    """Why a running service cannot work with the database as it is now, or None if it can."""
    try:
        found = look(url, to_serve=True)
        if is_usable(place_of(url), found):
            return None
    except RegistryError as error:
        return error.detail
    return why_unusable(place_of(url), found)


def check_there(url: str) -> None:
    """Raise DatabaseRefused unless a registry is there that a command can work with as it is."""
    place, found = place_of(url), look(url)
    if found.revision is None:
        raise DatabaseRefused(no_registry(place))
    if not is_usable(place, found):
        raise DatabaseRefused(why_unusable(place, found))


def is_usable(place: str, found: SchemaState) -> bool:
    """Whether this program can work with a database as it is. False: it is to be upgraded.

    Raises:
        DatabaseRefused: it needs a newer program.
    """
    return admits(place, found, BACKUPS)


def refuse_newer(place: str, found: SchemaState) -> None:
    """Raise DatabaseRefused for a schema that is newer than this program."""
    compatibility.refuse_newer(place, found, BACKUPS)


def acceptor(url: str) -> Callable[[psycopg.Connection[Any]], None]:
    """A function that raises DatabaseRefused for a connection to the database at a URL, unless it
    holds a registry that this program can work with as it is."""
    place = place_of(url)

    def accept(connection: psycopg.Connection[Any]) -> None:
        found = look_through(connection, place)
        if not is_usable(place, found):
            raise DatabaseRefused(why_unusable(place, found))

    return accept
