"""Faults of storage under a running service: it says what is wrong, loses nothing that it has
acknowledged, and goes on by itself when the cause is gone."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from registry.errors import Busy, RegistryError, StorageUnavailable
from registry.store.sqlite import compatibility, file_guard, migrate
from registry.store.sqlite.engine import Database
from registry.store.sqlite.errors import translated
from registry.store.sqlite.file_guard import REPEATED_AFTER_S
from registry.store.sqlite.point_reader import LOOK_EVERY_S
from tests.commands import run_here
from tests.support import Server, assert_sound, copied, dump_of, sql, wait_for

KEY = ArtifactKey("tiny", "_base", "config.json")
ONE = Owner("ns", "backend", "generate", 1)

Serve = Callable[..., Server]


def owner(number: int) -> Owner:
    return Owner("ns", "backend", "generate", number)


def backup_of(path: Path, name: str = "copy.backup") -> Path:
    """A copy of what is committed, made as a stranger would make it."""
    copy = path.with_name(name)
    with sql(path) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def health(server: Server) -> tuple[int, str]:
    answer = server.client.get("/health")
    return answer.status_code, answer.text


def is_healthy(server: Server) -> bool:
    return health(server)[0] == 200


def assert_says(server: Server, *words: str) -> None:
    """Health is 503 and the log is no shorter: both say what is wrong."""
    wait_for(lambda: health(server)[0] == 503)
    for word in words:
        assert word in health(server)[1]
        wait_for(lambda: word in server.log)  # noqa: B023


def register(server: Server, number: int) -> httpx2.Response:
    return server.register(owner(number), [copied(KEY, b"{}")])


def registered(path: Path) -> set[int]:
    with sql(path) as connection:
        return {int(n) for (n,) in connection.execute("SELECT instance_id FROM owners")}


def kept_copies(path: Path) -> list[Path]:
    """The copies of databases that were removed while they were in use."""
    return list(path.parent.glob(f"{path.name}.removed-*.backup"))


@dataclass
class Hammer:
    """Threads that register owner after owner: when each was asked for, and what came of it."""

    server: Server
    asked: dict[int, float] = field(default_factory=dict)
    acknowledged: dict[int, float] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)

    def _run(self, first: int, stop: threading.Event) -> None:
        number = first
        with httpx2.Client(base_url=self.server.url, timeout=30) as client:
            while not stop.is_set():
                number += 10
                self.asked[number] = time.monotonic()
                body = {
                    "owner": {
                        "namespace": "ns",
                        "component": "backend",
                        "endpoint": "generate",
                        "instance_id": number,
                    },
                    "artifacts": [],
                }
                answer = client.post("/v1/registrations", json=body)
                if answer.status_code == 200:
                    self.acknowledged[number] = time.monotonic()
                else:
                    self.refused[number] = answer.status_code

    @contextmanager
    def going_on(self, count: int = 4) -> Iterator[None]:
        """Hammers while the block runs."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._run, args=(first, stop)) for first in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def has_acknowledged(self, more: int) -> Callable[[], bool]:
        """A condition: so many more than now."""
        before = len(self.acknowledged)
        return lambda: len(self.acknowledged) >= before + more


# Deleted, moved, replaced


def test_nothing_that_is_asked_for_after_the_database_was_deleted_is_acknowledged(
    server: Server, database_path: Path
) -> None:
    copy = backup_of(database_path)
    hammer = Hammer(server)
    with hammer.going_on():
        wait_for(hammer.has_acknowledged(20))
        database_path.unlink()
        deleted_at = time.monotonic()
        wait_for(lambda: len(hammer.refused) > 20)
    late = {number for number in hammer.acknowledged if hammer.asked[number] > deleted_at}
    assert late == set()
    assert set(hammer.refused.values()) == {503}
    assert_says(server, "is gone", "db restore")
    shutil.copy(copy, database_path)
    wait_for(lambda: is_healthy(server))


def test_a_database_that_is_moved_away_and_back_has_everything_that_was_acknowledged(
    server: Server, database_path: Path
) -> None:
    server.register_copies(ONE, {KEY: b"{}"})
    away = database_path.with_name("away.db")
    hammer = Hammer(server)
    with hammer.going_on():
        for _ in range(3):
            wait_for(hammer.has_acknowledged(10))
            database_path.rename(away)
            wait_for(lambda: server.fetch(KEY).status_code == 503)
            away.rename(database_path)
            wait_for(lambda: server.fetch(KEY).status_code == 200)
    assert hammer.refused
    assert is_healthy(server)
    server.kill()
    assert set(hammer.acknowledged) <= registered(database_path)


