"""Nobody waits for ever for a server that has gone silent.

libpq has no limit for the time that it waits for an answer. So whoever waits is watched from a
thread: when nothing has come for `PATIENCE_S`, the server is asked something else on a connection
of its own. If it does not answer that either, the waiting connection is cut. If it does, the
statement just takes long, which the server itself bounds; but a COMMIT that takes so long waits for
a standby that is not there, and is cancelled: whether it was written is not known then.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo

PATIENCE_S = 5.0
"""How long a server may be silent before it is looked after."""
PROBE_S = 2
"""How long it may take to answer then; libpq knows no shorter time."""
PROBED_FOR_S = 1.0
"""What was found holds for others who wait for the same server."""

log = logging.getLogger("registry.db")


@dataclass(slots=True, eq=False)
class _Waiting:
    connection: psycopg.Connection[object]
    look_at: float
    is_commit: bool


class Watchdog:
    """Watches connections that wait for their server, in one thread while there are any."""

    def __init__(self) -> None:
        self._waiting: set[_Waiting] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_asleep = False
        self._probed: tuple[float, object, bool] = (float("-inf"), None, True)

    @contextmanager
    def watching(
        self, connection: psycopg.Connection[object], *, is_commit: bool = False
    ) -> Iterator[None]:
        """The block waits for an answer on the connection."""
        waiting = _Waiting(connection, time.monotonic() + PATIENCE_S, is_commit)
        self._waiting.add(waiting)
        if self._is_asleep or self._thread is None:
            self._wake()
        try:
            yield
        finally:
            self._waiting.discard(waiting)

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="registry-watchdog", daemon=True
                )
                with suppress(RuntimeError):  # There are no threads to be had: no watch then.
                    self._thread.start()
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            due = [each for each in tuple(self._waiting) if each.look_at <= now]
            for each in due:
                self._look_after(each)
            with self._changed:
                # Said first, and only then looked at: whoever comes in between sees it.
                self._is_asleep = True
                if not self._waiting:
                    self._changed.wait()
                self._is_asleep = False
            time.sleep(PATIENCE_S / 20)

    def _look_after(self, waiting: _Waiting) -> None:
        waiting.look_at = time.monotonic() + PATIENCE_S
        connection = waiting.connection
        if not self._answers(connection):
            if waiting in self._waiting:
                log.error(
                    "The database has been silent for %g s: its connection is cut", PATIENCE_S
                )
                cut(connection.pgconn.socket)
        elif waiting.is_commit and waiting in self._waiting:
            log.error("A commit waits for a standby of the server that is not there: it is ended")
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=PROBE_S)

    def _answers(self, connection: psycopg.Connection[object]) -> bool:
        """Whether the server of a connection still answers."""
        info = connection.info
        at, server, answered = self._probed
        try:
            wanted = (info.hostaddr or info.host, info.port)
            if wanted != server or time.monotonic() - at > PROBED_FOR_S:
                answered = probe(connection)
                self._probed = (time.monotonic(), wanted, answered)
        except psycopg.Error:
            return False
        return answered


def probe(connection: psycopg.Connection[object]) -> bool:
    """Whether the server of a connection answers on another one. That it has no place for one, or
    that it is just starting, is an answer."""
    info = connection.info
    conninfo = make_conninfo(
        info.dsn,
        password=info.password or None,
        host=info.host,
        port=info.port,
        hostaddr=info.hostaddr or None,
        target_session_attrs="any",
        connect_timeout=PROBE_S,
    )
    try:
        with psycopg.connect(conninfo, autocommit=True):
            return True
    except psycopg.OperationalError as error:
        return error.sqlstate is not None


def cut(descriptor: int) -> None:
    """End a connection from another thread, so that whoever waits on it is told."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
