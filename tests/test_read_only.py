"""Commands that only read, where this user may not write: mounts, files, directories."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from registry.core.records import ArtifactKey, Owner
from registry.errors import Busy
from registry.store.sqlite import migrate
from registry.store.sqlite.inspect import reading
from tests.commands import Done, run_here
from tests.support import Server, assert_sound, sql
from tests.test_storage import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, _libc, without_power

COMMANDS: list[tuple[str, ...]] = [
    ("audit",),
    ("verify",),
    ("sweep", "--dry-run"),
    ("sql", "SELECT count(*) FROM owners"),
    ("db", "current"),
    ("db", "check"),
    ("db", "history"),
    ("db", "backup", "{copy}"),
]
WRITING: list[tuple[str, ...]] = [
    ("sweep",),
    ("db", "upgrade", "head"),
    ("db", "downgrade", "0002", "--yes"),
]
KEY = ArtifactKey("m", "_base", "config.json")
OWNER = Owner("ns", "c", "e", 1)


def give_up_power() -> None:
    """Root as any other user, from now on in this process and in those that it starts."""
    without_power()
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    capabilities = ctypes.create_string_buffer(24)
    assert _libc.capget(header, capabilities) == 0
    effective, *others = struct.unpack("=6I", capabilities.raw[:24])
    effective &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert _libc.capset(header, struct.pack("=6I", effective, *others)) == 0


def run(path: Path, command: Sequence[str]) -> Done:
    """A command as a user without the power to overlook permissions, in a forked process."""
    copy = path.parent.parent / "copy.db"
    copy.unlink(missing_ok=True)
    arguments = [each.replace("{copy}", str(copy)) for each in command]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            give_up_power()
            done = run_here(*arguments, REGISTRY_DATABASE_URL=f"sqlite:///{path}")
            os.write(writer, json.dumps([done.returncode, done.stdout, done.stderr]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        answer = json.load(said)
    os.waitpid(child, 0)
    return Done(*answer)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def give_back(path: Path) -> None:
    path.parent.chmod(0o700)
    path.chmod(0o600)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A registry in a directory whose permissions are played with."""
    path = tmp_path / "data" / "registry.db"
    path.parent.mkdir()
    migrate.prepare(f"sqlite:///{path}")
    yield path
    give_back(path)
    assert_sound(path)


@contextmanager
def nobody(path: Path) -> Iterator[None]:
    yield


@contextmanager
def a_service(path: Path) -> Iterator[None]:
    with Server(path) as server:
        server.register_copies(OWNER, {KEY: b"{}"})
        yield


@contextmanager
def a_killed_service(path: Path) -> Iterator[None]:
    with Server(path) as server:
        server.register_copies(OWNER, {KEY: b"{}"})
        server.kill()
    yield


BESIDE = {"nobody": nobody, "a service": a_service, "a killed service": a_killed_service}
MODES = {"directory": (0o555, 0o600), "file": (0o755, 0o444), "both": (0o555, 0o444)}


def may_only_read(path: Path, mode: str = "both") -> None:
    folder_mode, file_mode = MODES[mode]
    path.parent.chmod(folder_mode)
    path.chmod(file_mode)


@pytest.mark.parametrize("beside", BESIDE)
def test_what_only_reads_works_without_the_right_to_write_and_leaves_nothing(
    path: Path, beside: str
) -> None:
    with BESIDE[beside](path):
        before = names(path)
        for mode in MODES:
            may_only_read(path, mode)
            done = run(path, ("sql", "SELECT count(*) FROM owners", "--csv"))
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[-1] == ("0" if beside == "nobody" else "1")
        for command in COMMANDS:
            done = run(path, command)
            assert done.returncode in (0, 1), (command, done.stderr)
            assert "Traceback" not in done.stderr
        assert names(path) == before
        give_back(path)


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
def test_what_writes_says_what_it_may_not(path: Path, command: tuple[str, ...]) -> None:
    before = path.read_bytes()
    may_only_read(path)
    done = run(path, command)
    assert done.returncode == 2
    assert "may not be written by this user" in done.stderr
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_read_is_not_left_out_in_silence(path: Path) -> None:
    """What was committed last is only there. The message says what to do, and that works."""
    with a_killed_service(path):
        path.with_name("registry.db-shm").unlink()
    may_only_read(path)
    for command in COMMANDS:
        if command != ("db", "history"):
            done = run(path, command)
            assert done.returncode == 2, command
            assert "copy registry.db and registry.db-wal to another directory" in done.stderr
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    for each in (path, path.with_name("registry.db-wal")):
        shutil.copy(each, elsewhere)
    (elsewhere / "registry.db").chmod(0o600)
    done = run(elsewhere / "registry.db", ("sql", "SELECT count(*) FROM owners", "--csv"))
    assert done.stdout.split()[-1] == "1", done.stderr


def test_a_file_that_is_changed_while_it_is_read_as_it_is_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.store.sqlite.file_access.may_write", lambda path: False)
    with ExitStack() as stack:
        connection = stack.enter_context(reading(path))
        assert connection.execute("SELECT count(*) FROM owners").fetchall() == [(0,)]
        with sql(path) as other:
            other.execute("INSERT INTO settings VALUES ('a', 'b')")
        with pytest.raises(Busy, match="was changed while it was read"):
            stack.close()


WHERE_NO_REGISTRY_IS = [
    ("audit",),
    ("verify",),
    ("sweep",),
    ("sweep", "--dry-run"),
    ("sql", "SELECT 1"),
]


@pytest.mark.parametrize("command", [*WHERE_NO_REGISTRY_IS, ("db", "check"), ("db", "backup", "x")])
def test_in_a_wrong_directory_every_command_says_that_no_registry_is_there(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here(*command)
    assert done.returncode == 2
    assert f"There is no registry in {tmp_path}/registry.db" in done.stderr
    assert "--database-url" in done.stderr
    assert "restart" not in done.stderr.lower()
    assert list(tmp_path.iterdir()) == []