def test_a_database_that_is_replaced_is_used_from_then_on_by_writes_and_soon_by_reads(
    server: Server, database_path: Path
) -> None:
    copy = backup_of(database_path)
    server.register_copies(ONE, {KEY: b"{}"})
    assert server.fetch(KEY).status_code == 200
    hammer = Hammer(server)
    with hammer.going_on():
        wait_for(hammer.has_acknowledged(20))
        os.replace(copy, database_path)
        replaced_at = time.monotonic()
        wait_for(lambda: server.fetch(KEY).status_code == 404)
        noticed_at = time.monotonic()
        wait_for(hammer.has_acknowledged(20))
    assert noticed_at - replaced_at < LOOK_EVERY_S + 5
    late = {number for number in hammer.acknowledged if hammer.asked[number] > replaced_at}
    assert late
    server.kill()
    assert late <= registered(database_path)
    # What was in the one before was not mixed in, and not thrown away.
    (kept,) = kept_copies(database_path)
    assert set(hammer.acknowledged) <= registered(database_path) | registered(kept)
    assert kept.name in server.log


def test_reads_alone_notice_soon_that_the_database_was_replaced_or_deleted(serve: Serve) -> None:
    server = serve(sweep_interval_s=3600)
    server.register_copies(ONE, {KEY: b"{}"})
    copy = backup_of(server.database)
    with sql(copy) as connection:
        connection.execute("UPDATE entries SET filename = 'other.json'")
    assert server.fetch(KEY).status_code == 200
    os.replace(copy, server.database)
    wait_for(lambda: server.fetch(KEY).status_code == 404, within_s=LOOK_EVERY_S + 5)
    server.database.unlink()
    wait_for(lambda: server.fetch(KEY).status_code == 503, within_s=LOOK_EVERY_S + 5)


def test_several_processes_of_a_service_all_go_over_to_a_database_that_replaced_theirs(
    serve: Serve, database_path: Path
) -> None:
    server = serve(workers=2)
    server.register_copies(ONE, {KEY: b"{}"})
    copy = backup_of(database_path)
    hammer = Hammer(server)
    with hammer.going_on():
        wait_for(hammer.has_acknowledged(20))
        os.replace(copy, database_path)
        replaced_at = time.monotonic()
        wait_for(hammer.has_acknowledged(50))
    late = {number for number in hammer.acknowledged if hammer.asked[number] > replaced_at}
    assert late
    server.kill()
    assert late <= registered(database_path)


def foreign(path: Path) -> None:
    with sql(path) as connection:
        connection.execute("CREATE TABLE t (a)")


def older(path: Path) -> None:
    migrate.prepare(f"sqlite:///{path}")
    migrate.downgrade(f"sqlite:///{path}", "0001")
    for backup in path.parent.glob(f"{path.name}.0*"):
        backup.unlink()


NOT_PROPER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.touch(), "no registry"),
    "text": (lambda path: path.write_bytes(b"no database at all\n" * 999), "not a SQLite database"),
    "another program's": (foreign, "another program"),
    "older": (older, "db upgrade"),
}


def test_a_file_that_is_no_registry_in_the_place_of_one_is_left_as_it_is_and_gone_round(
    server: Server, database_path: Path
) -> None:
    copy = backup_of(database_path)
    for make, says in NOT_PROPER.values():
        other = database_path.with_name("other")
        make(other)
        before = other.read_bytes()
        os.replace(other, database_path)
        wait_for(lambda: register(server, 1).status_code == 503)
        assert_says(server, says)
        assert database_path.read_bytes() == before
        shutil.copy(copy, database_path.with_name("again"))
        os.replace(database_path.with_name("again"), database_path)
        wait_for(lambda: is_healthy(server), within_s=REPEATED_AFTER_S + 10)


def test_a_restore_brings_a_service_back_whose_database_was_deleted(
    server: Server, database_path: Path
) -> None:
    server.register_copies(ONE, {KEY: b"{}"})
    copy = backup_of(database_path)
    database_path.unlink()
    assert register(server, 2).status_code == 503
    done = run_here("db", "restore", copy, REGISTRY_DATABASE_URL=f"sqlite:///{database_path}")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: is_healthy(server), within_s=REPEATED_AFTER_S + 10)
    assert server.fetch(KEY).content == b"{}"
    assert register(server, 3).status_code == 200


