"""A raw sqlite3 loop that writes what a registration writes, one durable commit per row set.

    python -m benchmarks.raw DATABASE ARTIFACTS SECONDS     prints commits/s and the median in ms

A row set is what `POST /v1/registrations` of ARTIFACTS new artifacts leaves behind: for each an
entry, an owner ref and two journal events (`created`, `registered`), and the owner's renewed
lease; once, a new owner with its journal event. The tables, indexes and constraints are the
registry's own, and so are the settings of the connection. Statements are prepared, rows are
ready-made tuples, nothing is read, checked, decoded or answered.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from pathlib import Path

from benchmarks.databases import content
from registry.core.hashing import checksum_of
from registry.store.sqlite.engine import WRITE_PRAGMAS, Database

LEASE_MS = 60_000

_OWNER = """
    INSERT INTO owners (namespace, component, endpoint, instance_id, lora_slug, state,
        lease_ttl_ms, lease_expires_at, registered_at, renewed_at)
    VALUES (?, ?, ?, ?, ?, 'active', ?, ?, ?, ?)
"""
_RENEW = "UPDATE owners SET renewed_at = ?, lease_expires_at = ? WHERE id = ?"
_ENTRY = "INSERT INTO entries VALUES (?, ?, '_base', 'config.json', ?, ?, 1, ?, ?, NULL)"
_REF = "INSERT INTO owner_refs VALUES (?, ?, ?, NULL, NULL, 'ok', ?, ?, ?)"
_EVENT = """
    INSERT INTO events (id, at, kind, owner_id, entry_id, namespace, component, endpoint,
        instance_id, lora_slug, slug, suffix, filename, checksum, size)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Loop:
    """Writes row sets of new artifacts for one owner."""

    def __init__(self, connection: sqlite3.Connection, artifacts: int) -> None:
        self._connection = connection
        # A new owner each time, so that the loop can run again on the same database.
        self._who = ("bench", "raw", "generate", str(time.time_ns()), "")
        self._artifacts = artifacts
        self._checksum, self._size = checksum_of(content(0)), len(content(0))
        self._entry_id, self._event_id = self._last("entries"), self._last("events")
        now = self._now()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_OWNER, (*self._who, LEASE_MS, now + LEASE_MS, now, now))
        self._owner_id = self._last("owners")
        self._event_id += 1
        ids, nothing = (self._owner_id, None), (None, None, None, None, None)
        connection.execute(_EVENT, (self._event_id, now, "attached", *ids, *self._who, *nothing))
        connection.execute("COMMIT")

    def write(self) -> None:
        """One row set, committed to the disk."""
        now, owner_id = self._now(), self._owner_id
        entries, refs, events = [], [], []
        for _ in range(self._artifacts):
            self._entry_id += 1
            slug = f"raw-{self._entry_id}"
            key = (slug, "_base", "config.json")
            about = (owner_id, self._entry_id, *self._who, *key, self._checksum, self._size)
            entries.append((self._entry_id, slug, self._checksum, self._size, now, now))
            events.append((self._event_id + 1, now, "created", *about))
            self._event_id += 2
            events.append((self._event_id, now, "registered", *about))
            refs.append((owner_id, self._entry_id, self._checksum, now, now, self._event_id))
        run = self._connection
        run.execute("BEGIN IMMEDIATE")
        run.execute(_RENEW, (now, now + LEASE_MS, owner_id))
        run.executemany(_ENTRY, entries)
        run.executemany(_REF, refs)
        run.executemany(_EVENT, events)
        run.execute("COMMIT")

    def _last(self, table: str) -> int:
        rows = self._connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchall()
        return rows[0][0] if rows else 0

    @staticmethod
    def _now() -> int:
        return time.time_ns() // 1_000_000


def main() -> None:
    """Write row sets for so many seconds."""
    path, artifacts, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    database = Database(f"sqlite:///{path}")
    connection = database.connect("rw", WRITE_PRAGMAS)
    loop = Loop(connection, artifacts)
    times = []
    began = time.perf_counter()
    while (at := time.perf_counter()) - began < seconds:
        loop.write()
        times.append(time.perf_counter() - at)
    elapsed = time.perf_counter() - began
    connection.close()
    print(len(times) / elapsed, statistics.median(times) * 1000)


if __name__ == "__main__":
    main()
