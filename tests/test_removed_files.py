"""S16 when files of the database are removed, renamed or replaced beside several processes that
write to it: what was acknowledged is in the database or in a copy beside it, and both are sound."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from registry.errors import Busy
from registry.store.sqlite import file_guard, migrate
from registry.store.sqlite.engine import Database
from registry.store.sqlite.in_use import Announcement, Files, find_files
from registry.store.sqlite.inspect import look
from tests.commands import run_here
from tests.support import ROOT, Server, assert_sound, sql, wait_for

EMBEDDED = """
import sys, time
from registry import MetadataArtifactRegistry, Owner, RegistryError
registry = MetadataArtifactRegistry(sys.argv[1])
number = int(sys.argv[2])
while True:
    number += 10
    try:
        owner = Owner("ns", "c", "e", number)
        registry.register(owner, f"m{number}", "_base", "f.json", sys.argv[3])
        print(number, flush=True)
    except RegistryError:
        print("refused", flush=True)
        time.sleep(0.01)
"""


@dataclass
class Writers:
    """Who writes to one database from several processes, and what each was told."""

    path: Path
    acknowledged: set[int] = field(default_factory=set)
    refused: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def through(self, server: Server, first: int) -> None:
        number = first
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not self.stopping.is_set():
                number += 10
                owner = {"namespace": "ns", "component": "c", "endpoint": "e"}
                body = {"owner": {**owner, "instance_id": number}, "artifacts": []}
                answer = client.post("/v1/registrations", json=body)
                assert answer.status_code in (200, 503), answer.text
                self._told(number if answer.status_code == 200 else None)

    def listening_to(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._told(int(line) if line.strip().isdecimal() else None)

    def _told(self, number: int | None) -> None:
        if number is None:
            self.refused += 1
        else:
            self.acknowledged.add(number)

    @contextmanager
    def going_on(self, server: Server, *, embedded: int) -> Iterator[None]:
        """Threads that write through a service, and processes that write themselves."""
        threads = [
            threading.Thread(target=self.through, args=(server, first)) for first in range(6)
        ]
        processes = []
        for number in range(embedded):
            url, file = f"sqlite:///{self.path}", str(ROOT / "README.md")
            process = subprocess.Popen(
                [sys.executable, "-c", EMBEDDED, url, str(6 + number), file],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            threads.append(threading.Thread(target=self.listening_to, args=(process,)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for process in processes:
                process.kill()
            for thread in threads:
                thread.join(60)
            for process in processes:
                _, said = process.communicate()
                assert said == ""

    def has_acknowledged(self, more: int) -> Callable[[], bool]:
        before = len(self.acknowledged)
        return lambda: len(self.acknowledged) >= before + more


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.removed-*.backup"))


def registered(*paths: Path) -> set[int]:
    found: set[int] = set()
    for path in paths:
        with sql(path) as connection:
            found |= {int(n) for (n,) in connection.execute("SELECT instance_id FROM owners")}
        assert_sound(path)
    return found


def copy_of(path: Path, name: str) -> Path:
    with sql(path) as source, sql(path.with_name(name)) as target:
        source.backup(target)
    return path.with_name(name)


# What somebody does, each while everything writes. All but the last leave a database at the path.


def remove(*suffixes: str) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        for each in suffixes:
            beside(path, each).unlink(missing_ok=True)

    return do


def rename_log(path: Path) -> None:
    beside(path, "-wal").rename(path.with_name("elsewhere"))


def move_away_and_back(path: Path) -> None:
    path.rename(path.with_name("away"))
    time.sleep(0.1)
    path.with_name("away").rename(path)


def move_directory(path: Path) -> None:
    away = path.parent.with_name("away")
    path.parent.rename(away)
    time.sleep(0.1)
    away.rename(path.parent)


def replace(path: Path) -> None:
    os.replace(copy_of(path, "copy"), path)


def replace_all(path: Path) -> None:
    copy = copy_of(path, "copy")
    remove("-wal", "-shm")(path)
    os.replace(copy, path)


def remove_all_and_restore(path: Path) -> None:
    copy = copy_of(path, "copy")
    remove("", "-wal", "-shm")(path)
    done = run_here("db", "restore", copy, REGISTRY_DATABASE_URL=f"sqlite:///{path}")
    assert done.returncode == 0, done.stderr


def put_another_log_there(path: Path) -> None:
    copy = copy_of(path, "copy")
    with sql(copy) as connection:
        connection.execute("INSERT INTO settings VALUES ('another', 'x')")
        shutil.copy(beside(copy, "-wal"), path.with_name("another-log"))
    os.replace(path.with_name("another-log"), beside(path, "-wal"))


DEEDS: dict[str, Callable[[Path], None]] = {
    "remove -shm": remove("-shm"),
    "remove -wal": remove("-wal"),
    "remove both": remove("-wal", "-shm"),
    "rename -wal": rename_log,
    "replace -wal": put_another_log_there,
    "move away and back": move_away_and_back,
    "move directory": move_directory,
    "replace database": replace,
    "replace database, remove both": replace_all,
    "remove all, restore": remove_all_and_restore,
}


@pytest.mark.parametrize(("deed", "workers"), [*((deed, 2) for deed in DEEDS), ("remove both", 1)])
def test_files_that_are_removed_beside_writing_processes_take_nothing_acknowledged_with_them(
    tmp_path: Path, deed: str, workers: int
) -> None:
    """An embedded registry in another process writes as well, and commands look in between."""
    path = tmp_path / "data" / "registry.db"
    path.parent.mkdir()
    url = {"REGISTRY_DATABASE_URL": f"sqlite:///{path}"}
    with Server(path, workers=workers) as server:
        writers = Writers(path)
        with writers.going_on(server, embedded=workers):
            wait_for(writers.has_acknowledged(30))
            DEEDS[deed](path)
            for command in ("audit", "sweep"):
                assert run_here(command, **url).returncode in (0, 1, 2)
            wait_for(writers.has_acknowledged(30))
        wait_for(lambda: server.client.get("/health").status_code == 200)
        server.kill()
    assert writers.acknowledged <= registered(path, *copies(path))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_database_that_is_deleted_beside_processes_is_kept_as_one_copy_with_everything(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "registry.db"
    with Server(path, workers=workers) as server:
        writers = Writers(path)
        with writers.going_on(server, embedded=1):
            wait_for(writers.has_acknowledged(30))
            remove("", "-wal", "-shm")(path)
            wait_for(lambda: writers.refused > 20)
        wait_for(lambda: "is gone" in server.client.get("/health").text)
        assert server.client.get("/health").status_code == 503
        server.stop()
    (copy,) = copies(path)
    assert copy.name in server.log
    assert writers.acknowledged <= registered(copy)
    done = run_here("db", "restore", copy, REGISTRY_DATABASE_URL=f"sqlite:///{path}")
    assert done.returncode == 0, done.stderr
    assert writers.acknowledged <= registered(path)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_idle_service_notices_by_itself_and_saves_what_was_acknowledged(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "registry.db"
    with Server(path, sweep_interval_s=3600) as server:
        writers = Writers(path)
        with writers.going_on(server, embedded=0):
            wait_for(writers.has_acknowledged(30))
        remove("-wal", "-shm")(path)
        if how == "kill":
            wait_for(lambda: "what was acknowledged is saved" in server.log)
        getattr(server, how)()
    assert writers.acknowledged <= registered(path)


# Others that have it open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.prepare(f"sqlite:///{tmp_path}/registry.db")
    return tmp_path / "registry.db"


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{path}", busy_timeout_s=5)
    try:
        yield database
    finally:
        database.close()


def write(database: Database, name: str) -> None:
    with database.write() as conn:
        conn.run_text("INSERT INTO settings VALUES (?, 'x')", (name,))


def names(path: Path) -> set[str]:
    with sql(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM settings")}


REMOVED: Sequence[tuple[str, ...]] = [("-shm",), ("-wal",), ("-wal", "-shm")]


@pytest.mark.parametrize("suffixes", REMOVED)
def test_nobody_goes_on_while_another_has_removed_files_open(
    path: Path, suffixes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not who comes new, and not to look."""
    monkeypatch.setattr(file_guard, "REPEATED_AFTER_S", 0.0)
    monkeypatch.setattr("registry.store.sqlite.inspect.FREE_WITHIN_S", 0.1)
    with opened(path) as one, opened(path) as idle, opened(path) as new:
        write(one, "one")
        write(idle, "idle")
        remove(*suffixes)(path)
        for _ in range(3):
            with pytest.raises(Busy, match="let go"):
                write(one, "too early")
            with pytest.raises(Busy, match="let go"):
                write(new, "too early")
            with pytest.raises(Busy, match="let go"):
                look(path)
        idle.close()
        write(one, "late")
        write(new, "new")
    assert {"one", "idle", "late", "new"} <= names(path)
    assert "too early" not in names(path)


