"""The schema: what the migrations make, what an upgrade survives, and which files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine
from typer.testing import CliRunner

from registry import __version__
from registry.cli.db import app as db_app
from registry.core.model_revisions import OnConflict
from registry.core.records import Artifact, ArtifactKey, Owner, Registered, Registration
from registry.errors import Busy, DatabaseRefused, Invalid, StorageUnavailable
from registry.store import revisions, tables
from registry.store.ops import register as register_ops
from registry.store.sqlite import backup as backup_module
from registry.store.sqlite import compatibility, inspect, migrate, views
from registry.store.sqlite.engine import Database
from registry.store.sqlite.revisions import fresh_schema
from tests.support import ROOT, checksum

HEAD = tables.HEAD_REVISION
NEXT = f"{int(HEAD) + 1:04}"
"""A revision that a later release of the program could bring."""

Rows = list[tuple[Any, ...]]


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    """A new database at the head revision."""
    path = tmp_path / "registry.db"
    migrate.prepare(url_of(path))
    return path


@dataclass(frozen=True)
class Release:
    """A later release of the program: this one and a revision more."""

    migrations: Path
    head: str = NEXT

    @contextmanager
    def running(self) -> Iterator[None]:
        """In this block, the functions of `schema` are those of the later release."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "HEAD_REVISION", self.head)
            patch.setattr(revisions, "migrations_directory", lambda: self.migrations)
            yield


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Release]:
    """Makes a later release whose new revision runs the statements given."""

    def make(*statements: str, code: str = "pass") -> Release:
        migrations = tmp_path / "later"
        shutil.copytree(
            ROOT / "migrations", migrations, ignore=shutil.ignore_patterns("__pycache__")
        )
        lines = [
            "import os, signal",
            "from alembic import op",
            f"revision, down_revision = {NEXT!r}, {HEAD!r}",
            "def upgrade():",
            *(f"    op.execute({statement!r})" for statement in statements),
            f"    {code}",
            "def downgrade():",
            "    op.execute('ALTER TABLE owners DROP COLUMN note')",
        ]
        (migrations / "versions" / f"{NEXT}_later.py").write_text("\n".join(lines))
        return Release(migrations)

    return make


EXPAND = "ALTER TABLE owners ADD COLUMN note TEXT"

ROWS = """
    INSERT INTO owners (id, namespace, component, endpoint, instance_id, state, registered_at,
                        renewed_at)
    VALUES (1, 'dynamo', 'backend', 'generate', '18446744073709551615', 'active', 5, 5);
    INSERT INTO entries (id, slug, suffix, filename, checksum, size, generation, created_at,
                         updated_at)
    VALUES (1, 'tiny', '_base', 'config.json', 'blake3:' || printf('%064d', 0), 2, 1, 5, 5);
    INSERT INTO blobs VALUES ('blake3:' || printf('%064d', 0), 2, 5, x'7b7d');
    INSERT INTO owner_refs
    VALUES (1, 1, 'blake3:' || printf('%064d', 0), NULL, NULL, 'ok', 5, 5, 1);
"""


def url_of(path: Path) -> str:
    return f"sqlite:///{quote(str(path))}"


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


def rows(path: Path, query: str) -> Rows:
    with connected(path) as connection:
        return connection.execute(query).fetchall()


def execute(path: Path, script: str) -> None:
    with connected(path) as connection:
        connection.executescript(script)


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file with its bytes."""
    return {
        each.name: each.read_bytes() if each.is_file() else None for each in directory.iterdir()
    }


def backups_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*"))


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python; what it needs from the checkout is found."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alembic(*arguments: str, cwd: Path, **environment: str) -> str:
    done = run("-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


AT_ONCE = """
import os, sys, traceback
from pathlib import Path
import alembic.command, alembic.ddl.sqlite, sqlalchemy.dialects.sqlite
from registry.store import revisions, tables
from registry.store.sqlite import compatibility, migrate

count, url, head, migrations = sys.argv[1:]
tables.HEAD_REVISION = head
revisions.migrations_directory = lambda: Path(migrations)
gate, opener = os.pipe()
children = []
for _ in range(int(count)):
    child = os.fork()
    if not child:
        os.close(opener)
        os.read(gate, 1)
        try:
            migrate.prepare(url)
            assert compatibility.find_problem(url) is None
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(opener)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def prepare_at_once(
    count: int, path: Path, head: str = HEAD, migrations: Path = ROOT / "migrations"
) -> None:
    """Open the database in many processes, which are let go together."""
    done = run("-c", AT_ONCE, str(count), url_of(path), head, str(migrations), cwd=path.parent)
    assert done.returncode == 0, done.stderr


# What the migrations make


def described(path: Path) -> dict[str, object]:
    """Everything that SQLite tells about a schema."""
    with connected(path) as connection:

        def ask(query: str, *values: str) -> Rows:
            return connection.execute(query, values).fetchall()

        found: dict[str, object] = {}
        for kind, name, sql in ask(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' "
            "AND tbl_name <> 'alembic_version'"
        ):
            squeezed = re.sub(r"\s", "", sql)
            if kind != "table":
                found[f"{kind} {name}"] = squeezed
                continue
            found[f"table {name}"] = {
                "strict and without rowid": ask(
                    "SELECT strict, wr FROM pragma_table_list WHERE name = ?", name
                ),
                "autoincrement": "AUTOINCREMENT" in squeezed,
                "columns": ask("SELECT * FROM pragma_table_xinfo(?)", name),
                "foreign keys": sorted(
                    row[2:] for row in ask("SELECT * FROM pragma_foreign_key_list(?)", name)
                ),
                "indexes": sorted(
                    (origin, unique, partial, *ask("SELECT * FROM pragma_index_xinfo(?)", index))
                    for _, index, unique, origin, partial in ask(
                        "SELECT * FROM pragma_index_list(?)", name
                    )
                ),
                "constraints": constraints(squeezed),
            }
        return found