# The files beside the database


def test_a_log_that_is_removed_takes_nothing_with_it_that_was_acknowledged(
    server: Server, database_path: Path
) -> None:
    server.upload(b"{}")
    hammer = Hammer(server)
    with hammer.going_on():
        for suffix in ("-wal", "-shm", "-wal"):
            wait_for(hammer.has_acknowledged(10))
            database_path.with_name(database_path.name + suffix).unlink()
            wait_for(hammer.has_acknowledged(10))
    server.kill()
    assert set(hammer.acknowledged) <= registered(database_path)
    assert "were removed or replaced while it was in use" in server.log


# Cut


def grown(path: Path) -> None:
    """Some pages more than the tables have by themselves, and all of them in the file itself."""
    with sql(path) as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
            "INSERT INTO events (at, kind, reason) SELECT i, 'upgraded', printf('%0200d', i) FROM n"
        )
        fold = "PRAGMA wal_checkpoint(TRUNCATE)"  # A reader may be in its way for a moment.
        wait_for(lambda: connection.execute(fold).fetchone()[0] == 0)


@pytest.mark.parametrize("kept_bytes", [0, 1000, 20_000, 200_000])
def test_a_file_that_was_cut_is_not_written_any_more_until_a_backup_is_restored(
    server: Server, database_path: Path, kept_bytes: int
) -> None:
    server.register_copies(ONE, {KEY: b"{}"})
    grown(database_path)
    assert register(server, 4).status_code == 200  # It has seen how large the file is.
    copy = backup_of(database_path)
    os.truncate(database_path, kept_bytes)
    assert register(server, 2).status_code == 503
    assert_says(server, "restore")
    done = run_here(
        "db", "restore", copy, "--force", REGISTRY_DATABASE_URL=f"sqlite:///{database_path}"
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: is_healthy(server), within_s=REPEATED_AFTER_S + 10)
    assert register(server, 3).status_code == 200
    assert server.fetch(KEY).content == b"{}"


def test_a_database_that_shrank_by_vacuum_is_as_good_as_before(
    server: Server, database_path: Path
) -> None:
    grown(database_path)
    assert is_healthy(server)
    with sql(database_path) as connection:
        connection.execute("DELETE FROM events")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = database_path.stat().st_size
    assert server.register_copies(ONE, {KEY: b"{}"}).status_code == 200
    assert size < 200_000
    assert is_healthy(server)
    assert "damaged" not in server.log


# Full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a file system: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_full_disk_refuses_writes_keeps_what_was_acknowledged_and_is_left_behind(
    small_disk: Path,
) -> None:
    path = small_disk / "registry.db"
    with Server(path, min_free_bytes=0) as server:
        server.register_copies(ONE, {KEY: b"{}"})
        assert is_healthy(server)
        acknowledged = {1}
        filler = fill(small_disk)
        answer = register(server, 1)
        while answer.status_code == 200 and len(acknowledged) < 500:
            answer = register(server, len(acknowledged) + 1)
            acknowledged |= {len(acknowledged) + 1} if answer.status_code == 200 else set()
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert "disk is full" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        assert_says(server, "disk is full")
        assert "SQLITE_FULL" in server.client.get("/health").json()["checks"]["database"]
        assert server.upload(os.urandom(200_000)).status_code == 503
        assert server.fetch(KEY).content == b"{}"
        assert registered(path) == acknowledged

        filler.unlink()
        assert register(server, 1000).status_code == 200
        wait_for(lambda: is_healthy(server))
        wait_for(lambda: "writes work again" in server.log)

        fill(small_disk)
        server.kill()
    assert acknowledged | {1000} <= registered(path)
    assert_sound(path)


def test_a_backup_on_a_full_disk_is_refused_and_leaves_nothing(
    small_disk: Path, database_path: Path
) -> None:
    migrate.prepare(f"sqlite:///{database_path}")
    fill(small_disk)
    url = f"sqlite:///{database_path}"
    done = run_here("db", "backup", small_disk / "copy", REGISTRY_DATABASE_URL=url)
    assert done.returncode == 2
    assert "could not be written" in done.stderr
    assert {each.name for each in small_disk.iterdir()} == {"filler"}


# Not permitted


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
_libc = ctypes.CDLL(None)


