"""`metadata-registry sql`: what reads is answered; whatever else it may be, nothing changes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import DatabaseRefused, Invalid, Refused, RegistryError
from registry.store import statement_process
from registry.store.query_result import QueryResult
from registry.store.sqlite import adhoc_sql_process
from registry.store.sqlite.adhoc_sql import run_query
from registry.store.sqlite.inspect import opened
from registry.store.sqlite.migrate import prepare
from tests.commands import Done, run_here
from tests.support import ROOT, assert_sound, checksum, dump_of, sql

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A registry with an owner that has a name which a terminal would obey."""
    path = tmp_path / "registry.db"
    prepare(f"sqlite:///{path}")
    with sql(path) as connection:
        connection.execute(
            "INSERT INTO owners (id, namespace, component, endpoint, instance_id, worker_name, "
            "state, registered_at, renewed_at) "
            "VALUES (1, 'ns', 'backend', 'generate', '7', ?, 'active', 5, 5)",
            ("red \x1b[31m",),
        )
    yield path
    assert_sound(path)


def asked(path: Path, query: str, timeout_s: float = 20, max_rows: int = 1000) -> QueryResult:
    return run_query(f"sqlite:///{path}", query, timeout_s=timeout_s, max_rows=max_rows)


def command(path: Path, *arguments: str) -> Done:
    return run_here("sql", *arguments, REGISTRY_DATABASE_URL=f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT namespace, instance_id FROM owners", [("ns", "7")]),
        ("  select 1;  ", [(1,)]),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("SELECT * FROM leaks WHERE class = 'orphan_entry'", []),
        ("WITH n(i) AS (VALUES (3)) SELECT i FROM n", [(3,)]),
        ("SELECT value FROM json_each('[1, 2]')", [(1,), (2,)]),
        ("SELECT * FROM pragma_integrity_check", [("ok",)]),
        ("PRAGMA journal_mode", [("wal",)]),
        ("PRAGMA foreign_key_check", []),
        ("SELECT name FROM pragma_table_info('settings')", [("name",), ("value",)]),
        ("SELECT CAST(x'ff' AS TEXT)", [("\ufffd",)]),
    ],
)
def test_a_statement_that_reads_is_answered(path: Path, query: str, rows: list[Any]) -> None:
    assert asked(path, query).rows == rows


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO settings VALUES ('a', 'b')",
        "REPLACE INTO settings VALUES ('a', 'b')",
        "UPDATE owners SET state = 'active' RETURNING *",
        "UPDATE sqlite_master SET sql = ''",
        "DELETE FROM events",
        "WITH n AS (SELECT 1) DELETE FROM owners",
        "EXPLAIN DELETE FROM owners",
        "DROP TABLE owners",
        "DROP VIEW leaks",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE t USING dbstat",
        "ALTER TABLE owners ADD COLUMN note",
        "REINDEX",
        "ANALYZE",
        "VACUUM",
        "VACUUM INTO '{folder}/copy.db'",
        "ATTACH '{folder}/other.db' AS other",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "BEGIN IMMEDIATE",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT s",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA user_version = 7",
        "PRAGMA application_id = 7",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA optimize",
        "PRAGMA incremental_vacuum",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA foreign_keys = OFF",
        "SELECT load_extension('{folder}/evil')",
        "SELECT writefile('{folder}/evil', 'x')",
        "SELECT edit('x', 'touch {folder}/evil')",
        "SELECT 1; DELETE FROM owners",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
        "no SQL at all",
        "SELECT * FROM nothing",
        "SELECT hex(zeroblob(900000000))",
        ".schema",
    ],
)
def test_what_does_not_read_or_is_no_statement_changes_nothing(path: Path, query: str) -> None:
    before, files = dump_of(path), sorted(path.parent.iterdir())
    with pytest.raises((Refused, Invalid)):
        asked(path, query.replace("{folder}", str(path.parent)))
    assert dump_of(path) == before
    assert sorted(path.parent.iterdir()) == files


