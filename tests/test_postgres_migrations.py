"""The schema in PostgreSQL: what the migrations make, who makes it, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from registry.errors import Busy, DatabaseRefused, Invalid, Refused, StorageUnavailable
from registry.store import opening, revisions, tables
from registry.store.postgresql import differences, migrate, upgrade_lock, views
from registry.store.postgresql.address import APPLICATION_NAME, conninfo_of
from registry.store.postgresql.inspect import admin_engine, driver_of, opened
from registry.store.postgresql.locks import WRITE_LOCK
from registry.store.schema_elements import Elements
from registry.store.sqlite import views as sqlite_views
from tests.commands import run_here
from tests.postgres import VERSIONS, Cluster, Clusters
from tests.support import ROOT

HEAD = tables.HEAD_REVISION
OLDER = [f"{number:04}" for number in range(1, int(HEAD))]
NEWER = "0099"

ROWS = """
    INSERT INTO owners (namespace, component, endpoint, instance_id, state, registered_at,
                        renewed_at)
    VALUES ('dynamo', 'backend', 'generate', '18446744073709551615', 'active', 5, 5);
    INSERT INTO entries (slug, suffix, filename, checksum, size, generation, created_at, updated_at)
    VALUES ('tiny', '_base', 'config.json', 'blake3:' || lpad('0', 64, '0'), 2, 1, 5, 5);
    INSERT INTO blobs VALUES ('blake3:' || lpad('0', 64, '0'), 2, 5, '{}');
    INSERT INTO owner_refs
    VALUES (1, 1, 'blake3:' || lpad('0', 64, '0'), NULL, NULL, 'ok', 5, 5, 1);
"""
EVENT = """
    INSERT INTO events (at, kind, namespace, component, endpoint, instance_id, lora_slug, slug,
                        suffix, filename, checksum)
    VALUES (5, 'registered', 'dynamo', 'backend', 'generate', '18446744073709551615', '', 'tiny',
            '_base', 'config.json', 'blake3:' || lpad('0', 64, '0'))
