"""Why a server says nothing on a connection: it is asked on another one."""

from __future__ import annotations

import select
import socket
import time
from enum import Enum
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

CONNECT_S = 2
"""libpq knows no shorter time for a connection."""
ANSWERS_WITHIN_S = 1.5

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
"""Whether TLS is spoken. A server answers this before it knows who asks, or has a place for him."""

_BACKEND = (
    "SELECT state, wait_event_type, wait_event, state_change FROM pg_stat_activity WHERE pid = %d"
)


class Silence(Enum):
    """What a server does for a connection that waits for it."""

    WORK = "it is at work"
    STANDBY = "it waits for a standby to confirm a COMMIT"
    LOST = "it waits for us"
    UNKNOWN = "it does not say"


class ServerProcess(NamedTuple):
    """What was found, with what the server says of it, so that two looks can be compared."""

    silence: Silence
    said: tuple[bytes | None, ...] = ()


def is_there(host: str, port: int) -> bool:
    """Whether a server answers anybody at all. That it has no place, or is starting, is an
    answer."""
    try:
        with _connected(host, port) as raw:
            raw.settimeout(ANSWERS_WITHIN_S)
            raw.sendall(_SSL_REQUEST)
            return bool(raw.recv(1))
    except OSError:
        return False


def _connected(host: str, port: int) -> socket.socket:
    if not host.startswith(("/", "@")):
        return socket.create_connection((host, port), timeout=ANSWERS_WITHIN_S)
    raw = socket.socket(socket.AF_UNIX)
    try:
        raw.settimeout(ANSWERS_WITHIN_S)
        raw.connect(f"{host}/.s.PGSQL.{port}".replace("@", "\0", 1))
    except BaseException:
        raw.close()
        raise
    return raw


def look_at(connection: psycopg.Connection[object]) -> ServerProcess:
    """What the server does for a connection."""
    info = connection.info
    there: dict[str, str | int | None] = {
        "host": info.host,
        "port": info.port,
        "password": info.password or None,
    }
    if info.hostaddr:
        there["hostaddr"] = info.hostaddr
    options: dict[str, str | int | None] = {
        "target_session_attrs": "any",
        "connect_timeout": CONNECT_S,
    }
    conninfo = make_conninfo(info.dsn, **there, **options)
    try:
        other = psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error:
        return ServerProcess(Silence.UNKNOWN)
    try:
        found = _ask(other.pgconn, _BACKEND % info.backend_pid)
    except psycopg.Error:
        return ServerProcess(Silence.UNKNOWN)
    finally:
        other.close()
    return _judged(found)


def _judged(found: pq.abc.PGresult | None) -> ServerProcess:
    if found is None or found.status != pq.ExecStatus.TUPLES_OK:
        return ServerProcess(Silence.UNKNOWN)
    if found.ntuples == 0:
        return ServerProcess(Silence.LOST)  # Whoever worked for it is gone.
    said = tuple(found.get_value(0, column) for column in range(found.nfields))
    state, _, event, _ = said
    if state is None:
        return ServerProcess(Silence.UNKNOWN, said)  # This user is not told.
    if event == b"SyncRep":
        return ServerProcess(Silence.STANDBY, said)
    if state != b"active" or event == b"ClientRead":
        return ServerProcess(Silence.LOST, said)
    return ServerProcess(Silence.WORK, said)


def _ask(pgconn: pq.abc.PGconn, query: str) -> pq.abc.PGresult | None:
    """The answer to a query, or None: there was none in time."""
    until = time.monotonic() + ANSWERS_WITHIN_S
    pgconn.send_query(query.encode())
    while pgconn.is_busy():
        left = until - time.monotonic()
        if left <= 0 or not select.select([pgconn.socket], [], [], left)[0]:
            return None
        pgconn.consume_input()
    return pgconn.get_result()
