"""The databases and the requests that the figures are taken on.

Owner number i is `bench/backend/generate/i` and holds 10 files of a model of its own, copied. The
large databases are made by the store's own operations and kept under build/bench, named by the
revision of the schema.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.machine import WORK
from registry.core.checks import LEASE_MAX_MS
from registry.core.hashing import checksum_of
from registry.core.records import Artifact, ArtifactKey, Owner, Registration
from registry.store.ops import blobs, leases, register
from registry.store.owner_columns import identity
from registry.store.sqlite import migrate
from registry.store.sqlite.engine import Database
from registry.store.tables import HEAD_REVISION

REFS = 10
CONTENTS = 1000
CONTENT_BYTES = 1024
OWNERS_PER_TRANSACTION = 500
KEPT_TTL_MS = LEASE_MAX_MS


def content(number: int) -> bytes:
    """One of the 1 KiB contents."""
    line = json.dumps({"file": number % CONTENTS}).encode()
    return line.ljust(CONTENT_BYTES)


_checksums = [checksum_of(content(number)) for number in range(CONTENTS)]


def owner(number: int) -> Owner:
    return Owner("bench", "backend", "generate", number)


def manifest(number: int, entries: int) -> tuple[Artifact, ...]:
    """What owner number i holds in a database of so many entries. Every content has ten refs or
    more, so that none goes with one owner."""
    contents = min(CONTENTS, entries // REFS)
    return tuple(
        Artifact(
            ArtifactKey(f"model-{number}", "_base", f"file-{index}.json"),
            _checksums[(number * REFS + index) % contents],
            CONTENT_BYTES,
        )
        for index in range(REFS)
    )


def fresh(name: str) -> Path:
    """A database of its own for one figure, empty but for the contents."""
    path = WORK / f"{name}.db"
    for old in WORK.glob(f"{name}.db*"):
        old.unlink()
    WORK.mkdir(parents=True, exist_ok=True)
    _make(path, 0, LEASE_MAX_MS, lambda _: None)
    return path


def with_entries(entries: int, tell: Callable[[str], None]) -> Path:
    """The kept database with so many entries, all of them live for days."""
    path = _kept(entries, KEPT_TTL_MS, "live", tell)
    _renew(path, entries // REFS)
    return path


def lapsed(owners: int, tell: Callable[[str], None]) -> Path:
    """A copy of a database in which every owner's lease has lapsed."""
    kept = _kept(owners * REFS, 1000, "lapsed", tell)
    path = WORK / "sweep.db"
    for old in WORK.glob("sweep.db*"):
        old.unlink()
    shutil.copyfile(kept, path)
    return path


def with_journal(entries: int, events: int, tell: Callable[[str], None]) -> list[Path]:
    """Two copies of a database with so many entries and so many events, of owners and entries that
    have long gone."""
    kept = WORK / f"journal-{events}-{HEAD_REVISION}.db"
    if not kept.exists():
        partial = WORK / f"partial-{os.getpid()}.db"
        shutil.copyfile(with_entries(entries, tell), partial)
        _add_history(partial, events, tell)
        partial.rename(kept)
    copies = [WORK / f"journal-{number}.db" for number in range(2)]
    for copy in copies:
        for old in WORK.glob(f"{copy.name}*"):
            old.unlink()
        shutil.copyfile(kept, copy)
    return copies


_HISTORY = """
    WITH RECURSIVE
    numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :end),
    kinds (step, kind) AS (
        VALUES (1, 'created'), (2, 'registered'), (3, 'released'), (4, 'removed'))
    INSERT INTO events (at, kind, owner_id, entry_id, namespace, component, endpoint, instance_id,
        lora_slug, slug, suffix, filename, checksum, size)
    SELECT :now, kind, 1000000000 + n / :refs, 1000000000 + n, 'bench', 'backend', 'generate',
        CAST(1000000000 + n / :refs AS TEXT), '', 'gone-' || n / :refs, '_base',
        'file-' || n % :refs || '.json', :checksum, :size
    FROM numbers, kinds ORDER BY n, step
"""
HISTORY_PER_TRANSACTION = 50_000