def constraints(squeezed: str) -> set[str]:
    """The named constraints of a CREATE TABLE without white space."""
    found = set()
    for begin in re.finditer("CONSTRAINT", squeezed):
        depth, end = 0, begin.end()
        while depth > 0 or squeezed[end] not in ",)":
            depth += {"(": 1, ")": -1}.get(squeezed[end], 0)
            end += 1
        found.add(squeezed[begin.end() : end])
    return found


def test_the_migrations_make_exactly_the_tables(migrated: Path, tmp_path: Path) -> None:
    from_tables = tmp_path / "tables.db"
    engine = create_engine(url_of(from_tables))
    with engine.begin() as connection:
        tables.metadata.create_all(connection)
        for view in views.VIEWS.values():
            connection.exec_driver_sql(view)
    engine.dispose()
    assert described(migrated) == described(from_tables)


def test_the_description_of_a_schema_sees_its_constraints(migrated: Path) -> None:
    owners: Any = described(migrated)["table owners"]
    assert (
        "ck_owners_leaseCHECK((lease_ttl_msISNULL)=(lease_expires_atISNULL))"
        in (owners["constraints"])
    )


def test_a_migrated_database_differs_in_nothing(migrated: Path) -> None:
    assert migrate.check(url_of(migrated)) == []


def test_the_head_of_the_migrations_is_the_one_that_the_tables_name() -> None:
    known = [each.revision for each in revisions.history()]
    assert known == [f"{number:04}" for number in range(1, int(HEAD) + 1)]


def test_a_new_database_is_ours_durable_and_open_to_old_programs(migrated: Path) -> None:
    assert rows(migrated, "PRAGMA application_id") == [(inspect.APPLICATION_ID,)]
    assert rows(migrated, "PRAGMA journal_mode") == [("wal",)]
    assert rows(migrated, "SELECT count(*) FROM events") == [(0,)]
    ((oldest,),) = rows(migrated, "SELECT value FROM settings WHERE name = 'min_program_revision'")
    assert oldest <= HEAD
    assert backups_of(migrated) == []


def test_alembic_in_a_checkout_makes_the_same_database(migrated: Path, tmp_path: Path) -> None:
    alembic("-x", f"url={url_of(tmp_path / 'named.db')}", "upgrade", "head", cwd=tmp_path)
    assert described(tmp_path / "named.db") == described(migrated)
    assert migrate.check(url_of(tmp_path / "named.db")) == []


def test_alembic_takes_the_database_from_the_environment_or_the_folder(tmp_path: Path) -> None:
    for environment, name in (
        ({"REGISTRY_DATABASE_URL": url_of(tmp_path / "variable.db")}, "variable.db"),
        ({"REGISTRY_DATABASE_URL": ""}, "registry.db"),
    ):
        done = run(
            *("-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head"),
            cwd=tmp_path,
            **environment,
        )
        assert done.returncode == 0, done.stderr
        assert migrate.current(url_of(tmp_path / name)) == HEAD


def test_alembic_writes_the_same_database_as_sql(migrated: Path, tmp_path: Path) -> None:
    execute(tmp_path / "sql.db", alembic("upgrade", "head", "--sql", cwd=tmp_path))
    assert described(tmp_path / "sql.db") == described(migrated)
    migrate.prepare(url_of(tmp_path / "sql.db"))
    assert rows(tmp_path / "sql.db", "PRAGMA journal_mode") == [("wal",)]


