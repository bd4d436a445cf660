"""Whether a server is one that replicas can share: looked at when a connection is opened."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from registry.errors import DatabaseRefused, StorageUnavailable
from registry.store.postgresql.pool import Session
from registry.store.postgresql.watchdog import Watchdog

OLDEST = 140000
"""PostgreSQL 14: older ones get no fixes any more."""
LOOK_EVERY_S = 60.0

_IS_READ_ONLY = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
_SETTINGS = "SELECT current_setting('fsync')::bool AND current_setting('full_page_writes')::bool"

_UNSAFE = (
    "the server runs with fsync or full_page_writes off: after a crash of its machine the database "
    "may be lost. Turn both on"
)


def check_server(session: Session, name: str) -> None:
    """Raise StorageUnavailable for a server that takes no writes, and DatabaseRefused for one that
    registries cannot work with."""
    if session.info.server_version < OLDEST:
        raise DatabaseRefused(
            f"{name} is on PostgreSQL {session.info.server_version // 10000}; the registry needs "
            f"{OLDEST // 10000} or newer."
        )
    refuse_pooler(session, name)
    ((encoding,),) = session.execute("SHOW server_encoding").fetchall()
    if encoding != "UTF8":
        raise DatabaseRefused(
            f"{name} has the encoding {encoding}. Create the database with ENCODING 'UTF8'."
        )
    refuse_read_only(session, name)


def refuse_read_only(session: Session, name: str) -> None:
    """Raise StorageUnavailable for a server that takes no writes."""
    ((is_read_only,),) = session.execute(_IS_READ_ONLY).fetchall()
    if is_read_only:
        raise StorageUnavailable(
            f"The server of {name} takes no writes: it is a standby, or set to read only. Name "
            "all servers in the URL (A:5432,B:5432), so that the primary is found, and see that "
            "its user has no default_transaction_read_only."
        )


def refuse_pooler(session: Session, name: str) -> None:
    """Raise DatabaseRefused where who answers is not the server that was connected to."""
    ((backend,),) = session.execute("SELECT pg_backend_pid()").fetchall()
    if backend != session.info.backend_pid:
        raise DatabaseRefused(
            f"A connection pooler (PgBouncer or the like) stands before {name}: each transaction "
            "may go to another connection of the server, but prepared statements and what is "
            "said of one connection must stay together. Give the address of the server itself; a "
            "replica keeps at most about 20 connections."
        )


class ServerLooks:
    """What is looked at once a minute: that the lock of the writers is one, and that the server
    keeps what it confirms."""

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._looked_at = float("-inf")
        self._looking = Lock()
        self._warnings: dict[str, str] = {}

    def warnings(self) -> dict[str, str]:
        """What somebody should look at although it works, by name."""
        return dict(self._warnings)

    def look(self, session: Session, connect: Callable[[], Session], watchdog: Watchdog) -> None:
        """Look, unless that was done lately.

        Raises:
            StorageUnavailable: the lock of the writers keeps nobody out.
        """
        with self._looking:
            if time.monotonic() - self._looked_at < LOOK_EVERY_S:
                return
            with connect() as other, watchdog.watching(other):
                self._check_lock(session, other)
            ((is_safe,),) = session.execute(_SETTINGS).fetchall()
            self._warnings = {} if is_safe else {"storage": _UNSAFE}
            self._looked_at = time.monotonic()

    def _check_lock(self, session: Session, other: Session) -> None:
        """Some engines that speak PostgreSQL's protocol only pretend to have advisory locks. With
        a key of its own, so that nobody who writes is in the way."""
        key = self._lock + session.info.backend_pid
        with session.transaction():
            session.execute("SELECT pg_advisory_xact_lock(%s::bigint)", (key,))
            query = "SELECT pg_try_advisory_xact_lock(%s::bigint)"
            with other.transaction():
                ((was_given,),) = other.execute(query, (key,)).fetchall()
        if was_given:
            raise StorageUnavailable(
                "The locks of this database keep nobody out (pg_advisory_xact_lock), so that "
                "replicas would write at the same time. Use PostgreSQL itself."
            )
