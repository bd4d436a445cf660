"""`db copy`: a whole registry goes from one engine to the other, and nothing of it is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from registry.core.records import Owner
from registry.errors import DatabaseRefused, Refused, StorageUnavailable
from registry.store import copying, opening
from registry.store.postgresql import migrate as postgresql_migrate
from registry.store.postgresql.address import conninfo_of
from registry.store.postgresql.inspect import look
from registry.store.sqlite import migrate as sqlite_migrate
from tests.commands import run_here
from tests.fleet import MINUTE, World, key, worker
from tests.postgres import VERSIONS, Cluster, Clusters
from tests.support import assert_sound, sql, wait_for

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def filled(world: World) -> World:
    """A registry with everything in it: shared files, ended owners, refusals, files in place."""
    for number in range(1, 6):
        contents = {key(f"{each}.json"): b"{}" * each for each in range(3)}
        world.hold(worker(number), contents, worker_name=f"gpu-{number}")
        world.hold(worker(number, "lora"), {key("a", f"own-{number}"): b"\0\xff\\N\t" * number})
    world.hold(worker(6), {key("0.json"): b"other"})  # Refused.
    file = world.path.with_name("größe 模型.json")
    file.write_bytes(b"in place")
    world.hold(worker(7), {key("place"): b"in place"}, path=str(file), lease=None)
    world.unregister(worker(5))
    world.clock.now += MINUTE
    with world.database.write() as conn:
        conn.run_text("DELETE FROM events WHERE id > (SELECT max(id) - 2 FROM events)")
    return world


def rows_of(url: str) -> Rows:
    """What stands in a registry, and the ids to come."""
    of: Any = opening._copying_of(url)
    with of.source(url) as source:
        found = {table.name: list(source.rows(table)) for table in copying.TABLES}
        return {**found, "ids": sorted(source.last_ids().items())}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_copy_and_the_copy_of_the_copy_hold_the_same_and_end_where_they_began(
    version: int, filled: World, clusters: Clusters
) -> None:
    before = rows_of(filled.url)
    assert all(before.values())
    back = f"sqlite:///{filled.path.with_name('back.db')}"
    cluster = clusters.get(version)
    with cluster.database(migrated=False) as first, cluster.database() as second:
        for source, target in ((filled.url, first), (first, second), (second, back)):
            copied = opening.copy_database(source, target)
            assert rows_of(target) == before
            assert opening.migrations_of(target).check(target) == []
            assert opening.find_problem(target) is None
            assert copied.rows == {n: len(r) for n, r in before.items() if n != "ids"}
        assert look(first).views_version is not None
        with psycopg.connect(conninfo_of(first)) as connection:
            insert = "INSERT INTO events (at, kind) VALUES (1, 'upgraded') RETURNING id"
            ((given,),) = connection.execute(insert).fetchall()
            assert ("events", given - 1) in before["ids"]
    assert_sound(filled.path.with_name("back.db"))
    assert sorted(each.name for each in filled.path.parent.glob("back*")) == ["back.db"]


def test_a_registry_that_was_copied_goes_on_with_its_owners_and_ids(
    filled: World, postgres_url: str
) -> None:
    path = filled.path.with_name("moved.db")
    opening.copy_database(filled.url, postgres_url)
    opening.copy_database(postgres_url, f"sqlite:///{path}")
    moved = World(path, filled.clock)
    moved.hold(worker(1))
    receipt = moved.unregister(worker(1))
    assert receipt.released == 4
    with sql(path) as connection:
        ((last,),) = connection.execute("SELECT max(id) FROM events").fetchall()
    ids: dict[str, int] = dict(rows_of(filled.url)["ids"])
    assert last > ids["events"]
    moved.close()
    assert_sound(path)


def test_an_empty_registry_is_copied_as_well(world: World, cluster: Cluster) -> None:
    with cluster.database(migrated=False) as target:
        opening.copy_database(world.url, target)
        with psycopg.connect(conninfo_of(target)) as connection:
            insert = "INSERT INTO events (at, kind) VALUES (1, 'upgraded') RETURNING id"
            assert connection.execute(insert).fetchall() == [(1,)]


def test_a_target_that_holds_something_is_refused_and_left_as_it_is(
    filled: World, postgres_url: str
) -> None:
    opening.copy_database(filled.url, postgres_url)
    before = rows_of(postgres_url)
    with pytest.raises(Refused, match="not empty"):
        opening.copy_database(filled.url, postgres_url)
    taken = filled.path.with_name("taken.db")
    for content in (b"", b"something"):
        taken.write_bytes(content)
        with pytest.raises(Refused, match="there already"):
            opening.copy_database(postgres_url, f"sqlite:///{taken}")
        assert taken.read_bytes() == content
    assert rows_of(postgres_url) == before
    assert list(filled.path.parent.glob("*.partial*")) == []


def test_a_source_without_this_schema_is_refused(
    filled: World, cluster: Cluster, postgres_url: str, tmp_path: Path
) -> None:
    target = f"sqlite:///{tmp_path / 'new.db'}"
    with cluster.database(migrated=False) as empty, pytest.raises(DatabaseRefused, match="no reg"):
        opening.copy_database(empty, target)
    postgresql_migrate.downgrade(postgres_url, "0003")
    with pytest.raises(DatabaseRefused, match="db upgrade"):
        opening.copy_database(postgres_url, target)
    with pytest.raises(DatabaseRefused, match="no registry"):
        opening.copy_database(target, postgres_url)
    sqlite_migrate.upgrade(target, "0003")
    with pytest.raises(DatabaseRefused, match="db upgrade"):
        opening.copy_database(target, postgres_url)


def test_rows_that_arrive_as_others_are_found_and_nothing_is_copied(
    filled: World, cluster: Cluster
) -> None:
    """A trigger of the server's changes what is written."""
    with cluster.database() as target, psycopg.connect(conninfo_of(target)) as connection:
        connection.execute(
            "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN NEW.size = NEW.size + 1; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER change BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION change()"
        )
        connection.commit()
        with pytest.raises(StorageUnavailable, match="rows of entries"):
            opening.copy_database(filled.url, target)
        for table in copying.TABLES:
            ((count,),) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchall()
            assert count == (2 if table.name == "settings" else 0)


