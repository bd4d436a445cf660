"""Nobody waits for ever for a server that has gone silent.

libpq has no limit for the time that it waits for an answer. So whoever waits is watched from a
thread: when nothing has come for `PATIENCE_S`, the server is looked after (`silence`). Where it
answers nobody, or its answer was lost on the way, the connection is cut, and whoever waits is told.
Where it is still at work, that takes as long as the server allows; but a COMMIT that waits for a
standby which is not there is ended: whether it was written is not known then.
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

from registry.store.postgresql.silence import CONNECT_S, ServerProcess, Silence, is_there, look_at

PATIENCE_S = 4.0
"""How long a server may be silent before it is looked after."""
AGAIN_AFTER_S = 1.0
"""An answer may be just arriving: it is lost if the server has done nothing more after this."""
GIVEN_UP_AFTER_S = 180.0
"""Longer than the server allows any statement."""
FOUND_FOR_S = 1.0
"""That a server does not answer holds for others who wait for it."""
IDLE_S = 10.0
"""The thread ends when nobody has waited for so long."""

log = logging.getLogger("registry.db")

_Connection = psycopg.Connection[object]


@dataclass(slots=True, eq=False)
class _Waiting:
    connection: _Connection
    look_at: float
    until: float
    is_commit: bool
    seen: ServerProcess | None = None
    """What the server was doing for it, if that was nothing."""


class Watchdog:
    """Watches connections that wait for their server, in one thread while there are any."""

    def __init__(self) -> None:
        self._waiting: set[_Waiting] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_asleep = False
        self._gone: tuple[float, object] = (float("-inf"), None)
        """When a server was last found not to answer, and which."""

    @contextmanager
    def watching(self, connection: _Connection, *, is_commit: bool = False) -> Iterator[None]:
        """The block waits for answers on the connection."""
        now = time.monotonic()
        waiting = _Waiting(connection, now + PATIENCE_S, now + GIVEN_UP_AFTER_S, is_commit)
        self._waiting.add(waiting)
        if self._is_asleep or self._thread is None or not self._thread.is_alive():
            self._wake()
        try:
            yield
        finally:
            self._waiting.discard(waiting)

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._watch, name="registry-watchdog", daemon=True
                )
                with suppress(RuntimeError):  # There are no threads to be had: no watch then.
                    self._thread.start()
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            for each in tuple(self._waiting):
                if each.look_at <= now:
                    try:
                        self._look_after(each)
                    except psycopg.Error:
                        continue  # It was closed meanwhile.
            with self._changed:
                # Said first, and only then looked at: whoever comes in between sees it.
                self._is_asleep = True
                if not self._waiting and not self._changed.wait(IDLE_S) and not self._waiting:
                    self._thread = None
                    return
                self._is_asleep = False
            time.sleep(PATIENCE_S / 20)

    def _look_after(self, waiting: _Waiting) -> None:
        connection = waiting.connection
        waiting.look_at = time.monotonic() + PATIENCE_S
        if not self._is_server_there(connection):
            self._cut(waiting, f"the server has been silent for {PATIENCE_S:g} s")
            return
        backend = look_at(connection)
        if backend.silence is Silence.LOST:
            if backend == waiting.seen:
                self._cut(waiting, "an answer of the server was lost on the way")
            waiting.seen, waiting.look_at = backend, time.monotonic() + AGAIN_AFTER_S
        elif backend.silence is Silence.STANDBY or (
            waiting.is_commit and backend.silence is Silence.UNKNOWN
        ):
            self._end_commit(waiting)
        elif time.monotonic() > waiting.until:
            self._cut(waiting, f"a statement has taken more than {GIVEN_UP_AFTER_S:g} s")

    def _is_server_there(self, connection: _Connection) -> bool:
        info = connection.info
        at, server = self._gone
        wanted = (info.hostaddr or info.host, info.port)
        if server == wanted and time.monotonic() - at < FOUND_FOR_S:
            return False
        if is_there(*wanted):
            return True
        self._gone = (time.monotonic(), wanted)
        return False

    def _cut(self, waiting: _Waiting, why: str) -> None:
        if waiting in self._waiting:
            log.error("A connection to the database is cut: %s", why)
            cut(waiting.connection.pgconn.socket)

    def _end_commit(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            log.error(
                "A commit waits for a standby of the server that does not answer: it is ended"
            )
            waiting.connection.cancel_safe(timeout=CONNECT_S)


def cut(descriptor: int) -> None:
    """End a connection from another thread, so that whoever waits on it is told."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