@pytest.mark.parametrize(
    ("query", "error"),
    [("DELETE FROM owners", Refused), ("SELECT 1; SELECT 2", Invalid), ("SELEC", Invalid)],
)
def test_what_is_forbidden_and_what_is_wrong_are_told_apart(
    path: Path, query: str, error: type[RegistryError]
) -> None:
    with pytest.raises(error):
        asked(path, query)


def test_a_statement_that_runs_too_long_is_ended(path: Path) -> None:
    before = set(threading.enumerate())
    started = time.monotonic()
    with pytest.raises(Refused, match=r"longer than 0\.2 s"):
        asked(path, ENDLESS, timeout_s=0.2)
    assert time.monotonic() - started < 10
    assert set(threading.enumerate()) <= before


def test_only_so_many_rows_are_read_and_the_answer_says_that_there_are_more(path: Path) -> None:
    endless_rows = (
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    )
    answers = asked(path, endless_rows, max_rows=3)
    assert answers.rows == [(1,), (2,), (3,)]
    assert not answers.is_whole
    assert asked(path, "VALUES (1), (2), (3)", max_rows=3).is_whole


def test_columns_of_the_same_name_stay_apart(path: Path) -> None:
    assert asked(path, "SELECT 1 AS id, 2 AS id, 3 AS id_2").columns == ("id", "id_2", "id_2_2")


def test_asking_leaves_nothing_beside_the_database(path: Path) -> None:
    asked(path, "SELECT 1")
    assert sorted(each.name for each in path.parent.iterdir()) == ["registry.db"]


