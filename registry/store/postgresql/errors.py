"""What PostgreSQL and its driver raise, as ours: by SQLSTATE, never by the text of a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from registry.errors import Busy, RegistryError, StorageUnavailable

LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
READ_ONLY = "25006"

_BUSY = {
    LOCK_NOT_AVAILABLE: "Somebody held what this needs all the time: another replica the write "
    "lock, or somebody else a lock of a table (pg_locks shows who). Nothing was written. Try "
    "again.",
    "40001": "The database could not order this change among others; nothing was written. Try "
    "again.",
    "40P01": "The database broke off this change, which waited for another in a circle; nothing "
    "was written. Try again.",
    QUERY_CANCELED: "The database was busy for longer than this may take (or than the "
    "statement_timeout of its user), and broke it off; nothing was written. Try again.",
}

_CAUSES = {
    "25006": "the server takes no writes: it is a standby, or set to read only. Name all servers "
    "in the URL (A:5432,B:5432), so that the primary is found, and see that its user has no "
    "default_transaction_read_only",
    "25P03": "this process was halted in the middle of a transaction, which the server broke off",
    "25P04": "a transaction took too long, and the server broke it off",
    "28P01": "the server refused the password; correct the URL or the password file",
    "28000": "the server does not admit this user; correct the URL, or the server's pg_hba.conf",
    "3D000": "there is no such database; create it, or correct the URL",
    "3F000": "the schema is not there; check the search_path of the user",
    "42501": "the user may not do this; give it the rights on the tables of the registry",
    "42P01": "a table is missing; run `metadata-registry db check`",
    "42703": "a column is missing; run `metadata-registry db check`",
    "53100": "the disk of the server is full; free some space there",
    "53200": "the server is out of memory",
    "53300": "the server has as many connections as it takes; raise its max_connections, or run "
    "fewer replicas",
    "53400": "the server has reached a limit of its configuration",
    "54000": "the server has reached a limit of its own",
    "57P01": "the server is stopping",
    "57P02": "the server ends after a crash of one of its processes",
    "57P03": "the server is starting or stopping",
    "57P05": "the server closed a connection that was idle for long",
}

_OURS = ("pk_", "uq_", "ck_", "fk_", "ix_")
"""How the names of the registry's own constraints begin."""
_OF_OTHERS = ("09", "23", "27", "38", "39", "44", "P0")
"""What triggers, rules and constraints raise."""

_CAUSES_OF_CLASS = {
    "08": "the connection to the server is broken",
    "28": "the server does not admit this user; correct the URL, or the server's pg_hba.conf",
    "53": "the server is short of something",
    "57": "the server broke it off",
    "58": "the server cannot read or write its disk; see its log",
    "F0": "the configuration of the server is broken; see its log",
    "XX": "the database is damaged, or the server has a fault; see its log",
}

LOST = ("08", "57P")
"""SQLSTATEs of these classes, and none at all, end a connection."""


def ends_connection(error: psycopg.Error) -> bool:
    """Whether the connection is gone with an error."""
    return error.sqlstate is None or error.sqlstate.startswith(LOST)


def is_damage(error: BaseException | None) -> bool:
    """Whether a driver's error tells something of the database, not of a shortage or a lock."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(("XX", "58"))


def translate(error: psycopg.Error, name: str) -> RegistryError | None:
    """Our error for a driver's, or None where it means a mistake of ours. `name` is what people
    call the database."""
    state = error.sqlstate
    if state is None:
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return None
        return StorageUnavailable(f"The database {name} cannot be used: {told(error)}.")
    if state in _BUSY:
        return Busy(_BUSY[state])
    cause = _CAUSES.get(state) or _CAUSES_OF_CLASS.get(state[:2])
    if cause is None and state.startswith(_OF_OTHERS) and not _is_ours(error):
        said = error.diag.message_primary or "no reason"
        cause = (
            f"it refused the change, as the registry's own schema does not: {said}. Look for a "
            "trigger, rule or constraint that was added; `metadata-registry db check` names it"
        )
    if cause is None:
        return None
    return StorageUnavailable(f"The database {name} cannot be used: {cause} ({state}).")


def _is_ours(error: psycopg.Error) -> bool:
    return (error.diag.constraint_name or "").startswith(_OURS)


def outcome_unknown(name: str, why: str) -> StorageUnavailable:
    """That nobody can tell whether a change was committed."""
    return StorageUnavailable(
        f"The database {name} did not confirm the change: {why}. It may have been written or not; "
        "repeat it, which is safe."
    )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Driver errors become ours here."""
    try:
        yield
    except psycopg.Error as error:
        ours = translate(error, name)
        if ours is None:
            raise
        raise ours from error


def told(error: Exception) -> str:
    """What the driver says where there is no SQLSTATE: of several hosts, what each did."""
    _, *attempts = f"\n{error}".split("\n- ")
    said = [" ".join(each.split()) for each in attempts or [str(error)]]
    return "; ".join(said).rstrip(".") or "it does not answer"
