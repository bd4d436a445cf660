"""SQLite and PostgreSQL do the same: outcomes, rows, ids, pages of lists, what the views say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.core.events import EventFilter, EventOrder
from registry.core.policy import Policy
from registry.core.records import Artifact, ArtifactKey, Registration
from registry.store.engine import Connection, Engine
from registry.store.opening import open_database, prepare
from registry.store.ops.expire import Sweep, sweep
from registry.store.ops.prune import Prune, find_abandoned, prune
from registry.store.ops.settings_table import Adoption, adopt
from registry.store.reads import events, lookup, queries
from registry.store.reads.audit import find_leaks, summarize
from registry.store.reads.verify import verify
from tests.postgres import Cluster
from tests.support import checksum
from tests.test_list_operations import (
    KEYS,
    OPERATIONS,
    OWNERS,
    START,
    comparable,
    histories,
    prepare_world,
)

TABLES = ("owners", "entries", "owner_refs", "blobs", "events", "settings")
SHORT = Policy(lease_grace_ms=1, upload_grace_ms=1, brake_min_owners=100, tombstone_retention_ms=1)


class Clock:
    """A time that is passed in."""

    now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "registry.db"
    prepare(f"sqlite:///{path}")
    return path


@contextmanager
def both(cluster: Cluster, empty: Path, clock: Clock) -> Iterator[tuple[Engine, Engine]]:
    """An empty database of each engine."""
    path = empty.with_name("copy.db")
    for old in path.parent.glob("copy.db*"):
        old.unlink()
    shutil.copyfile(empty, path)
    with cluster.database() as url:
        engines = (
            open_database(f"sqlite:///{path}", clock=clock),
            open_database(url, clock=clock),
        )
        try:
            yield engines
        finally:
            for each in engines:
                each.close()


def rows_of(conn: Connection) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: conn.run_text(f"SELECT * FROM {name} ORDER BY 1, 2") for name in TABLES
    }
    # What each engine notes of its own schema.
    found["settings"] = [row for row in found["settings"] if row[0] not in ("views_version",)]
    found["ids"] = {name: id for name, id in conn.last_ids().items() if id}
    return found


def seen_through(conn: Connection) -> dict[str, Any]:
    """What lists, the journal, explanations and the audit show."""
    shown: dict[str, Any] = {
        "owners": queries.list_owners(conn, after=None, limit=3),
        "entries": queries.list_entries(conn, after=0, limit=3, filters={}),
        "models": queries.list_models(conn, ("", ""), 2),
        "events": events.list_events(conn, EventFilter(), EventOrder.OLDEST, None, 7),
        "newest": events.list_events(conn, EventFilter(), EventOrder.NEWEST, None, 7),
        "locations": [lookup.find_locations(conn, key) for key in KEYS],
        "explained": [queries.explain(conn, key) for key in KEYS],
        "owner": [queries.find_owner(conn, owner) for owner in OWNERS],
        "footprint": conn.run_text("SELECT * FROM owner_footprint ORDER BY owner_id"),
        "holders": conn.run_text("SELECT * FROM holders ORDER BY owner_id, entry_id"),
    }
    summary = summarize(conn)
    shown["summary"] = (summary.overdue_owners, summary.largest_owners, summary.entries_by_holders)
    return shown


def leaks_of(engine: Engine) -> list[Any]:
    with engine.read() as conn:
        return sorted(
            find_leaks(conn), key=lambda each: (each.kind, each.owner or "", each.entry or "")
        )


@settings(max_examples=40)
@given(data=st.data())
def test_the_same_history_leaves_the_same_behind(
    cluster: Cluster, empty: Path, data: st.DataObject
) -> None:
    """Every step is a transaction of its own; afterwards everything is swept and pruned."""
    history = data.draw(histories, "history")
    grace_ms = data.draw(st.sampled_from([0, 1000, None]), "upload grace")
    clock = Clock()
    with both(cluster, empty, clock) as engines:
        for engine in engines:
            with engine.write() as conn:
                prepare_world(conn, grace_ms, [])
        for name, items, passed in history:
            clock.now += passed
            outcomes = [step(engine, name, items) for engine in engines]
            assert outcomes[0] == outcomes[1]
        compare(engines)
        for engine in engines:
            with engine.write() as conn:
                adopt(conn, conn.now, [Adoption(SHORT, "1.0")])
        for passed in (200_000, 200_000):
            clock.now += passed
            swept = [tidy(engine) for engine in engines]
            assert swept[0] == swept[1]
            compare(engines)
        assert [list(verify(engine)) for engine in engines] == [[], []]


def step(engine: Engine, name: str, items: list[Any]) -> list[object]:
    operation, _ = OPERATIONS[name]
    with engine.write() as conn:
        return [comparable(outcome) for outcome in operation(conn, conn.now, items)]


def tidy(engine: Engine) -> object:
    with engine.write() as conn:
        swept = sweep(conn, conn.now, [Sweep(force=True)])
    with engine.read() as conn:
        abandoned = tuple(sorted(find_abandoned(conn, conn.now)))
    with engine.write() as conn:
        return swept, prune(conn, conn.now, [Prune(abandoned)])


def compare(engines: tuple[Engine, Engine]) -> None:
    found = []
    for engine in engines:
        with engine.write() as conn:
            rows = rows_of(conn)
        with engine.read() as conn:
            found.append({**rows, **seen_through(conn)})
    for name in found[0]:
        assert found[0][name] == found[1][name], name
    assert leaks_of(engines[0]) == leaks_of(engines[1])


def test_a_key_with_every_kind_of_character_is_the_same(cluster: Cluster, empty: Path) -> None:
    """What drivers and compilers take for their own: percent signs, colons, quotes."""
    key = ArtifactKey("a", "_base", "größe 模型 ' \" %s %(x)s :name ?.json")
    artifact = Artifact(key, checksum(b""), 0, "/models/%s :x")
    with both(cluster, empty, Clock()) as engines:
        for engine in engines:
            step(engine, "register", [Registration(OWNERS[0], (artifact,))])
            with engine.read() as conn:
                (found,) = lookup.find_locations(conn, key)
                assert found.path == artifact.path
        compare(engines)