def _add_history(path: Path, events: int, tell: Callable[[str], None]) -> None:
    database = Database(f"sqlite:///{path}")
    for first in range(0, events // 4, HISTORY_PER_TRANSACTION):
        tell(f"making {events:,} events: {400 * first // events} %")
        with database.write() as conn:
            conn.run_text(
                _HISTORY,
                {
                    "first": first,
                    "end": min(first + HISTORY_PER_TRANSACTION, events // 4),
                    "now": conn.now,
                    "refs": REFS,
                    "checksum": _checksums[0],
                    "size": CONTENT_BYTES,
                },
            )
    database.close()
    _checkpoint(path)


def _kept(entries: int, ttl_ms: int, kind: str, tell: Callable[[str], None]) -> Path:
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{kind}-{entries}-{HEAD_REVISION}.db"
    if not path.exists():
        partial = WORK / f"partial-{os.getpid()}.db"
        for old in WORK.glob("partial-*"):
            old.unlink()
        _make(partial, entries // REFS, ttl_ms, tell)
        partial.rename(path)
    return path


def _make(path: Path, owners: int, ttl_ms: int, tell: Callable[[str], None]) -> None:
    url = f"sqlite:///{path}"
    migrate.prepare(url)
    database = Database(url)
    uploads = [
        blobs.Upload(checksum, CONTENT_BYTES, lambda number=number: content(number))  # type: ignore[misc]
        for number, checksum in enumerate(_checksums)
    ]
    with database.write() as conn:
        blobs.store_blobs(conn, conn.now, uploads)
    for first in range(0, owners, OWNERS_PER_TRANSACTION):
        numbers = range(first, min(first + OWNERS_PER_TRANSACTION, owners))
        items = [
            Registration(owner(n), manifest(n, owners * REFS), lease_ttl_ms=ttl_ms) for n in numbers
        ]
        with database.write() as conn:
            register.register(conn, conn.now, items)
        tell(f"making {owners * REFS} entries: {100 * (first + len(items)) // owners} %")
    with database.write() as conn:
        pass
    database.close()
    _checkpoint(path)


def _renew(path: Path, owners: int) -> None:
    """Renew every lease if the database was made a while ago."""
    database = Database(f"sqlite:///{path}")
    with database.read() as conn:
        ends_at = conn.run_text("SELECT MIN(lease_expires_at) FROM owners")[0][0]
        due = ends_at is not None and ends_at - conn.now < KEPT_TTL_MS // 2
    for first in range(0, owners if due else 0, OWNERS_PER_TRANSACTION):
        numbers = range(first, min(first + OWNERS_PER_TRANSACTION, owners))
        with database.write() as conn:
            leases.RenewOperation().renew(
                conn, conn.now, [identity(owner(number)) for number in numbers]
            )
    database.close()


def _checkpoint(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    connection = database.connect("rw")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    database.close()


# Requests


def http(method: str, path: str, body: bytes = b"") -> bytes:
    """A request, ready to be sent."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def registration(number: int, artifacts: tuple[Artifact, ...]) -> bytes:
    """The request that registers a manifest of copies for owner number i."""
    who = owner(number)
    body = {
        "owner": {
            "namespace": who.namespace,
            "component": who.component,
            "endpoint": who.endpoint,
            "instance_id": str(who.instance_id),
        },
        "artifacts": [
            {
                "slug": each.key.slug,
                "suffix": each.key.suffix,
                "filename": each.key.filename,
                "checksum": each.checksum,
                "size": each.size,
            }
            for each in artifacts
        ],
    }
    return http("POST", "/v1/registrations", json.dumps(body).encode())


def new_artifacts(caller: int, per_request: int, run: int) -> Iterator[bytes]:
    """Registrations of ever new keys by one owner, put together with as little work as can be."""
    who = 10**9 + run * 1000 + caller
    head = (
        b'{"owner":{"namespace":"bench","component":"backend","endpoint":"generate",'
        b'"instance_id":"%d"},"artifacts":[' % who
    )
    line = (
        b'{"slug":"new-%d-%%d","suffix":"_base","filename":"config.json","checksum":"%s",'
        b'"size":%d}' % (who, _checksums[caller % CONTENTS].encode(), CONTENT_BYTES)
    )
    number = 0
    while True:
        lines = b",".join([line % each for each in range(number, number + per_request)])
        number += per_request
        yield http("POST", "/v1/registrations", head + lines + b"]}")


def unregistration(number: int) -> bytes:
    """The request that unregisters owner number i."""
    return http("DELETE", f"/v1/owners/{owner(number)}")