def test_asking_beside_a_writer_sees_what_it_committed_and_leaves_its_log(path: Path) -> None:
    with sql(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO settings VALUES ('a', 'b')")
        assert asked(path, "SELECT count(*) FROM settings WHERE name = 'a'").rows == [(0,)]
        writer.execute("COMMIT")
        assert asked(path, "SELECT count(*) FROM settings WHERE name = 'a'").rows == [(1,)]
        writer.execute("DELETE FROM settings WHERE name = 'a'")


@pytest.mark.parametrize("content", [None, b"", b"no database" * 1000, "foreign"])
def test_where_no_registry_is_none_is_made(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "other.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with sql(path) as connection:
            connection.execute("CREATE TABLE t (a)")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(DatabaseRefused):
        asked(path, "SELECT 1")
    assert (path.read_bytes() if path.exists() else None) == before


def test_the_command_prints_a_table_csv_or_json_and_says_by_its_exit_code_what_happened(
    path: Path,
) -> None:
    query = "SELECT 7 AS number, NULL AS missing, x'00ff' AS bytes, worker_name FROM owners"

    table = command(path, query)
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.splitlines() == [
        "number  missing  bytes  worker_name",
        "     7  NULL     00ff   red \\x1b[31m",
    ]

    as_csv = command(path, query, "--csv")
    assert as_csv.returncode == 0
    assert list(csv.reader(io.StringIO(as_csv.stdout))) == [
        ["number", "missing", "bytes", "worker_name"],
        ["7", "", "00ff", "red \x1b[31m"],
    ]

    as_json = command(path, query, "--json", "--max-rows", "1")
    assert as_json.returncode == 0
    assert json.loads(as_json.stdout) == [
        {"number": 7, "missing": None, "bytes": "00ff", "worker_name": "red \x1b[31m"}
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("DELETE FROM owners",), 1, "that reads is allowed"),
        ((ENDLESS, "--timeout-s", "0.2"), 1, "--timeout-s"),
        (("VALUES (1), (2)", "--max-rows", "1"), 1, "--max-rows"),
        (("SELEC 1",), 2, "syntax error"),
        (("SELECT 1", "--csv", "--json"), 2, "one of"),
        (("SELECT 1", "--database-url", "sqlite:////nowhere/registry.db"), 2, "no registry"),
    ],
)
def test_the_exit_code_is_1_for_a_refusal_and_2_for_what_could_not_run(
    path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = command(path, *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_connection_is_read_only_also_where_its_statements_are_not_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bars stand one behind the other; this is the last one alone."""
    monkeypatch.setattr(adhoc_sql_process, "_is_allowed", lambda *arguments: True)
    with opened(path, "rw") as connection, pytest.raises(RegistryError, match="read-only"):
        adhoc_sql_process.answer(connection, "INSERT INTO settings VALUES ('a', 'b')", 1, print)


# Memory and time

NUMBERS = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)"
BLOBS = """WITH RECURSIVE n(i, b) AS (
    SELECT 1, zeroblob(50000000)
    UNION ALL SELECT i + 1, zeroblob(50000000) FROM n WHERE i < 1000)"""
GREEDY = {
    "rows of zeroblob": f"{BLOBS} SELECT b FROM n",
    "sorted zeroblob": f"{BLOBS} SELECT i FROM n ORDER BY b",
    "recursion": f"{BLOBS} SELECT count(*) FROM n",
    "printf": "SELECT length(printf('%.*c', 2000000000, 'x'))",
    "replace": f"SELECT length(replace(hex(zeroblob(9000000)), '0', '{'a' * 90}'))",
    "group_concat": f"{NUMBERS} SELECT length(group_concat(i)) FROM n",
    "sort": f"{NUMBERS} SELECT i FROM n ORDER BY random()",
    "many rows": f"{NUMBERS} SELECT i, i, i, i FROM n",
    "pattern": f"SELECT hex(zeroblob(40000000)) LIKE '{'%0' * 40}b'",
}


ASKING = """
import resource, sys
from registry.errors import Invalid, Refused
from registry.store.sqlite.adhoc_sql import run_query
try:
    run_query(*sys.argv[1:], timeout_s=0.5, max_rows=10_000_000)
except (Invalid, Refused):
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


@pytest.mark.parametrize("name", GREEDY)
def test_a_statement_takes_no_more_memory_and_time_than_it_may(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No temporary files are its way out, and the database goes on being usable."""
    monkeypatch.setenv("SQLITE_TMPDIR", str(path.parent / "nowhere"))
    # In a process that has no other children.
    command = [sys.executable, "-c", ASKING, f"sqlite:///{path}", GREEDY[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    most = int(done.stdout)
    assert sorted(each.name for each in path.parent.iterdir()) == ["registry.db"]
    assert most < statement_process.MEMORY_MAX_BYTES + (200 << 20)


def test_a_statement_that_needs_too_much_memory_is_told_so(path: Path) -> None:
    with pytest.raises(Refused, match="512 MiB of memory"):
        asked(path, f"{BLOBS} SELECT i FROM n ORDER BY b", timeout_s=60)


def test_an_answer_that_is_too_large_is_refused_whatever_it_consists_of(path: Path) -> None:
    for query in (
        f"{NUMBERS} SELECT {', '.join('i' * 500)} FROM n",
        "WITH n(b) AS (VALUES (zeroblob(70000000))) SELECT b, b FROM n",
    ):
        with pytest.raises(Refused, match="answers more than 256 MiB"):
            asked(path, query, timeout_s=120, max_rows=10_000_000)


def test_a_table_is_not_padded_without_a_bound(path: Path) -> None:
    """A single long value makes every row that long."""
    rows = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    query = f"{rows} SELECT CASE i WHEN 1 THEN printf('%.*c', 1000000, 'x') END, i FROM n"
    done = command(path, query)
    assert (done.returncode, "--csv" in done.stderr) == (1, True)
    assert len(command(path, query, "--csv").stdout) < 2_000_000


def test_the_largest_copied_file_can_be_read(path: Path) -> None:
    content = bytes(64 << 20)
    with sql(path) as connection:
        row = (checksum(content), len(content), content)
        connection.execute("INSERT INTO blobs VALUES (?, ?, 0, ?)", row)
        assert asked(path, "SELECT content FROM blobs").rows == [(content,)]
        connection.execute("DELETE FROM blobs")