def without_power() -> None:
    """Root as any other user: the permissions of files count for it as well."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory whose permissions are played with."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)


def test_a_lost_permission_shows_in_health_and_nothing_has_to_be_restarted_when_it_is_given_back(
    home: Path,
) -> None:
    path = home / "registry.db"
    with Server(path, before_start=without_power) as server:
        server.register_copies(ONE, {KEY: b"{}"})
        assert is_healthy(server)
        acknowledged = {1}
        for place, mode, given_back, says in [
            (path, 0o000, 0o600, "may not be read and written"),
            (path, 0o444, 0o600, "may not be read and written"),
            (home, 0o555, 0o700, "may not be written by this user"),
            (home, 0o000, 0o700, "cannot be reached"),
        ]:
            place.chmod(mode)
            wait_for(lambda: health(server)[0] == 503)
            assert says in health(server)[1]
            number = len(acknowledged) + 1
            if register(server, number).status_code == 200:
                acknowledged.add(number)
            place.chmod(given_back)
            wait_for(lambda: is_healthy(server), within_s=REPEATED_AFTER_S + 10)
            assert register(server, 1).status_code == 200
        assert "cannot be reached" in server.log
        server.kill()
    assert acknowledged <= registered(path)
    assert_sound(path)


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [(0o444, 0o700), (0o000, 0o700), (0o600, 0o555)]
)
def test_a_service_that_may_not_write_its_database_does_not_start_and_says_why(
    home: Path, file_mode: int, folder_mode: int
) -> None:
    path = home / "registry.db"
    migrate.prepare(f"sqlite:///{path}")
    path.chmod(file_mode)
    home.chmod(folder_mode)
    with pytest.raises(AssertionError, match="by this user"):
        Server(path, before_start=without_power)


USED_UP = """
import os, sqlite3, sys
from registry.errors import StorageUnavailable
from registry.store.sqlite.engine import Database
from registry.store.sqlite.errors import translated
from registry.store.sqlite.inspect import look
from pathlib import Path
import resource
database = Database(sys.argv[1])
if sys.argv[2] == "open":
    with database.read() as conn:
        conn.run_text("SELECT 1")
database.guard.ensure_current()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
def write():
    with database.write() as conn:
        conn.run_text("SELECT 1")
def read():
    with database.read() as first, database.read() as second:
        second.run_text("SELECT 1")
for use in (write, read, lambda: look(Path(database.path))):
    try:
        use()
    except Exception as error:
        print(type(error).__name__, getattr(error, "detail", error))
    else:
        print("nothing failed")
for each in held:
    os.close(each)
for use in (write, read):
    use()
