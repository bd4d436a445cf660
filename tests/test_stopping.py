"""The program is told to end while it starts, waits or works, also as process 1 of a container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.core.stopping import ENDS_WITHIN_S
from registry.errors import Refused
from registry.store.sqlite import migrate, upgrade_lock
from registry.store.tables import MIN_PROGRAM_REVISION
from tests.containers import First
from tests.models import make_model
from tests.support import ROOT, Server, dump_of, sql, wait_for

OVER_S = ENDS_WITHIN_S + 10
"""The bound, and time for a slow machine."""
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def old_path(database_path: Path) -> Path:
    """A database of the version before."""
    migrate.upgrade(f"sqlite:///{database_path}", "0002")
    return database_path


@pytest.fixture
def new_path(database_path: Path) -> Path:
    migrate.prepare(f"sqlite:///{database_path}")
    return database_path


@contextmanager
def kept_from_all(path: Path) -> Iterator[None]:
    """Nobody else may read or write the database while the block runs."""
    with sql(path) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE settings SET value = value")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else may write the database while the block runs."""
    with sql(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


ON_DATABASE: dict[str, list[str]] = {
    "serve": ["serve", "--port", "0"],
    "workers": ["serve", "--port", "0", "--workers", "2"],
    "upgrade": ["db", "upgrade"],
    "downgrade": ["db", "downgrade", "0001"],
    "backup": ["db", "backup", "copy.db"],
    "check": ["db", "check"],
    "verify": ["verify"],
    "audit": ["audit"],
    "sweep": ["sweep"],
    "sql": ["sql", "SELECT 1"],
}
"""Commands that use a database themselves. All of them wait for a lock."""


@pytest.mark.parametrize(
    ("command", "number"),
    [*((command, TERM) for command in ON_DATABASE), ("serve", INT), ("upgrade", INT)],
)
def test_who_waits_for_a_lock_as_process_1_ends_when_told_to(
    new_path: Path, command: str, number: signal.Signals
) -> None:
    url = f"sqlite:///{new_path}"
    before = dump_of(new_path)
    with (
        kept_from_all(new_path),
        First(*ON_DATABASE[command], cwd=new_path.parent, REGISTRY_DATABASE_URL=url) as first,
    ):
        first.wait_until_it_opens(new_path)
        first.send(number)
        code, _, errors = first.end(OVER_S)
    told_to = {TERM: 0 if command in ("serve", "workers") else 143, INT: 130}
    assert code == told_to[number], errors
    assert number is INT or "SIGTERM" in errors
    assert "Traceback" not in errors
    assert dump_of(new_path) == before
    assert [each.name for each in new_path.parent.iterdir() if "copy" in each.name] == []


OTHERS = {
    "attach": ["attach", ".", "--name", "a", "--endpoint", "a/b/c"],
    "restore": ["db", "restore", "copy.db"],
}


@pytest.mark.parametrize("command", [*ON_DATABASE, *OTHERS])
def test_a_signal_is_heard_from_the_first_moment_on(new_path: Path, command: str) -> None:
    """Long before the program is loaded."""
    with First(
        *(ON_DATABASE | OTHERS)[command],
        cwd=new_path.parent,
        REGISTRY_DATABASE_URL=f"sqlite:///{new_path}",
    ) as first:
        first.wait_until_it_listens_to(TERM)
        first.send(TERM)
        code, output, errors = first.end(OVER_S)
    assert code == (0 if command in ("serve", "workers") else 143), errors
    # What was being read just then may be told of as well, as warnings are errors here.
    assert (output, errors.splitlines()[-1]) == ("", "error: ended by SIGTERM before it was done")


@pytest.mark.parametrize("command", ["serve", "workers"])
def test_a_service_that_serves_as_process_1_ends_when_told_to(new_path: Path, command: str) -> None:
    with First(
        *ON_DATABASE[command], cwd=new_path.parent, REGISTRY_DATABASE_URL=f"sqlite:///{new_path}"
    ) as first:
        line = first.read_line()
        assert line.startswith("listening on ")
        first.send(TERM)
        code, _, errors = first.end(OVER_S)
    assert code == 0
    assert "Traceback" not in errors


def test_an_upgrade_that_is_told_to_end_leaves_the_database_as_it_was(old_path: Path) -> None:
    """The revision itself goes on for longer than anybody waits."""
    with sql(old_path) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO events (at, kind, reason) VALUES (?, 'upgraded', 'x')",
            ((number,) for number in range(100_000)),
        )
        connection.execute("COMMIT")
    with First(
        "db", "upgrade", cwd=old_path.parent, REGISTRY_DATABASE_URL=f"sqlite:///{old_path}"
    ) as first:
        first.wait_until_it_opens(Path(f"{old_path}-wal"))
        first.send(TERM)
        code, _, errors = first.end(OVER_S)
    assert code == 143
    assert "SIGTERM" in errors
    assert migrate.current(f"sqlite:///{old_path}") == "0002"
    assert list(old_path.parent.glob("*.partial")) == []