INSERT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as shell:
    shell.execute("INSERT INTO settings VALUES ('shell', 'x')")
"""

SHELL = """
import sqlite3, sys
shell = sqlite3.connect(sys.argv[1], isolation_level=None)
print(shell.execute("SELECT count(*) FROM settings").fetchone(), flush=True)
sys.stdin.readline()
shell.close()
"""


@pytest.mark.parametrize("suffixes", REMOVED)
def test_another_program_that_has_removed_files_open_is_waited_for_and_named(
    path: Path, suffixes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_guard, "REPEATED_AFTER_S", 0.0)
    shell = subprocess.Popen(
        [sys.executable, "-c", SHELL, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with opened(path) as one:
        write(one, "one")
        assert shell.stdout is not None
        shell.stdout.readline()
        remove(*suffixes)(path)
        with pytest.raises(Busy, match=rf"process {shell.pid}\)"):
            write(one, "too early")
        shell.communicate("\n", timeout=30)
        write(one, "late")
    assert {"one", "late"} <= names(path)
    assert "too early" not in names(path)
    assert_sound(path)


def test_what_another_program_wrote_to_a_log_of_its_own_is_kept_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_guard, "REPEATED_AFTER_S", 0.0)
    with opened(path) as one:
        write(one, "one")
        remove("-wal", "-shm")(path)
        subprocess.run([sys.executable, "-c", INSERT, str(path)], check=True)
        write(one, "late")
    assert {"one", "late"} <= names(path)
    assert "shell" not in names(path)
    assert len(list(path.parent.glob("*.replaced-*-wal"))) == 1
    assert_sound(path)


def test_what_cannot_be_saved_is_kept_open_until_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_guard, "REPEATED_AFTER_S", 0.0)
    other = copy_of(path, "other")

    def full(connection: sqlite3.Connection, target: str) -> Path:
        raise OSError(28, "No space left on device")

    with opened(path) as one:
        write(one, "one")
        with monkeypatch.context() as disk:
            disk.setattr("registry.store.sqlite.backup.keep_copy", full)
            os.replace(other, path)
            for _ in range(2):
                with pytest.raises(Exception, match="No space left on device"):
                    write(one, "too early")
        write(one, "late")
    (copy,) = copies(path)
    assert "one" in names(copy)
    assert "late" in names(path)


# What is announced


def test_an_announcement_is_contradicted_by_other_files_of_the_same_name_or_inode(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    for each in (path, beside(path, "-wal"), beside(path, "-shm")):
        each.touch()
    os.link(path, tmp_path / "b.db")
    files = find_files(str(path))
    first, second, linked = (Announcement(str(each)) for each in (path, path, tmp_path / "b.db"))
    first.announce(files)
    second.announce(files)
    second.wait_until_free(patience_s=0)
    for announcement in (second, linked):
        with pytest.raises(Busy):
            announcement.announce(Files(files.database, files.wal, (1, 1)))
        announcement.close()
    first.close()
    alone = Announcement(str(path))
    alone.announce(Files((1, 1), (2, 2), (3, 3)))
    alone.close()
    alone.close()


def test_what_a_process_announces_ends_with_it_though_a_forked_child_lives_on(
    path: Path,
) -> None:
    """Nobody has to wait for a child that has nothing open."""
    script = """
import os, signal, sys, time
from registry.store.sqlite.engine import Database
database = Database(sys.argv[1])
with database.write() as conn:
    conn.run_text("INSERT INTO settings VALUES ('parent', 'x')")
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    url = f"sqlite:///{path}"
    done = subprocess.run(
        [sys.executable, "-c", script, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    child = int(done.stdout)
    try:
        remove("-shm")(path)
        with opened(path) as database:
            write(database, "next")
    finally:
        os.kill(child, signal.SIGKILL)
    assert {"parent", "next"} <= names(path)
    assert_sound(path)
