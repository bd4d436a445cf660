"""A raw psycopg loop that writes what a registration writes, one durable commit per row set.

    python -m benchmarks.raw_postgresql URL ARTIFACTS SECONDS     prints as benchmarks.raw

The row set is that of benchmarks.raw, in the registry's own tables. Statements are prepared, ids
and rows are ready-made, nothing is read, checked, decoded or answered.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import psycopg
from psycopg.types.numeric import Int8Dumper

from benchmarks.databases import content
from benchmarks.raw import LEASE_MS
from registry.core.hashing import checksum_of
from registry.store.postgresql.address import conninfo_of

_OWNER = """
    INSERT INTO owners (namespace, component, endpoint, instance_id, lora_slug, state,
        lease_ttl_ms, lease_expires_at, registered_at, renewed_at)
    VALUES (%s, %s, %s, %s, %s, 'active', %s, %s, %s, %s) RETURNING id
"""
_RENEW = "UPDATE owners SET renewed_at = %s, lease_expires_at = %s WHERE id = %s"
_ENTRY = """
    INSERT INTO entries (id, slug, suffix, filename, checksum, size, generation, created_at,
        updated_at)
    VALUES (%s, %s, '_base', 'config.json', %s, %s, 1, %s, %s)
"""
_REF = """
    INSERT INTO owner_refs (owner_id, entry_id, blob_checksum, status, verified_at, created_at,
        event_id)
    VALUES (%s, %s, %s, 'ok', %s, %s, %s)
"""
_EVENT = """
    INSERT INTO events (id, at, kind, owner_id, entry_id, namespace, component, endpoint,
        instance_id, lora_slug, slug, suffix, filename, checksum, size)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


class PostgreSQLLoop:
    """Writes row sets of new artifacts for one owner."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], artifacts: int) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        # A new owner each time, so that the loop can run again on the same database.
        self._who = ("bench", "raw", "generate", str(time.time_ns()), "")
        self._artifacts = artifacts
        self._checksum, self._size = checksum_of(content(0)), len(content(0))
        self._entry_id = self._one("SELECT coalesce(max(id), 0) FROM entries")
        self._event_id = self._one("SELECT coalesce(max(id), 0) FROM events") + 1
        now = self._now()
        self._owner_id = self._one(_OWNER, *self._who, LEASE_MS, now + LEASE_MS, now, now)
        ids, nothing = (self._owner_id, None), (None, None, None, None, None)
        attached = (self._event_id, now, "attached", *ids, *self._who, *nothing)
        self._cursor.execute(_EVENT, attached)

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
        run = self._cursor
        run.execute("BEGIN", prepare=False)
        run.execute(_RENEW, (now, now + LEASE_MS, owner_id))
        run.executemany(_ENTRY, entries)
        run.executemany(_REF, refs)
        run.executemany(_EVENT, events)
        run.execute("COMMIT", prepare=False)

    def _one(self, query: str, *values: object) -> int:
        row = self._cursor.execute(query, values or None).fetchone()
        assert row is not None
        return int(row[0])

    @staticmethod
    def _now() -> int:
        return time.time_ns() // 1_000_000


def main() -> None:
    """Write row sets for so many seconds."""
    url, artifacts, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    times = []
    with psycopg.connect(conninfo_of(url), autocommit=True, prepare_threshold=0) as connection:
        # Else an int is sent as int2, int4 or int8 by its value: three statements of each.
        connection.adapters.register_dumper(int, Int8Dumper)
        loop = PostgreSQLLoop(connection, artifacts)
        began = time.perf_counter()
        while (at := time.perf_counter()) - began < seconds:
            loop.write()
            times.append(time.perf_counter() - at)
        elapsed = time.perf_counter() - began
    print(len(times) / elapsed, statistics.median(times) * 1000)


if __name__ == "__main__":
    main()
