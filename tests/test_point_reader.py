"""Point reads see every commit, whoever makes it, and ask nothing until there is one (S3)."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.store.opening import open_database
from registry.store.sqlite import wal_index
from registry.store.sqlite.engine import Database
from registry.store.sqlite.migrate import prepare
from registry.store.sqlite.point_reader import SQLitePointReader
from tests.support import assert_sound

VALUE = "SELECT value FROM settings WHERE name = 'tested'"
SET = "INSERT OR REPLACE INTO settings VALUES ('tested', hex(randomblob(4)))"
MAPS = wal_index.MAPS
WAYS = ["header", "data_version"]

_SHELL = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    for statement in json.loads(line):
        connection.execute(statement).fetchall()
    print(flush=True)
"""


class Shell:
    """Another process that has the database open."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SHELL, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *statements: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(statements), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "\n"

    def kill(self) -> None:
        """kill -9"""
        self._process.kill()
        self._process.communicate()


class Reads:
    """Somebody who reads only when the reader says that anything was committed."""

    def __init__(self, path: Path, reader: SQLitePointReader) -> None:
        self._path = path
        self.reader = reader
        self._token = -1
        self._value: object = None
        self.count = 0

    def value(self) -> object:
        token = self.reader.change_token()
        if token != self._token:
            self._token = token
            self._value = self.reader.run(VALUE, {})
            self.count += 1
        return self._value

    def check(self) -> None:
        """What was read is what is there, and is not read again while nothing happens."""
        with closing(sqlite3.connect(self._path)) as connection:
            assert self.value() == connection.execute(VALUE).fetchall()
            count = self.count
            for _ in range(3):
                self.value()
            assert self.count == count


@contextmanager
def reading(path: Path) -> Iterator[Reads]:
    engine = open_database(f"sqlite:///{path}")
    assert isinstance(engine, Database)
    reader = engine.point_reader()
    try:
        yield Reads(path, reader)
    finally:
        reader.close()
        engine.close()


@pytest.fixture(scope="module", params=WAYS)
def path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "data_version":
            patch.setattr(wal_index, "MAPS", Path("/nowhere"))
        path = tmp_path_factory.mktemp("reader") / "registry.db"
        prepare(f"sqlite:///{path}")
        yield path
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM settings WHERE name = 'tested'")
        assert_sound(path)


@pytest.fixture(scope="module")
def reads(path: Path) -> Iterator[Reads]:
    with reading(path) as found:
        yield found


@pytest.fixture(scope="module")
def shells(path: Path) -> Iterator[list[Shell]]:
    """Two other processes."""
    found = [Shell(path), Shell(path)]
    yield found
    for shell in found:
        shell.kill()


COMMIT = ("BEGIN IMMEDIATE", SET, "COMMIT")
BEGIN_MUCH = (
    "PRAGMA cache_size = 5",
    "BEGIN IMMEDIATE",
    SET,
    "CREATE TABLE large (text TEXT)",
    (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
        "INSERT INTO large SELECT hex(randomblob(2000)) FROM n"
    ),
)
"""Most of it is in the log before it is committed."""
STEPS = [
    *[COMMIT] * 4,
    ("BEGIN IMMEDIATE", SET, "ROLLBACK"),
    ("BEGIN IMMEDIATE", "COMMIT"),
    ("BEGIN", VALUE, "COMMIT"),
    (*COMMIT, *COMMIT, "PRAGMA wal_checkpoint(RESTART)", *COMMIT),
    ("VACUUM",),
    *[(f"PRAGMA wal_checkpoint({kind})",) for kind in ("PASSIVE", "FULL", "RESTART", "TRUNCATE")],
]


@given(steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(STEPS)), max_size=12))
def test_every_commit_is_seen_and_nothing_else_is_asked_for(
    reads: Reads, shells: list[Shell], steps: list[tuple[int, tuple[str, ...]]]
) -> None:
    reads.check()
    for number, statements in steps:
        shells[number].run(*statements)
        reads.check()


def test_what_is_not_committed_is_not_seen(reads: Reads, shells: list[Shell]) -> None:
    """Not even where most of it is in the log already."""
    reads.check()
    before = reads.value()
    shells[0].run(*BEGIN_MUCH)
    reads.check()
    assert reads.value() == before
    shells[0].run("ROLLBACK", "PRAGMA cache_size = 2000")
    reads.check()
    assert reads.value() == before


def test_a_commit_after_a_process_was_killed_is_seen(path: Path, reads: Reads) -> None:
    """It was killed while it wrote, with the write lock and most of its pages in the log."""
    for _ in range(3):
        shell = Shell(path)
        shell.run(*COMMIT)
        before = reads.value()
        shell.run(*BEGIN_MUCH)
        reads.check()
        shell.kill()
        reads.check()
        assert reads.value() == before
        other = Shell(path)
        other.run(*COMMIT)
        reads.check()
        other.kill()


def test_a_commit_while_the_reader_was_closed_is_seen(
    path: Path, reads: Reads, shells: list[Shell]
) -> None:
    """Each connection counts the changes from its own start."""
    for _ in range(3):
        reads.check()
        reads.reader.close()
        shells[0].run(*COMMIT)
        reads.check()


def test_the_header_is_found_where_the_index_is_long(path: Path) -> None:
    """It is in several pieces then, of which the header is in the first."""
    shell = Shell(path)
    shell.run("PRAGMA wal_autocheckpoint = 0", *BEGIN_MUCH)
    shell.run(
        "INSERT INTO large SELECT text FROM large",
        *["INSERT INTO large SELECT text FROM large"] * 3,
        "DROP TABLE large",
        "COMMIT",
    )
    assert path.with_name("registry.db-shm").stat().st_size > 32 << 10
    with reading(path) as reads:
        for _ in range(3):
            reads.check()
            shell.run(*COMMIT)
            reads.check()
    shell.kill()


@pytest.mark.parametrize("folder", ["plain", "with a space", "with  two", "ü", "x (deleted)"])
def test_the_header_is_found_whatever_the_directory_is_called(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_index, "MAPS", MAPS)
    real = tmp_path / folder / "registry.db"
    real.parent.mkdir()
    others = [real.with_name("a.db"), real.with_name("registry.db-s"), real.with_name("z-shm")]
    path = tmp_path / "link" / "linked.db"
    path.parent.mkdir()
    path.symlink_to(real)
    with ExitStack() as stack:
        for each in (*others[:2], real, others[2]):
            prepare(f"sqlite:///{each}")
            stack.enter_context(reading(each)).check()
        reads = stack.enter_context(reading(path))
        shell = Shell(real)
        for _ in range(3):
            reads.check()
            assert (reads.reader._header is None) != MAPS.exists()
            shell.run(*COMMIT)
            reads.check()
            reads.reader.close()
            assert reads.reader._header is None
        shell.run("DELETE FROM settings WHERE name = 'tested'")
        shell.kill()
    for each in (*others, real):
        assert_sound(each)