def test_a_reference_to_nothing_stops_the_copy(filled: World, cluster: Cluster) -> None:
    torn = filled.path.with_name("torn.db")
    torn.write_bytes(b"")
    with sql(filled.path) as source, sqlite3.connect(torn) as copy:
        source.backup(copy)
        copy.execute("DELETE FROM blobs")
        copy.commit()
    copy.close()
    with cluster.database(migrated=False) as target:
        with pytest.raises(StorageUnavailable, match="blobs"):
            opening.copy_database(f"sqlite:///{torn}", target)
        assert look(target).revision is None
    with pytest.raises(StorageUnavailable, match="refer to nothing"):
        opening.copy_database(f"sqlite:///{torn}", f"sqlite:///{filled.path.with_name('c.db')}")
    assert not filled.path.with_name("c.db").exists()


PAUSED = """
import sys, time
from registry.store import copying, opening
copying.ROWS_AT_ONCE = 1
def on_progress(activity, done, total):
    if activity == sys.argv[3]:
        print(activity, flush=True)
        time.sleep(60)
opening.copy_database(sys.argv[1], sys.argv[2], on_progress)
"""


@pytest.mark.parametrize("activity", ["Copying", "Comparing"])
def test_a_copy_that_is_killed_leaves_nothing_and_can_be_made_again(
    activity: str, filled: World, cluster: Cluster
) -> None:
    path = filled.path.with_name("back.db")
    with cluster.database(migrated=False) as target, cluster.database() as source:
        opening.copy_database(filled.url, source)
        for pair in ((filled.url, target), (source, f"sqlite:///{path}")):
            process = subprocess.Popen(
                [sys.executable, "-c", PAUSED, *pair, activity], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert process.stdout.readline() == f"{activity}\n"
            process.kill()
            process.wait(30)
            process.stdout.close()
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        wait_for(lambda: cluster.execute(others, target.rsplit("/", 1)[1]) == [(0,)])
        assert look(target).revision is None
        assert not path.exists()
        opening.copy_database(filled.url, target)
        opening.copy_database(target, f"sqlite:///{path}")
        assert rows_of(f"sqlite:///{path}") == rows_of(filled.url)


def test_the_command_tells_what_it_copied_and_does_not_do_it_twice(
    filled: World, cluster: Cluster
) -> None:
    with cluster.database(migrated=False) as target:
        done = run_here("db", "copy", "--from", filled.url, "--to", target)
        assert done.returncode == 0
        assert "and compared them: " in done.stdout
        assert f"{len(rows_of(target)['owners'])} owners" in done.stdout
        done = run_here("db", "copy", "--from", filled.url, "--to", target, "--json")
        assert done.returncode == 1
        assert json.loads(done.stderr)["code"] == "refused"


def test_a_copy_made_while_somebody_writes_is_one_moment(
    filled: World, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(filled.url)
    monkeypatch.setattr(copying, "ROWS_AT_ONCE", 1)
    written: list[Owner] = []

    def write(activity: str, done: int, total: int) -> None:
        if activity == "Copying" and len(written) < 5:
            written.append(worker(100 + len(written)))
            filled.hold(written[-1])

    opening.copy_database(filled.url, postgres_url, write)
    assert len(written) == 5
    assert rows_of(postgres_url) == before


WRONG = (
    "UPDATE owner_refs SET status = 'missing' WHERE path IS NOT NULL",
    "INSERT INTO settings VALUES ('artifact_roots', '[\"/else/\", \"/where/\"]')",
    "UPDATE owner_refs SET event_id = event_id + 1 WHERE owner_id = 1",
    "UPDATE owner_refs SET status = 'drifted' WHERE owner_id = 3",
    "UPDATE entries SET checksum = 'blake3:' || printf('%064d', 0) WHERE id = 2",
)


def test_the_views_show_the_same_rows_on_both_engines(filled: World, cluster: Cluster) -> None:
    filled.hold(worker(20), lease=None)
    queries = [f"SELECT * FROM {name}" for name in ("holders", "owner_footprint", "leaks")]
    wrong = filled.path.with_name("wrong.db")
    with sql(filled.path) as source, sql(wrong) as connection:
        source.backup(connection)
        for change in WRONG:
            connection.execute(change)
        here = [sorted(map(repr, connection.execute(query))) for query in queries]
    assert all(len(rows) > 5 for rows in here)
    classes = {line.split("'")[1] for line in here[2]}
    assert {"root_missing", "drifted_ref", "journal_says_gone", "lapsed_lease"} <= classes
    with cluster.database() as target:
        opening.copy_database(f"sqlite:///{wrong}", target)
        with psycopg.connect(conninfo_of(target)) as connection_there:
            there = [sorted(map(repr, connection_there.execute(query))) for query in queries]
    assert there == here
