"""The PostgreSQL servers of the tests do what the tests need, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import guardian
from tests.postgres import ROLE, VERSIONS, Cluster, Clusters
from tests.support import ROOT, wait_for


@pytest.fixture
def own() -> Iterator[Cluster]:
    """A server that may be ended."""
    with Cluster() as started:
        yield started


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_databases_that_are_migrated_or_empty(
    version: int, clusters: Clusters
) -> None:
    cluster = clusters.get(version)
    ((found,),) = cluster.execute("SHOW server_version_num")
    assert int(found) // 10000 == version
    for migrated in (True, False):
        with cluster.database(migrated=migrated) as url:
            name = url.rsplit("/", 1)[1]
            with cluster.connected(name, ROLE) as connection:
                ((table,),) = connection.execute("SELECT to_regclass('owner_refs')").fetchall()
                assert (table is not None) is migrated
        assert cluster.execute("SELECT 1 FROM pg_database WHERE datname = %s", name) == []


def test_what_was_committed_is_there_after_a_kill(own: Cluster) -> None:
    name = own.new_database().rsplit("/", 1)[1]
    with own.connected(name, ROLE) as connection:
        connection.execute("INSERT INTO settings VALUES ('a', 'b')")
        own.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    own.start()
    with own.connected(name, ROLE) as connection:
        query = "SELECT value FROM settings WHERE name = 'a'"
        assert connection.execute(query).fetchall() == [("b",)]


def test_a_frozen_server_answers_when_it_is_thawed(own: Cluster) -> None:
    own.freeze()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(own.conninfo("postgres"), connect_timeout=1)
    own.thaw()
    assert own.execute("SELECT 1") == [(1,)]


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_standby_has_what_was_committed_and_can_be_promoted(
    own: Cluster, synchronous: bool
) -> None:
    with own.standby(synchronous=synchronous) as standby:
        own.execute("CREATE TABLE kept AS SELECT 7 AS number")
        wait_for(lambda: standby.execute("SELECT to_regclass('kept') IS NOT NULL") == [(True,)])
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("CREATE TABLE more (a INTEGER)")
        own.kill()
        standby.promote()
        standby.execute("INSERT INTO kept VALUES (8)")
        assert standby.execute("SELECT number FROM kept ORDER BY 1") == [(7,), (8,)]


STARTED = """
import sys
from tests.postgres import Cluster
cluster = Cluster()
if sys.argv[1] == "frozen":
    cluster.freeze()
print(cluster.folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("end", "state"), [(signal.SIGKILL, "frozen"), (signal.SIGINT, "serving")])
def test_a_server_ends_with_whoever_started_it_and_leaves_nothing(
    end: signal.Signals, state: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    folder = Path(process.stdout.readline().strip())
    assert guardian.processes_in(folder / "data")
    process.send_signal(end)
    process.wait(30)
    wait_for(lambda: not folder.exists())
    assert guardian.processes_in(folder / "data") == []
    process.stdout.close()
    process.stdin.close()


def test_a_server_of_root_runs_as_somebody_else(cluster: Cluster) -> None:
    owner = (cluster.data / "PG_VERSION").stat().st_uid
    assert (owner == os.geteuid()) is (os.geteuid() != 0)