"""


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_process_out_of_open_files_is_told_so_and_not_to_check_rights(
    database_path: Path, state: str
) -> None:
    """One code of SQLite's has several causes."""
    migrate.prepare(f"sqlite:///{database_path}")
    done = subprocess.run(
        [sys.executable, "-c", USED_UP, f"sqlite:///{database_path}", state],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert "ulimit -n" in line
        assert "right" not in line


def put_in_the_way(path: Path, suffix: str) -> None:
    path.with_name(path.name + suffix).mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: put_in_the_way(path, "-wal"), "-wal is not a regular file"),
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.parent.rename(path.parent.with_name("x")), "No such file"),
    ],
)
def test_a_file_that_sqlite_cannot_open_is_named_with_its_cause(
    home: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path = home / "registry.db"
    migrate.prepare(f"sqlite:///{path}")
    database = Database(f"sqlite:///{path}")
    spoil(path)
    with pytest.raises(StorageUnavailable, match=says), translated(path):
        database.connect("rw")
    home.mkdir(exist_ok=True)


# In one process


@pytest.fixture
def watched(database_path: Path) -> Iterator[Database]:
    """A database as the service opens it."""
    url = f"sqlite:///{database_path}"
    migrate.prepare(url)
    database = Database(url, busy_timeout_s=5, accept=compatibility.acceptor(url))
    yield database
    database.close()


def write(database: Database, name: str) -> None:
    with database.write() as conn:
        conn.run_text("INSERT INTO settings VALUES (?, 'x')", (name,))


def names(path: Path) -> set[str]:
    with sql(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM settings")}


def test_a_write_whose_database_is_replaced_in_the_middle_of_it_is_not_acknowledged(
    watched: Database, database_path: Path
) -> None:
    copy = backup_of(database_path)

    def write_slowly() -> None:
        with watched.write() as conn:
            conn.run_text("INSERT INTO settings VALUES ('during', 'x')")
            os.replace(copy, database_path)

    with pytest.raises(StorageUnavailable, match="replaced while"):
        write_slowly()
    write(watched, "after")
    assert names(database_path) >= {"after"}
    assert "during" not in names(database_path)


def test_a_write_that_waited_while_the_database_was_replaced_goes_to_the_new_one(
    watched: Database, database_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever replaces a database in an orderly way holds its write lock meanwhile."""
    copy = backup_of(database_path)
    write(watched, "before")
    waits = threading.Event()
    pause = random.uniform

    def waiting(low: float, high: float) -> float:
        waits.set()
        return pause(low, high)

    monkeypatch.setattr("registry.store.sqlite.locks.random.uniform", waiting)
    with sql(database_path) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=write, args=(watched, "waited"))
        thread.start()
        assert waits.wait(30)
        os.replace(copy, database_path)
        other.execute("ROLLBACK")
        thread.join(30)
    assert "waited" in names(database_path)
    assert "before" not in names(database_path)


def test_connections_that_were_in_use_are_closed_when_they_come_back(
    watched: Database, database_path: Path
) -> None:
    copy = backup_of(database_path)
    with watched.read() as old:
        os.replace(copy, database_path)
        with pytest.raises(Busy, match="about to be opened anew"):
            write(watched, "too early")
        assert old.run_text("SELECT count(*) FROM settings WHERE name = 'new'") == [(0,)]
    time.sleep(REPEATED_AFTER_S)
    write(watched, "new")
    for _ in range(3):
        with watched.read() as new:
            assert new.run_text("SELECT count(*) FROM settings WHERE name = 'new'") == [(1,)]


def test_a_removed_log_is_written_back_only_when_no_other_connection_is_in_use(
    watched: Database, database_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_guard, "REPEATED_AFTER_S", 0.0)
    write(watched, "kept")
    with watched.read() as reader:
        assert reader.run_text("SELECT count(*) FROM settings WHERE name = 'kept'") == [(1,)]
        database_path.with_name("registry.db-wal").unlink()
        with pytest.raises(RegistryError, match="about to be opened anew"):
            write(watched, "too early")
    write(watched, "in time")
    watched.close()
    assert {"kept", "in time"} <= names(database_path)
    assert "too early" not in names(database_path)


def test_threads_that_notice_a_replaced_database_together_open_it_once(
    watched: Database, database_path: Path
) -> None:
    write(watched, "before")
    for turn in range(5):
        copy = backup_of(database_path, f"{turn}.backup")
        before = watched.guard.generation
        started = threading.Barrier(9)

        def work(number: int, started: threading.Barrier = started, turn: int = turn) -> None:
            started.wait(30)
            write(watched, f"{turn}-{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        os.replace(copy, database_path)
        started.wait(30)
        for thread in threads:
            thread.join(30)
        assert {f"{turn}-{number}" for number in range(8)} <= names(database_path)
        assert watched.guard.generation == before + 1


def test_the_log_of_what_is_there_is_never_taken_for_a_left_over_one(
    watched: Database, database_path: Path
) -> None:
    """Another process may have opened the new database first."""
    write(watched, "old")
    copy = backup_of(database_path)
    with sql(copy) as connection:
        connection.execute("DELETE FROM settings WHERE name = 'old'")
    os.replace(copy, database_path)
    for suffix in ("-wal", "-shm"):
        database_path.with_name(database_path.name + suffix).unlink()
    with sql(database_path) as other:
        other.execute("INSERT INTO settings VALUES ('other', 'x')")
        write(watched, "mine")
        assert {"other", "mine"} <= names(database_path)
    assert list(database_path.parent.glob("*.replaced-*")) == []


def test_what_fails_is_logged_once_and_again_when_it_works(
    watched: Database,
    database_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.store.failure_log.CALM_S", 0.0)
    write(watched, "before")
    away = database_path.with_name("away")
    database_path.rename(away)
    for number in range(3):
        with pytest.raises(StorageUnavailable):
            write(watched, str(number))
    away.rename(database_path)
    for number in range(3):
        write(watched, str(number))
    said = [record.getMessage() for record in caplog.records]
    assert [each.split(":")[0] for each in said if each.startswith("writes")] == [
        "writes fail",
        "writes work again",
    ]
    assert "away" not in dump_of(database_path)