def test_following_the_journal_as_process_1_ends_when_told_to(server: Server) -> None:
    with First("events", "--follow", "--url", server.url, cwd=ROOT) as first:
        first.wait_until_it_listens_to(TERM)
        wait_for(lambda: "events" in server.log or server.client.get("/v1/events").is_success)
        first.send(TERM)
        assert first.end(OVER_S)[0] == 143


@pytest.mark.parametrize(("number", "code"), [(TERM, 0), (INT, 130), (signal.SIGHUP, 0)])
def test_holding_as_process_1_ends_with_a_detach_when_told_to(
    server: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    model = make_model(tmp_path / "model")
    arguments = ["attach", model, "--hold", "--name", "held", "--endpoint", "a/b/c"]
    with First(*arguments, "--url", server.url, cwd=ROOT) as first:
        held = "/v1/artifacts?slug=held"
        wait_for(lambda: bool(server.client.get(held).json()["artifacts"]))
        first.send(number)
        ended, _, errors = first.end(OVER_S)
    assert ended == code, errors
    assert f"detached, as {number.name} came" in errors
    assert server.client.get(held).json()["artifacts"] == []


# Waiting is told of


@pytest.mark.parametrize("command", ["serve", "upgrade"])
def test_a_start_that_waits_says_what_for(old_path: Path, command: str) -> None:
    arguments = ON_DATABASE[command]
    with (
        locked(old_path),
        First(
            *arguments, cwd=old_path.parent, REGISTRY_DATABASE_URL=f"sqlite:///{old_path}"
        ) as first,
    ):
        first.wait_until_it_says("Waiting for")
        first.send(TERM)
        code, _, errors = first.end(OVER_S)
    assert str(old_path) in errors
    assert code == (0 if command == "serve" else 143)


def test_a_start_says_what_it_serves(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(artifact_root=tmp_path)
    assert f"database={server.database} artifact_roots={tmp_path}" in server.log
    assert f"address={server.url}" in server.log


# Nothing is changed by a service that cannot serve


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_cannot_have_its_port_changes_nothing(old_path: Path, workers: int) -> None:
    before, files = dump_of(old_path), sorted(os.listdir(old_path.parent))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "registry", "serve", "--port", str(port)],
            env={
                **os.environ,
                "REGISTRY_WORKERS": str(workers),
                "REGISTRY_DATABASE_URL": f"sqlite:///{old_path}",
            },
            capture_output=True,
            text=True,
            cwd=old_path.parent,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "Cannot listen" in done.stderr
    assert migrate.current(f"sqlite:///{old_path}") == "0002"
    assert sorted(os.listdir(old_path.parent)) == files
    assert dump_of(old_path) == before


def test_an_upgrade_that_would_break_a_running_service_waits_and_is_refused(
    old_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another port, or by hand: what counts is who has the database open."""
    monkeypatch.setattr(upgrade_lock, "OTHERS_LEAVE_S", 2.0)
    said: list[str] = []
    with somebody_elses(old_path):
        for change in (migrate.prepare, migrate.upgrade):
            with pytest.raises(Refused, match="another process has it open"):
                change(f"sqlite:///{old_path}", notify=said.append)
    assert [sentence.split(" that")[0] for sentence in said] == ["Waiting for another process"] * 2
    assert migrate.current(f"sqlite:///{old_path}") == "0002"
    migrate.prepare(f"sqlite:///{old_path}")


def test_a_downgrade_is_refused_when_somebody_opens_the_database_while_it_goes_on(
    new_path: Path,
) -> None:
    before = dump_of(new_path)
    with ExitStack() as others:

        def open_it(_sentence: str) -> None:
            others.enter_context(somebody_elses(new_path))

        with pytest.raises(Refused, match=r"has opened .* meanwhile"):
            migrate.downgrade(f"sqlite:///{new_path}", "0002", notify=open_it)
    assert dump_of(new_path) == before
    assert migrate.check(f"sqlite:///{new_path}") == []
    assert list(new_path.parent.glob("*.backup")) == []


def test_an_upgrade_goes_on_when_the_older_service_has_left(old_path: Path) -> None:
    left: list[Any] = []

    def leave(sentence: str) -> None:
        left.append(sentence)
        process.communicate("")

    with somebody_elses(old_path) as process:
        migrate.prepare(f"sqlite:///{old_path}", notify=leave)
    assert "Waiting" in left[0]
    assert migrate.check(f"sqlite:///{old_path}") == []


@contextmanager
def somebody_elses(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the database open, as a service has, until its input ends."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute('SELECT count(*) FROM events').fetchall(); print('open', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


def test_the_tables_name_the_oldest_program_that_the_migrations_admit(new_path: Path) -> None:
    with sql(new_path) as connection:
        query = "SELECT value FROM settings WHERE name = 'min_program_revision'"
        assert connection.execute(query).fetchone() == (MIN_PROGRAM_REVISION,)