"""


@pytest.fixture
def empty_url(cluster: Cluster) -> Iterator[str]:
    """A database with nothing in it."""
    with cluster.database(migrated=False) as url:
        yield url


@contextmanager
def connected(url: str, **options: Any) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection as an operator has it: each statement is a transaction."""
    with psycopg.connect(conninfo_of(url), autocommit=True, **options) as connection:
        yield connection


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with connected(url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description is not None else []


def elements(url: str) -> Elements:
    with opened(url) as connection:
        return differences.elements_of(connection)


# What the migrations make


@pytest.mark.parametrize("version", VERSIONS)
def test_the_migrations_make_exactly_the_tables(version: int, clusters: Clusters) -> None:
    cluster = clusters.get(version)
    with cluster.database() as migrated, cluster.database(migrated=False) as made:
        with admin_engine(made).begin() as connection:
            tables.metadata.create_all(connection)
            for view in views.VIEWS.values():
                driver_of(connection).execute(view)
        assert elements(made) == elements(migrated)
        assert migrate.check(migrated) == []
        ((storage,),) = execute(
            migrated,
            "SELECT attstorage FROM pg_attribute "
            "WHERE attrelid = 'blobs'::regclass AND attname = 'content'",
        )
        assert storage == "e"


def test_views_have_the_same_columns_on_both_engines(postgres_url: str) -> None:
    from registry.store.sqlite.revisions import fresh_schema

    with fresh_schema() as sqlite, connected(postgres_url) as postgresql:
        for name in sqlite_views.VIEWS:
            query = f"SELECT * FROM {name}"
            here = [each[0] for each in sqlite.execute(query).description]
            there = postgresql.execute(query).description or []
            assert [each.name for each in there] == here


def test_a_new_database_is_open_to_old_programs_and_has_no_events(postgres_url: str) -> None:
    assert execute(postgres_url, "SELECT count(*) FROM events") == [(0,)]
    names = "SELECT name, value FROM settings ORDER BY name"
    assert execute(postgres_url, names) == [
        ("min_program_revision", tables.MIN_PROGRAM_REVISION),
        ("views_version", str(views.VERSION)),
    ]


@pytest.mark.parametrize("revision", OLDER)
def test_a_downgrade_and_an_upgrade_end_where_they_began_and_keep_every_row(
    revision: str, postgres_url: str
) -> None:
    before = elements(postgres_url)
    execute(postgres_url, ROWS)
    migrate.downgrade(postgres_url, revision)
    execute(postgres_url, EVENT if revision < "0003" else "SELECT 1")
    for (name,) in execute(postgres_url, "SELECT viewname FROM pg_views WHERE schemaname='public'"):
        execute(postgres_url, f"SELECT * FROM {name}")
    assert migrate.current(postgres_url) == revision
    migrate.upgrade(postgres_url)
    assert elements(postgres_url) == before
    assert migrate.check(postgres_url) == []
    for table in ("owners", "entries", "blobs", "owner_refs"):
        assert execute(postgres_url, f"SELECT count(*) FROM {table}") == [(1,)]
    events = execute(postgres_url, "SELECT id, kind, owner_id, entry_id, reason FROM events")
    said = (None, None, f"schema {revision} to {HEAD}")
    if revision < "0003":
        assert events == [(1, "registered", 1, 1, None), (2, "upgraded", *said)]
    else:
        assert events == [(1, "upgraded", *said)]


def test_going_back_to_nothing_leaves_nothing(postgres_url: str) -> None:
    migrate.downgrade(postgres_url, "base")
    assert elements(postgres_url) == {}
    assert migrate.current(postgres_url) is None
    migrate.prepare(postgres_url)
    assert migrate.check(postgres_url) == []


def test_the_schema_may_have_a_name_of_its_own(empty_url: str) -> None:
    execute(empty_url, "CREATE SCHEMA models; CREATE TABLE public.settings (of_others INTEGER)")
    url = f"{empty_url}?options=-csearch_path%3Dmodels"
    migrate.prepare(url)
    assert migrate.check(url) == []
    found = execute(empty_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'models'")
    assert found == [(len(tables.metadata.tables) + 1,)]


def test_alembic_makes_the_same_database_and_writes_it_as_sql(
    cluster: Cluster, postgres_url: str
) -> None:
    def alembic(url: str, *more: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini")),
                *("-x", f"url={url}", "upgrade", "head", *more),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with cluster.database(migrated=False) as made, cluster.database(migrated=False) as written:
        alembic(made)
        execute(written, alembic(written, "--sql"))
        for url in (made, written):
            assert elements(url) == elements(postgres_url)
            before = execute(url, "SELECT oid FROM pg_class WHERE relname = 'leaks'")
            migrate.prepare(url)
            assert execute(url, "SELECT oid FROM pg_class WHERE relname = 'leaks'") == before


# What `check` reports

CHANGES = {
    "DROP TABLE blobs CASCADE": "table blobs is missing",
    "CREATE TABLE more (a INTEGER)": "table more is not part",
    "ALTER TABLE blobs ADD COLUMN note TEXT": "column blobs.note is not part",
    "ALTER TABLE owners ALTER end_reason TYPE VARCHAR(9)": "column owners.end_reason is",
    'ALTER TABLE owners ALTER end_reason TYPE TEXT COLLATE "POSIX"': "column owners.end_reason",
    "ALTER TABLE events ALTER kind DROP NOT NULL": "column events.kind is",
    "ALTER TABLE owners ALTER lora_slug SET DEFAULT '-'": "column owners.lora_slug is",
    "ALTER TABLE events ALTER id DROP IDENTITY": "column events.id is",
    "ALTER TABLE blobs ALTER content SET STORAGE EXTENDED": "column blobs.content is",
    "ALTER TABLE events DROP CONSTRAINT ck_events_kind": "constraint events.ck_events_kind is miss",
    "ALTER TABLE entries ADD CHECK (size > 0)": "constraint entries.entries_size_check is not",
    "ALTER TABLE events SET UNLOGGED": "table events is 'UNLOGGED'",
    "DROP INDEX ix_events_entry_id": "index ix_events_entry_id is missing",
    "CREATE INDEX more ON blobs (size)": "index more is not part",
    "DROP VIEW holders": "view holders is missing",
    "CREATE VIEW more AS SELECT 1 AS a": "view more is not part",
    "CREATE OR REPLACE VIEW clock AS SELECT CAST(7 AS BIGINT) AS now_ms": "view clock is",
    "CREATE RULE more AS ON DELETE TO events DO INSTEAD NOTHING": "rule events.more is not part",
}


def test_check_reports_every_change(postgres_url: str) -> None:
    wanted, _ = migrate.fresh_elements(postgres_url)
    with opened(postgres_url) as connection:
        for statement, expected in CHANGES.items():
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
                there = differences.elements_of(connection)
            found = differences.find_differences(there, wanted, with_views=True)
            assert any(expected in sentence for sentence in found), (statement, found)
    execute(postgres_url, "UPDATE alembic_version SET version_num = '0000'")
    assert migrate.check(postgres_url) == [f"the schema revision is '0000' instead of '{HEAD}'"]


def test_check_finds_nothing_in_what_was_dumped_and_restored(postgres_url: str) -> None:
    """pg_dump writes a view as the server tells it, and the server then tells it otherwise."""
    with psycopg.connect(conninfo_of(postgres_url), autocommit=True) as connection:
        for name in views.VIEWS:
            query = "SELECT pg_get_viewdef(CAST(CAST(%s AS text) AS regclass), true)"
            ((text,),) = connection.execute(query, (name,)).fetchall()
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {text}".encode())
    assert migrate.check(postgres_url) == []


def test_check_leaves_nothing_and_needs_no_right_to_make_a_schema(postgres_url: str) -> None:
    query = "SELECT count(*) FROM pg_class WHERE relname = 'owners'"
    assert migrate.check(postgres_url) == []
    assert execute(postgres_url, query) == [(1,)]


# Views


def oids(url: str) -> list[tuple[Any, ...]]:
    names = ", ".join(f"'{name}'" for name in views.VIEWS)
    return execute(url, f"SELECT relname, oid FROM pg_class WHERE relname IN ({names}) ORDER BY 1")


def test_a_view_that_somebody_changed_or_dropped_is_made_anew_at_the_next_start(
    postgres_url: str,
) -> None:
    before = elements(postgres_url)
    for change in (
        "DROP VIEW leaks",
        "CREATE OR REPLACE VIEW clock AS SELECT CAST(7 AS BIGINT) AS now_ms",
    ):
        execute(postgres_url, change)
        told: list[str] = []
        migrate.prepare(postgres_url, notify=told.append)
        assert len(told) == 1
        assert told[0].endswith("anew, as this version has them.")
        assert elements(postgres_url) == before


def test_a_newer_program_replaces_the_views_and_an_older_one_leaves_them(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        later = "CREATE VIEW clock AS SELECT CAST(7 AS BIGINT) AS now_ms"
        patch.setattr(views, "VERSION", views.VERSION + 1)
        patch.setattr(views, "VIEWS", views.VIEWS | {"clock": later})
        migrate.prepare(postgres_url)
        assert execute(postgres_url, "SELECT now_ms FROM clock") == [(7,)]
        newer = oids(postgres_url)
    migrate.prepare(postgres_url)
    migrate.upgrade(postgres_url, HEAD)
    assert oids(postgres_url) == newer


def test_a_database_at_head_is_opened_without_a_change_and_without_alembic(
    postgres_url: str,
) -> None:
    before = oids(postgres_url)
    script = (
        "import sys; from registry.store import opening; opening.prepare(sys.argv[1]); "
        "assert opening.find_problem(sys.argv[1]) is None; assert 'alembic' not in sys.modules"
    )
    command = [sys.executable, "-W", "error", "-c", script, postgres_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert oids(postgres_url) == before


# Many at once, and locks


def test_of_many_that_start_at_once_one_makes_the_schema(empty_url: str) -> None:
    script = (
        "import sys; from registry.store import opening; "
        "opening.prepare(sys.argv[1], notify=print); "
        "problem = opening.find_problem(sys.argv[1]); assert problem is None, problem"
    )

    def start(_: int) -> str:
        command = [sys.executable, "-W", "error", "-c", script, empty_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(3) as pool:
        told = [line for output in pool.map(start, range(3)) for line in output.splitlines()]
    assert len([line for line in told if "Made the schema" in line]) == 1
    assert migrate.check(empty_url) == []


def test_whoever_finds_no_revision_to_run_keeps_nobody_from_the_views(postgres_url: str) -> None:
    """Whoever comes second finds none, and the first serves already."""
    before = oids(postgres_url)
    with connected(postgres_url) as reader, reader.transaction():
        reader.execute("SELECT FROM leaks LIMIT 0")
        revisions.run_alembic("upgrade", "head", url=postgres_url, lock_timeout_s=0.05)
        revisions.run_alembic("downgrade", HEAD, url=postgres_url, lock_timeout_s=0.05)
    assert oids(postgres_url) == before


def test_an_upgrade_waits_for_a_writer_and_says_so(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.downgrade(postgres_url, "0003")
    told: list[str] = []
    with connected(postgres_url) as writer, writer.transaction():
        writer.execute(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
        with monkeypatch.context() as patch:
            patch.setattr(migrate, "LOCK_TIMEOUT_S", 0.05)
            with pytest.raises(Busy):
                migrate.prepare(postgres_url, notify=told.append)
        assert any("Waiting for others who write" in sentence for sentence in told)
        with ThreadPoolExecutor(1) as pool:
            upgrading = pool.submit(migrate.prepare, postgres_url)
            writer.execute("INSERT INTO settings VALUES ('last_sweep_at', '7')")
            writer.execute("COMMIT")
            upgrading.result(60)
    assert migrate.current(postgres_url) == HEAD
    kept = "SELECT value FROM settings WHERE name = 'last_sweep_at'"
    assert execute(postgres_url, kept) == [("7",)]


def test_a_schema_that_a_running_service_could_not_live_with_is_not_made(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_lock, "OTHERS_LEAVE_S", 0.0)
    with connected(postgres_url, application_name=APPLICATION_NAME) as service:
        with pytest.raises(Refused, match="connections"):
            migrate.downgrade(postgres_url, "0002")
        assert migrate.current(postgres_url) == HEAD
        service.execute("SET application_name = 'psql'")
        migrate.downgrade(postgres_url, "0002")
        service.execute(f"SET application_name = '{APPLICATION_NAME}'")
        with pytest.raises(Refused, match="0002"):
            migrate.prepare(postgres_url)
        assert migrate.current(postgres_url) == "0002"
    migrate.prepare(postgres_url)
    assert migrate.check(postgres_url) == []


# What is refused


def test_another_revision_is_refused_with_the_way_out(postgres_url: str) -> None:
    execute(postgres_url, f"UPDATE alembic_version SET version_num = '{NEWER}'")
    assert opening.find_problem(postgres_url) is None  # It admits this program.
    migrate.prepare(postgres_url)
    execute(postgres_url, "UPDATE settings SET value = '0098' WHERE name = 'min_program_revision'")
    for act in (migrate.prepare, migrate.upgrade):
        with pytest.raises(DatabaseRefused, match="Install a newer version"):
            act(postgres_url)
    with pytest.raises(DatabaseRefused, match="Install a newer version"):
        migrate.downgrade(postgres_url, "0003")
    assert "Install a newer version" in str(opening.find_problem(postgres_url))
    execute(postgres_url, "UPDATE alembic_version SET version_num = 'abc'")
    with pytest.raises(DatabaseRefused, match="no version of this program"):
        migrate.prepare(postgres_url)
    execute(postgres_url, "DELETE FROM alembic_version")
    with pytest.raises(DatabaseRefused, match="does not say"):
        migrate.prepare(postgres_url)
    with pytest.raises(Invalid, match="no schema revision"):
        migrate.upgrade(postgres_url, "9999")


def test_the_database_of_another_program_is_left_as_it_is(empty_url: str) -> None:
    execute(empty_url, "CREATE TABLE events (a INTEGER); CREATE TABLE alembic_version (a INTEGER)")
    before = execute(empty_url, "SELECT relname, oid FROM pg_class ORDER BY oid")
    for act in (migrate.prepare, migrate.current, migrate.check):
        with pytest.raises(DatabaseRefused, match="another program"):
            act(empty_url)
    assert execute(empty_url, "SELECT relname, oid FROM pg_class ORDER BY oid") == before


def test_what_cannot_be_reached_written_or_done_says_why_without_the_password(
    cluster: Cluster, empty_url: str
) -> None:
    secret = empty_url.replace("registry@", "registry:se%40cret@")
    nobody = secret.replace(f":{cluster.port}/", ":1/")
    with pytest.raises(StorageUnavailable) as unreachable:
        migrate.prepare(nobody)
    with pytest.raises(StorageUnavailable) as missing:
        migrate.prepare(secret.rsplit("/", 1)[0] + "/nothing")
    read_only = f"{secret}?options=-cdefault_transaction_read_only%3Don"
    with pytest.raises(StorageUnavailable, match="takes no writes") as standby:
        migrate.prepare(read_only)
    name = empty_url.rsplit("/", 1)[1]
    cluster.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(DatabaseRefused, match="needs this right") as guest:
        migrate.prepare(cluster.url(name).replace("registry@", "guest:se%40cret@"))
    cluster.execute("DROP ROLE guest")
    for raised in (unreachable, missing, standby, guest):
        assert "cret" not in str(raised.value)
        assert "postgresql://127.0.0.1:" in str(raised.value)


def test_the_command_line_works_on_both(empty_url: str) -> None:
    def db(*arguments: str) -> tuple[int, str, str]:
        done = run_here("db", *arguments, REGISTRY_DATABASE_URL=empty_url)
        return done.returncode, done.stdout, done.stderr

    assert db("current") == (0, "none (no registry there yet)\n", "")
    code, output, said = db("upgrade")
    assert (code, output) == (0, f"The schema revision is {HEAD}.\n")
    assert said.startswith("Made the schema of postgresql://127.0.0.1")
    assert db("check")[:2] == (0, "The schema is as it should be.\n")
    assert db("downgrade", "0003", "--yes")[:2] == (0, "The schema revision is 0003.\n")
    for command, instead in (("backup", "pg_dump"), ("restore", "pg_restore")):
        code, _, said = db(command, "copy")
        assert code == 1
        assert instead in said