def test_alembic_leaves_a_database_of_another_program_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    execute(path, "CREATE TABLE other (a)")
    before = contents(tmp_path)
    done = run(
        *("-m", "alembic", "-c", str(ROOT / "alembic.ini")),
        *("-x", f"url={url_of(path)}", "upgrade", "head"),
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "another program" in done.stderr + done.stdout
    assert contents(tmp_path) == before


# What `check` reports

MUTATIONS = {
    "a table is missing": ("DROP TABLE settings", "table settings is missing"),
    "a table too many": ("CREATE TABLE more (a)", "table more is not part"),
    "a column too many": ("ALTER TABLE blobs ADD COLUMN note TEXT", "column blobs.note is not"),
    "an index is missing": ("DROP INDEX ix_events_entry_id", "index ix_events_entry_id is missing"),
    "an index too many": ("CREATE INDEX more ON blobs (size)", "index more is not part"),
    "a view is missing": ("DROP VIEW holders", "view holders is missing"),
    "a view too many": ("CREATE VIEW more AS SELECT 1 AS a", "view more is not part"),
    "a trigger too many": (
        "CREATE TRIGGER more AFTER DELETE ON blobs BEGIN SELECT 1; END",
        "trigger more is not part",
    ),
    "another revision": ("UPDATE alembic_version SET version_num = '0000'", "revision is '0000'"),
}

EDITS = {
    "a column is missing": ("end_reason TEXT,", "", "column owners.end_reason is missing"),
    "another type": ("worker_name TEXT", "worker_name ANY", "column owners.worker_name is"),
    "a column may be NULL": ("kind TEXT NOT NULL", "kind TEXT", "column events.kind is"),
    "another default": ("DEFAULT ''", "DEFAULT '-'", "column owners.lora_slug is"),
    "another order": (
        "size INTEGER NOT NULL, uploaded_at INTEGER NOT NULL",
        "uploaded_at INTEGER NOT NULL, size INTEGER NOT NULL",
        "order blobs.columns is",
    ),
    "not AUTOINCREMENT": ("PRIMARY KEY AUTOINCREMENT", "PRIMARY KEY", "table events is"),
    "not STRICT": (") STRICT", ")", "table owners is 'plain'"),
    "with ROWID": ("WITHOUT ROWID,", "", "table owner_refs is 'STRICT'"),
    "another CHECK": (
        "size >= 0",
        "size >= 1",
        "table entries is '... CONSTRAINT ck_entries_size CHECK (size >= 1)",
    ),
    "another value in a CHECK": (
        "'draining'",
        "'Draining'",
        'table owners is "... ',
    ),
    "no CHECK": (
        ", CONSTRAINT ck_entries_generation CHECK (generation >= 1)",
        "",
        "table entries is '... CHECK (size >= 0)) STRICT'",
    ),
    "a CHECK too many": (
        ") STRICT",
        ", CHECK (1 = 1)) STRICT",
        "table owners is",
    ),
    "another name": (
        "uq_entries_key",
        "uq_entries",
        "table entries is '... ",
    ),
    "another UNIQUE": (
        "UNIQUE (slug, suffix, filename)",
        "UNIQUE (slug, filename)",
        "table entries is",
    ),
    "another PRIMARY KEY": (
        "PRIMARY KEY (owner_id, entry_id)",
        "PRIMARY KEY (entry_id, owner_id)",
        "column owner_refs.entry_id is 'INTEGER NOT NULL PRIMARY KEY 1'",
    ),
    "another ON DELETE": (
        "ON DELETE RESTRICT",
        "ON DELETE CASCADE",
        "reference owner_refs.owner_id is",
    ),
    "an index on all rows": (
        "WHERE blob_checksum IS NOT NULL",
        "",
        "index ix_owner_refs_blob_checksum is",
    ),
    "another view": ("86400000", "86400", "view clock is"),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_check_reports_a_change(case: str, migrated: Path) -> None:
    statement, expected = MUTATIONS[case]
    execute(migrated, statement)
    if case == "a table is missing":
        # Without its settings a database has no revision that one could trust.
        with pytest.raises(DatabaseRefused):
            migrate.check(url_of(migrated))
        with connected(migrated) as connection:
            found = schema_differences(connection)
    else:
        found = migrate.check(url_of(migrated))
    assert len(found) == 1
    assert expected in found[0]


def schema_differences(connection: sqlite3.Connection) -> list[str]:
    from registry.store.sqlite.differences import find_differences

    with fresh_schema() as wanted:
        return find_differences(connection, wanted)


@pytest.mark.parametrize("case", EDITS)
def test_check_reports_another_definition(case: str, migrated: Path, tmp_path: Path) -> None:
    old, new, expected = EDITS[case]
    edited = tmp_path / "edited.db"
    rebuild(migrated, edited, lambda sql: sql.replace(old, new))
    found = migrate.check(url_of(edited))
    assert any(sentence.startswith(expected) for sentence in found), found


def test_check_does_not_mind_white_space(migrated: Path, tmp_path: Path) -> None:
    def respell(sql: str) -> str:
        return sql.replace(" NOT NULL,", "\n  NOT NULL\n, ").replace(") STRICT", " )STRICT")

    rebuild(migrated, tmp_path / "respelled.db", respell)
    assert migrate.check(url_of(tmp_path / "respelled.db")) == []


def rebuild(source: Path, target: Path, edit: Callable[[str], str]) -> None:
    """Make a database anew from the edited SQL of another. The edit must hit something."""
    statements = rows(
        source, "SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"
    )
    original = [re.sub(r"\s+", " ", sql).replace("( ", "(") for (sql,) in statements]
    edited = [edit(sql) for sql in original]
    assert edited != original
    rest = f"""
        PRAGMA application_id = {inspect.APPLICATION_ID};
        INSERT INTO alembic_version VALUES ('{HEAD}');
    """
    execute(target, ";\n".join(edited) + ";" + rest)


# Views


OLDER = [f"{number:04}" for number in range(1, int(HEAD))]


def views_of(path: Path) -> dict[str, str]:
    return dict(rows(path, "SELECT name, sql FROM sqlite_master WHERE type = 'view'"))


def recorded_of(path: Path) -> Rows:
    return rows(path, "SELECT value FROM settings WHERE name = 'views_version'")


@contextmanager
def program_with(version: int, **texts: str) -> Iterator[None]:
    """In this block, this is a program with other views at the same schema revision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "VERSION", version)
        patch.setattr(views, "VIEWS", views.VIEWS | texts)
        yield


VIEW_DIGEST = {4: "dad34f75b0f9cbd6"}
LATER_CLOCK = "CREATE VIEW clock AS SELECT 7 AS now_ms"


def test_the_number_of_the_views_is_raised_when_a_text_changes() -> None:
    """Or a program of the version before would put its own views back."""
    words = " ".join(" ".join(views.VIEWS.values()).split())
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    assert {views.VERSION: digest} == VIEW_DIGEST, "raise views.VERSION, and put the digest here"


@pytest.mark.parametrize("revision", OLDER)
def test_a_database_of_an_older_revision_is_upgraded_to_the_views_of_a_new_one(
    revision: str, migrated: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older.db"
    migrate.upgrade(url_of(older), revision)
    assert recorded_of(older) == []
    migrate.prepare(url_of(older))
    assert views_of(older) == views_of(migrated)
    assert recorded_of(older) == recorded_of(migrated) == [(str(views.VERSION),)]
    assert migrate.check(url_of(older)) == []


@pytest.mark.parametrize("revision", OLDER)
def test_after_a_downgrade_the_views_are_those_of_a_database_made_at_the_revision(
    revision: str, migrated: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.db"
    migrate.upgrade(url_of(made), revision)
    execute(migrated, ROWS)
    migrate.downgrade(url_of(migrated), revision)
    assert views_of(migrated) == views_of(made)
    assert recorded_of(migrated) == []
    for name in views_of(migrated):
        rows(migrated, f"SELECT * FROM {name}")  # Every table and column that it names is there.
    assert "leaks" in views_of(migrated) or revision == "0001"


def test_a_view_that_somebody_changed_or_dropped_is_made_anew_at_the_next_start(
    migrated: Path,
) -> None:
    before = views_of(migrated)
    for change in ("DROP VIEW leaks", f"DROP VIEW clock; {LATER_CLOCK}"):
        execute(migrated, change)
        told: list[str] = []
        migrate.prepare(url_of(migrated), notify=told.append)
        assert told == [f"Made the views of {migrated} anew, as this version has them."]
        assert views_of(migrated) == before
    assert backups_of(migrated) == []


def test_a_newer_program_replaces_the_views_and_an_older_one_leaves_them(migrated: Path) -> None:
    with program_with(views.VERSION + 1, clock=LATER_CLOCK):
        migrate.prepare(url_of(migrated))
        assert migrate.check(url_of(migrated)) == []
    newer = views_of(migrated)
    assert newer["clock"] == LATER_CLOCK
    before = contents(migrated.parent)
    migrate.prepare(url_of(migrated))
    migrate.upgrade(url_of(migrated), HEAD)
    assert contents(migrated.parent) == before
    assert migrate.check(url_of(migrated)) == []
    alembic("-x", f"url={url_of(migrated)}", "upgrade", "head", cwd=migrated.parent)
    assert views_of(migrated) == newer


def test_views_without_a_number_are_made_anew(migrated: Path) -> None:
    """As releases left them that had the views in their revisions."""
    execute(migrated, "DELETE FROM settings WHERE name = 'views_version'")
    migrate.prepare(url_of(migrated))
    assert recorded_of(migrated) == [(str(views.VERSION),)]


def test_many_programs_that_find_old_views_make_them_anew_together(migrated: Path) -> None:
    before = views_of(migrated)
    execute(migrated, f"DROP VIEW clock; {LATER_CLOCK}")
    prepare_at_once(6, migrated)
    assert views_of(migrated) == before


def test_the_views_of_a_newer_schema_are_left_alone(
    migrated: Path, release: Callable[..., Release]
) -> None:
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated))
    execute(migrated, f"DROP VIEW clock; {LATER_CLOCK}")
    migrate.prepare(url_of(migrated))
    assert views_of(migrated)["clock"] == LATER_CLOCK


# Upgrades


def test_opening_a_database_at_head_writes_nothing_and_needs_no_alembic(migrated: Path) -> None:
    before = contents(migrated.parent)
    script = (
        "import sys; from registry.store.sqlite import compatibility, migrate; "
        "migrate.prepare(sys.argv[1]); "
        "assert compatibility.find_problem(sys.argv[1]) is None; "
        "assert 'alembic' not in sys.modules"
    )
    done = run("-c", script, url_of(migrated), cwd=migrated.parent)
    assert done.returncode == 0, done.stderr
    assert contents(migrated.parent) == before


def test_an_empty_file_gets_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "a #1 %41?ü.db"
    path.touch()
    told: list[str] = []
    migrate.prepare(url_of(path), notify=told.append)
    assert told == [f"Made {path} with schema revision {HEAD}."]
    assert migrate.check(url_of(path)) == []
    assert list(tmp_path.iterdir()) == [path]


def test_upgrade_downgrade_and_upgrade_again_end_where_they_began(migrated: Path) -> None:
    before = described(migrated)
    migrate.downgrade(url_of(migrated), "base")
    assert described(migrated) == {}
    assert migrate.current(url_of(migrated)) is None
    migrate.upgrade(url_of(migrated))
    assert described(migrated) == before
    assert rows(migrated, "PRAGMA integrity_check") == [("ok",)]


def test_an_upgrade_writes_a_backup_and_keeps_every_row(
    migrated: Path, release: Callable[..., Release]
) -> None:
    execute(migrated, ROWS)
    told: list[str] = []
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated), notify=told.append)
        migrate.prepare(url_of(migrated), notify=told.append)

    (backup,) = backups_of(migrated)
    assert re.fullmatch(rf"registry\.db\.{HEAD}-\d{{8}}T\d{{6}}Z\.backup", backup.name)
    assert migrate.check(url_of(backup)) == []
    assert rows(backup, "PRAGMA integrity_check") == [("ok",)]
    query = "SELECT instance_id, filename, content FROM holders JOIN blobs USING (checksum)"
    expected = [("18446744073709551615", "config.json", b"{}")]
    assert rows(backup, query) == rows(migrated, query) == expected
    assert rows(migrated, "SELECT note FROM owners") == [(None,)]
    assert rows(migrated, "SELECT kind, reason FROM events") == [
        ("upgraded", f"schema {HEAD} to {NEXT}")
    ]
    assert [backup.name in sentence for sentence in told] == [True, False]


def test_a_downgrade_writes_a_backup_of_the_newer_schema(
    migrated: Path, release: Callable[..., Release]
) -> None:
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated))
        migrate.downgrade(url_of(migrated), HEAD)
        assert compatibility.find_problem(url_of(migrated)) is not None
    assert migrate.check(url_of(migrated)) == []
    assert [each.name.split(".")[2][:4] for each in backups_of(migrated)] == [HEAD, NEXT]


def test_a_backup_never_takes_the_place_of_a_file(migrated: Path) -> None:
    names = set()
    for _ in range(3):
        name = backup_module.find_free_name(migrated, HEAD)
        backup_module.write_backup(migrated, name)
        names.add(name)
    assert set(backups_of(migrated)) == names
    assert len(names) == 3


def test_a_backup_that_cannot_be_written_stops_the_upgrade(
    migrated: Path, release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = migrated.with_name("not a directory")
    taken.touch()
    monkeypatch.setattr(backup_module, "find_free_name", lambda path, revision: taken / "x.backup")
    with release(EXPAND).running(), pytest.raises(StorageUnavailable, match="Nothing was changed"):
        migrate.prepare(url_of(migrated))
    assert migrate.check(url_of(migrated)) == []


@pytest.mark.parametrize(
    "failing",
    [
        "SELECT no_such_function()",
        "INSERT INTO settings VALUES ('min_program_revision', 'twice')",
        "CREATE TABLE owners (a)",
    ],
)
def test_a_failing_revision_leaves_the_old_schema_whole(
    failing: str, migrated: Path, release: Callable[..., Release]
) -> None:
    execute(migrated, ROWS)
    later = release(EXPAND, "DROP VIEW holders", "CREATE TABLE more (a)", failing)
    with later.running(), pytest.raises(StorageUnavailable, match="Nothing was changed"):
        migrate.prepare(url_of(migrated))
    assert migrate.check(url_of(migrated)) == []
    assert rows(migrated, "SELECT count(*) FROM holders") == [(1,)]
    assert backups_of(migrated) == []


def test_a_revision_with_a_mistake_leaves_the_old_schema_whole(
    migrated: Path, release: Callable[..., Release]
) -> None:
    later = release(EXPAND, code="raise RuntimeError('a mistake')")
    with later.running(), pytest.raises(RuntimeError, match="a mistake"):
        migrate.prepare(url_of(migrated))
    assert migrate.check(url_of(migrated)) == []


def test_a_revision_that_would_break_a_foreign_key_is_undone(
    migrated: Path, release: Callable[..., Release]
) -> None:
    execute(migrated, ROWS)
    with (
        release("DELETE FROM owners").running(),
        pytest.raises(DatabaseRefused, match="refer to nothing"),
    ):
        migrate.prepare(url_of(migrated))
    assert rows(migrated, "SELECT count(*) FROM owners") == [(1,)]
    assert migrate.current(url_of(migrated)) == HEAD


def test_an_upgrade_that_is_killed_half_way_leaves_the_old_schema_whole(
    migrated: Path, release: Callable[..., Release]
) -> None:
    execute(migrated, ROWS)
    later = release(EXPAND, "DROP TABLE owner_refs", code="os.kill(os.getpid(), signal.SIGKILL)")
    done = run(
        *("-m", "alembic", "-c", "alembic.ini", "-x", f"url={url_of(migrated)}"),
        *("upgrade", "head"),
        cwd=checkout_of(later),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert migrate.check(url_of(migrated)) == []
    assert rows(migrated, "SELECT count(*) FROM holders") == [(1,)]


def checkout_of(later: Release) -> Path:
    """A folder in which `alembic` works for a later release."""
    ini = (ROOT / "alembic.ini").read_text()
    (later.migrations.parent / "alembic.ini").write_text(
        ini.replace("%(here)s/migrations", "%(here)s/" + later.migrations.name)
    )
    return later.migrations.parent


# Many at once


def test_twenty_processes_open_one_new_file_at_once(tmp_path: Path) -> None:
    for round_number in range(3):
        path = tmp_path / f"{round_number}.db"
        prepare_at_once(20, path)
        assert migrate.check(url_of(path)) == []
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        assert backups_of(path) == []


def test_twenty_threads_open_one_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda _: migrate.prepare(url_of(path)), range(20)))
    assert migrate.check(url_of(path)) == []


def test_of_many_upgrades_at_once_one_does_the_work_and_all_end_well(
    migrated: Path, release: Callable[..., Release]
) -> None:
    execute(migrated, ROWS)
    later = release(EXPAND)
    prepare_at_once(6, migrated, later.head, later.migrations)
    assert migrate.current(url_of(migrated)) == NEXT
    assert len(backups_of(migrated)) == 1
    assert rows(migrated, "SELECT count(*) FROM events") == [(1,)]


def test_an_upgrade_waits_for_a_writer_and_keeps_what_it_wrote(
    migrated: Path, release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(migrated) as writer, release(EXPAND).running():
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO settings VALUES ('last_sweep_at', '7')")
        with monkeypatch.context() as patch:
            patch.setattr("registry.store.sqlite.revisions.LOCK_TIMEOUT_S", 0.02)
            with pytest.raises(Busy, match=re.escape(str(migrated))):
                migrate.prepare(url_of(migrated))
        with ThreadPoolExecutor(1) as thread:
            upgraded = thread.submit(migrate.prepare, url_of(migrated))
            writer.execute("COMMIT")
            upgraded.result(timeout=30)
    assert rows(migrated, "SELECT value FROM settings WHERE name = 'last_sweep_at'") == [("7",)]
    assert migrate.current(url_of(migrated)) == NEXT


def test_a_schema_that_is_only_in_the_log_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with connected(path) as reader:
        reader.execute("PRAGMA journal_mode = WAL").fetchall()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_master").fetchall()
        migrate.prepare(url_of(path))
        assert int.from_bytes(path.read_bytes()[68:72]) == 0  # Its application id.
        assert migrate.current(url_of(path)) == HEAD
        assert compatibility.find_problem(url_of(path)) is None


# Newer databases


def test_a_newer_database_that_admits_this_program_is_opened_as_it_is(
    migrated: Path, release: Callable[..., Release]
) -> None:
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated))
    before = contents(migrated.parent)
    migrate.prepare(url_of(migrated))
    migrate.upgrade(url_of(migrated))
    assert compatibility.find_problem(url_of(migrated)) is None
    assert contents(migrated.parent) == before


@pytest.mark.parametrize("oldest", [NEXT, None])
def test_a_database_that_needs_a_newer_program_is_refused_and_left_as_it_is(
    oldest: str | None, migrated: Path, release: Callable[..., Release]
) -> None:
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated))
    execute(migrated, "INSERT INTO settings VALUES ('program_version', '7.8.9')")
    set_oldest_program(migrated, oldest)
    before = contents(migrated.parent)
    with pytest.raises(DatabaseRefused) as refused:
        migrate.prepare(url_of(migrated))
    for expected in (NEXT, "7.8.9", HEAD, __version__, "Install a newer version", "backup"):
        assert expected in refused.value.detail
    assert compatibility.find_problem(url_of(migrated)) == refused.value.detail
    for change in (migrate.upgrade, migrate.downgrade):
        with pytest.raises(DatabaseRefused):
            change(url_of(migrated), HEAD)
    assert contents(migrated.parent) == before


def set_oldest_program(path: Path, revision: str | None) -> None:
    name = "'min_program_revision'"
    execute(path, f"DELETE FROM settings WHERE name = {name}")
    if revision is not None:
        execute(path, f"INSERT INTO settings VALUES ({name}, '{revision}')")


@pytest.mark.parametrize("oldest", [HEAD, NEXT])
def test_a_newer_program_may_be_faster_to_make_the_file(
    oldest: str,
    migrated: Path,
    release: Callable[..., Release],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with release(EXPAND).running():
        migrate.prepare(url_of(migrated))
    set_oldest_program(migrated, oldest)
    first_sees(monkeypatch, inspect.NOTHING)
    if oldest == HEAD:
        migrate.prepare(url_of(migrated))
    else:
        with pytest.raises(DatabaseRefused, match="Install a newer version"):
            migrate.prepare(url_of(migrated))


def first_sees(monkeypatch: pytest.MonkeyPatch, found: inspect.Found) -> None:
    """The first look answers this: the file changes between it and what follows."""
    looks = iter([found])
    monkeypatch.setattr(
        migrate, "look", lambda path, **how: next(looks, None) or inspect.look(path, **how)
    )


def test_a_revision_that_nobody_made_is_refused(migrated: Path) -> None:
    execute(migrated, "UPDATE alembic_version SET version_num = 'a1b2c3'")
    with pytest.raises(DatabaseRefused, match="a1b2c3"):
        migrate.prepare(url_of(migrated))


# Files that are not ours


def sqlite_of(*statements: str) -> Callable[[Path], object]:
    return lambda path: execute(path, ";".join(statements))


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a byte": lambda path: path.write_bytes(b"x"),
    "half a header": lambda path: path.write_bytes(b"SQLite format 3"),
    "a short text": lambda path: path.write_text("host = 127.0.0.1\n" * 5),
    "a long text": lambda path: path.write_text("host = 127.0.0.1\n" * 5000),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "another program's tables": sqlite_of("CREATE TABLE other (a)", "INSERT INTO other VALUES (1)"),
    "another program's view": sqlite_of("CREATE VIEW other AS SELECT 1 AS a"),
    "another program's empty file": sqlite_of("PRAGMA application_id = 7", "VACUUM"),
    "another program's tables with a log": sqlite_of(
        "PRAGMA journal_mode = WAL", "CREATE TABLE other (a)"
    ),
    "tables of ours without a revision": sqlite_of(
        f"PRAGMA application_id = {inspect.APPLICATION_ID}", "CREATE TABLE owners (a)"
    ),
    "a revision of another program": sqlite_of(
        "CREATE TABLE alembic_version (version_num)",
        "INSERT INTO alembic_version VALUES ('0001')",
        "CREATE TABLE other (a)",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    FOREIGN[kind](path)
    before = contents(tmp_path)
    for use in (migrate.prepare, migrate.upgrade, migrate.current, migrate.check):
        with pytest.raises(DatabaseRefused, match=re.escape(str(path))):
            use(url_of(path))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_database_that_another_program_has_open_is_left_as_it_is(
    checkpointed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "registry.db"
    with connected(path) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE other (a)")
        if checkpointed:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        before = contents(tmp_path)
        with pytest.raises(DatabaseRefused, match="another program"):
            migrate.prepare(url_of(path))
        after = contents(tmp_path)
        del before["registry.db-shm"], after["registry.db-shm"]  # Where readers leave marks.
        assert after == before


def test_a_database_that_appears_while_one_is_being_made_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.db"
    execute(path, "CREATE TABLE other (a)")
    before = contents(tmp_path)
    first_sees(monkeypatch, inspect.NOTHING)
    with pytest.raises(DatabaseRefused, match="another program"):
        migrate.prepare(url_of(path))
    assert contents(tmp_path) == before


def test_a_database_that_disappears_before_it_is_upgraded_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.db"
    first_sees(monkeypatch, inspect.Found("0000", "0000", None, has_wal=True))
    migrate.prepare(url_of(path))
    assert migrate.check(url_of(path)) == []


def test_what_cannot_be_a_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    for url, expected in {
        url_of(tmp_path): "is a directory",
        url_of(tmp_path / "fifo"): "not a regular file",
        url_of(tmp_path / "missing" / "registry.db"): "mkdir -p",
        url_of(tmp_path / "file" / "registry.db"): "Name another file",
        url_of(tmp_path / "loop"): "Name another file",
        url_of(tmp_path / ("x" * 300)): "Name another file",
        "sqlite://": "in-memory",
        "sqlite:///:memory:": "in-memory",
        "mysql://host/name": "sqlite:///PATH",
        "nonsense": "sqlite:///PATH",
    }.items():
        with pytest.raises(DatabaseRefused, match=expected):
            migrate.prepare(url)
        assert compatibility.find_problem(url)


def test_an_old_sqlite_library_is_refused(migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    with pytest.raises(DatabaseRefused, match=r"needs 3\.38"):
        migrate.prepare(url_of(migrated))


def test_a_damaged_database_is_refused(migrated: Path) -> None:
    whole = migrated.read_bytes()
    migrated.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    with pytest.raises(DatabaseRefused, match="damaged"):
        migrate.check(url_of(migrated))
    migrated.write_bytes(whole[:4096])
    with pytest.raises(DatabaseRefused, match="damaged"):
        migrate.prepare(url_of(migrated))
    assert compatibility.find_problem(url_of(migrated))


def test_a_file_or_directory_that_may_not_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "registry.db"
        migrate.prepare(url_of(path))
        for file_mode, directory_mode, expected in (
            (0o444, 0o777, "Give the user both rights"),
            (0o666, 0o555, "give the user write access"),
        ):
            path.chmod(file_mode)
            directory.chmod(directory_mode)
            with without_privileges(), pytest.raises(DatabaseRefused, match=expected):
                migrate.prepare(url_of(path))
        with without_privileges(), pytest.raises(DatabaseRefused, match="give the user write"):
            migrate.prepare(url_of(directory / "new.db"))
        directory.chmod(0o755)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom the modes of files bind; the superuser's they do not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_missing_database_has_no_revision_and_is_not_made_by_looking(tmp_path: Path) -> None:
    url = url_of(tmp_path / "registry.db")
    assert migrate.current(url) is None
    with pytest.raises(DatabaseRefused, match="db upgrade"):
        migrate.check(url)
    with pytest.raises(DatabaseRefused, match="nothing to take back"):
        migrate.downgrade(url, "base")
    assert compatibility.find_problem(url)
    assert contents(tmp_path) == {}


def test_a_revision_that_does_not_exist_is_refused(migrated: Path) -> None:
    for change in (migrate.upgrade, migrate.downgrade):
        with pytest.raises(Invalid, match=HEAD):
            change(url_of(migrated), "9999")


# The command line


def invoke(*arguments: str, path: Path) -> Any:
    return CliRunner().invoke(db_app, [*arguments, "--database-url", url_of(path)])


def test_the_commands_make_show_and_check_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    assert invoke("current", path=path).stdout == "none (no registry there yet)\n"
    made = invoke("upgrade", path=path)
    assert (made.exit_code, made.stdout) == (0, f"The schema revision is {HEAD}.\n")
    assert made.stderr == f"Made {path} with schema revision {HEAD}.\n"
    assert invoke("upgrade", HEAD, path=path).exit_code == 0
    assert invoke("current", path=path).stdout == f"{HEAD} (head)\n"
    shown = json.loads(invoke("current", "--json", path=path).stdout)
    assert shown == {"revision": HEAD, "head": HEAD}
    assert invoke("check", path=path).exit_code == 0
    assert json.loads(invoke("check", "--json", path=path).stdout) == {"differences": []}


def test_check_ends_with_1_when_the_schema_differs(migrated: Path) -> None:
    execute(migrated, "DROP VIEW holders")
    for arguments in (["check"], ["check", "--json"]):
        done = invoke(*arguments, path=migrated)
        assert done.exit_code == 1
        assert "view holders is missing" in done.stdout


def test_history_lists_every_revision() -> None:
    done = CliRunner().invoke(db_app, ["history", "--json"])
    listed = json.loads(done.stdout)
    assert listed[0] == {"revision": "0001", "title": "The first schema"}
    assert listed[-1]["revision"] == HEAD
    assert "The first schema" in CliRunner().invoke(db_app, ["history"]).stdout


def test_the_command_line_refuses_a_file_of_another_program(tmp_path: Path) -> None:
    execute(tmp_path / "other.db", "CREATE TABLE other (a)")
    done = run(
        *("-m", "registry", "db", "upgrade", "--database-url", "sqlite:///other.db"), cwd=tmp_path
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert "another program" in done.stderr
    assert "Traceback" not in done.stderr


# Revision 0004: revisions of models

MODEL, OLD_OWNER, NEW_OWNER = "tiny", Owner("n", "c", "e", 1), Owner("n", "c", "e", 2)


def register_file(path: Path, owner: Owner, content: bytes, **options: Any) -> str:
    """Register a file in place; the slug under which it is."""
    file = path.with_name(f"{checksum(content)[7:17]}.json")
    file.write_bytes(content)
    key = ArtifactKey(MODEL, "_base", "config.json")
    artifact = Artifact(key, checksum(content), len(content), str(file))
    database = Database(url_of(path))
    with database.write() as conn:
        registration = Registration(owner, (artifact,), **options)
        (outcome,) = register_ops.register(conn, conn.now, [registration])
    database.close()
    assert isinstance(outcome, Registered), outcome
    return outcome.artifacts[0].key.slug


AS_BEFORE = """
    INSERT INTO owners (id, namespace, component, endpoint, instance_id, lora_slug, worker_name,
        state, lease_ttl_ms, lease_expires_at, registered_at, renewed_at)
    VALUES (7, 'n', 'c', 'e', '3', '', NULL, 'active', NULL, NULL, 5, 5);
    INSERT INTO entries (id, slug, suffix, filename, checksum, size, generation, created_at,
        updated_at)
    VALUES (7, 'before', '_base', 'a', 'blake3:' || printf('%064d', 0), 2, 1, 5, 5);
    INSERT INTO owner_refs (owner_id, entry_id, blob_checksum, path, file_identity, event_id,
        status, verified_at, created_at)
    VALUES (7, 7, NULL, '/a', NULL, 7, 'ok', 5, 5);
"""
"""What a program of the revisions before writes when it registers."""


@pytest.mark.parametrize("revision", OLDER)
def test_what_an_older_revision_has_is_no_revision_of_a_model_and_gets_some_beside_it(
    revision: str, tmp_path: Path
) -> None:
    path = tmp_path / "older.db"
    migrate.upgrade(url_of(path), revision)
    execute(path, AS_BEFORE)
    migrate.prepare(url_of(path))
    assert rows(path, "SELECT slug, base_slug FROM entries") == [("before", None)]
    assert register_file(path, OLD_OWNER, b"old") == MODEL
    slug = register_file(path, NEW_OWNER, b"new", on_conflict=OnConflict.REVISION)
    assert rows(path, "SELECT slug, base_slug FROM entries WHERE id > 7") == [
        (MODEL, None),
        (slug, MODEL),
    ]


@pytest.mark.parametrize("revision", [each for each in OLDER if each < "0004"])
def test_going_back_forgets_that_revisions_of_a_model_are_some_until_their_owners_come_again(
    revision: str, migrated: Path
) -> None:
    register_file(migrated, OLD_OWNER, b"old")
    slug = register_file(migrated, NEW_OWNER, b"new", on_conflict=OnConflict.REVISION)
    held = "SELECT slug, checksum, instance_id, path FROM holders ORDER BY slug"
    before = rows(migrated, held)
    migrate.downgrade(url_of(migrated), revision)
    assert rows(migrated, held) == before
    migrate.upgrade(url_of(migrated))
    assert rows(migrated, held) == before
    assert rows(migrated, "SELECT slug, base_slug FROM entries ORDER BY slug") == [
        (MODEL, None),
        (slug, None),
    ]
    assert migrate.check(url_of(migrated)) == []
    register_file(migrated, NEW_OWNER, b"new", on_conflict=OnConflict.REVISION)
    known = rows(migrated, "SELECT slug, base_slug FROM entries WHERE base_slug IS NOT NULL")
    assert known == [(slug, MODEL)]


def test_a_program_of_the_revision_before_works_with_revisions_of_models(
    migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It expands: `min_program_revision` stays, and what such a program writes is accepted."""
    monkeypatch.setattr(tables, "HEAD_REVISION", "0003")
    assert compatibility.find_problem(url_of(migrated)) is None
    execute(migrated, f"PRAGMA foreign_keys = ON; {AS_BEFORE}")
    assert rows(migrated, "SELECT base_slug FROM entries") == [(None,)]


def test_no_entry_is_a_revision_of_itself(migrated: Path) -> None:
    execute(migrated, AS_BEFORE)
    with pytest.raises(sqlite3.IntegrityError, match="ck_entries_base_slug"):
        execute(migrated, "UPDATE entries SET base_slug = slug")
