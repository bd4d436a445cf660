"""What PostgreSQL does for statements that run all the time, in a database that has grown."""

from __future__ import annotations

import asyncio
import itertools
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from registry.core.records import Artifact, ArtifactKey, Owner, Registered, Registration
from registry.store import ops
from registry.store.opening import open_database
from registry.store.ops import blobs
from registry.store.ops.register import register
from registry.store.postgresql.connection import _LAST_IDS, _SET_IDS, NUMBERED
from registry.store.postgresql.engine import _PLANS
from registry.store.reads.lookup import GroupLocator
from tests.postgres import Cluster
from tests.support import checksum
from tests.test_guard import BIG_TABLES, SCANS, statements

OPERATIONS = {module.name for module in pkgutil.iter_modules(ops.__path__)} | {"journal"}
OWNERS, REFS = 400, 10
MORE = """
INSERT INTO owners (namespace, component, endpoint, instance_id, worker_name, state, ended_at,
        registered_at, renewed_at)
    SELECT 'ns', 'c', 'e', (10000 + g)::text, 'w-' || g % 50, 'superseded', 1, 0, 0
    FROM generate_series(1, 2000) g;
INSERT INTO events (at, kind, owner_id, entry_id, namespace, component, endpoint, instance_id,
        lora_slug, slug, suffix, filename)
    SELECT g, 'refused', 1, g % 100 + 1, 'ns', 'c', 'e', (g % 100)::text, '', 'm-' || g % 50,
        '_base', 'x'
    FROM generate_series(1, 4000) g;
ANALYZE;
"""
WALKS = {
    "prune._LAST_EVENT": "the end of an index: one row",
    "prune._DELETE_EVENTS": "once a minute while there is anything to prune, in steps",
}
"""Beside SCANS, what goes through a whole index or table on this engine, and why it may."""
CONTENTS = [b"%d" % number for number in range(200)]


@pytest.fixture(scope="module")
def grown(clusters: Any) -> Iterator[tuple[Cluster, str]]:
    """A server, and the URL of a database with some thousand rows in each large table."""
    cluster = clusters.get()
    with cluster.database() as url:
        database = open_database(url)
        with database.write() as conn:
            uploads = [blobs.Upload(checksum(c), len(c), lambda c=c: c) for c in CONTENTS]  # type: ignore[misc]
            blobs.store_blobs(conn, conn.now, uploads)
            items = [
                Registration(
                    Owner("ns", "c", "e", number),
                    tuple(
                        Artifact(
                            ArtifactKey(f"m-{number}", "_base", f"{index}.json"),
                            checksum(CONTENTS[(number + index) % len(CONTENTS)]),
                            1 if number % 2 else None,
                            "/models/a" if number % 2 else None,
                        )
                        for index in range(REFS)
                    ),
                    lease_ttl_ms=60_000,
                )
                for number in range(OWNERS)
            ]
            register(conn, conn.now, items)
        database.close()
        with cluster.connected(url.rsplit("/", 1)[1]) as connection:
            connection.execute(MORE.encode())
        yield cluster, url


def plan_of(grown: tuple[Cluster, str], query: str) -> list[str]:
    """The plan for any parameters, as the server makes one after some writes."""
    cluster, url = grown
    with cluster.connected(url.rsplit("/", 1)[1]) as connection:
        connection.execute(f"BEGIN; {_PLANS}".encode())
        rows = connection.execute(f"EXPLAIN (GENERIC_PLAN) {query}".encode()).fetchall()
        return [line for (line,) in rows]


@pytest.mark.parametrize("text", [_LAST_IDS, _SET_IDS], ids=["last", "set"])
def test_the_ids_of_a_write_are_found_without_a_walk_through_the_journal(
    grown: tuple[Cluster, str], text: str
) -> None:
    for number, table in enumerate(NUMBERED, start=1):
        text = text.replace(f"%({table})s", f"${number}::bigint")
    steps = "\n".join(plan_of(grown, text))
    assert "pk_events" in steps, steps
    assert "ix_events_entry_id" not in steps, steps
    assert "Seq Scan" not in steps, steps


def scanned(plan: list[str]) -> list[str]:
    """The steps of a plan that go through all of a big table, or through all of an index of it."""
    found = []
    for place, line in enumerate(plan):
        scan = re.search(r"(Seq Scan|Index (?:Only )?Scan(?: Backward)? using \w+) on (\w+)", line)
        if scan is None or scan[2] not in BIG_TABLES:
            continue
        said = itertools.takewhile(lambda each: "->  " not in each, plan[place + 1 :])
        if scan[1] == "Seq Scan" or not any("Index Cond" in each for each in said):
            found.append(line.strip())
    return found


def test_no_write_goes_through_a_big_table_but_those_that_say_why(
    grown: tuple[Cluster, str],
) -> None:
    found = {}
    numbering: Any = PGDialect_psycopg
    for name, statement in statements():
        if name.partition(".")[0] in OPERATIONS and name not in SCANS | WALKS:
            clause = statement._clause
            query = str(clause.compile(dialect=numbering(paramstyle="numeric_dollar")))
            found[name] = scanned(plan_of(grown, query))
    assert len(found) > 30
    assert {name: steps for name, steps in found.items() if steps} == {}


def test_look_ups_of_one_kind_do_not_keep_those_of_the_other_waiting(postgres_url: str) -> None:
    async def run() -> None:
        database = open_database(postgres_url)
        locator = GroupLocator(database)

        async def ask_for_ever() -> None:
            while True:
                assert await locator.find(("m", "_base", "config.json")) is None

        many = [asyncio.create_task(ask_for_ever()) for _ in range(20)]
        try:
            await asyncio.wait_for(locator.find(("m", "_base", "config.json")), 30)
            key = ("ns", "c", "e", "m", "_base", "config.json")
            assert await asyncio.wait_for(locator.find(key), 30) is None
        finally:
            for each in many:
                each.cancel()
            await asyncio.gather(*many, return_exceptions=True)
            locator.close()
            database.close()

    asyncio.run(run())


def trips_of(database: Any, monkeypatch: pytest.MonkeyPatch, item: Registration) -> int:
    """How often a registration waits for the server."""
    trips, watching = list[object](), database._watchdog.watching

    def counted(*arguments: Any, **options: Any) -> Any:
        trips.append(arguments)
        return watching(*arguments, **options)

    monkeypatch.setattr(database._watchdog, "watching", counted)
    with database.write() as conn:
        [outcome] = register(conn, conn.now, [item])
        assert isinstance(outcome, Registered)
    monkeypatch.undo()
    return len(trips)


def test_a_registration_waits_for_the_server_three_times(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To begin, to read and to commit. Where it says again what is so already, twice more: for its
    refs, and for what was refused since."""
    database = open_database(postgres_url)
    content = CONTENTS[0]

    def of(number: int, *names: str) -> Registration:
        keys = [ArtifactKey("m", "_base", name) for name in names]
        artifacts = tuple(Artifact(key, checksum(content), None, None) for key in keys)
        return Registration(Owner("ns", "c", "e", number), artifacts, worker_name=f"w-{number}")

    with database.write() as conn:
        upload = blobs.Upload(checksum(content), len(content), lambda: content)
        blobs.store_blobs(conn, conn.now, [upload])
    registered = [of(1, "a"), of(1, "b"), of(2, "a"), of(1, "a")]
    trips = [trips_of(database, monkeypatch, item) for item in registered]
    database.close()
    assert trips == [3, 3, 3, 5]
