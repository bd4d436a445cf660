"""Backup and restore: whole or not at all, whatever goes on meanwhile, wherever they are killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from registry.core.records import ArtifactKey, Owner
from registry.store.sqlite import compatibility, migrate
from registry.store.tables import HEAD_REVISION
from tests.commands import Done, run_here
from tests.support import Server, assert_sound, dump_of, sql, wait_for

KEY = ArtifactKey("tiny", "_base", "config.json")
ONE, TWO = (Owner("ns", "backend", "generate", number) for number in (1, 2))
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error"}


def url_of(path: Path) -> str:
    return f"sqlite:///{quote(str(path))}"


def db(path: Path, *arguments: object) -> Done:
    """`metadata-registry db ...` on a database."""
    return run_here("db", *arguments, REGISTRY_DATABASE_URL=url_of(path))


def db_apart(path: Path, *arguments: object) -> Done:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "registry", "db", *map(str, arguments)],
        env={**ENVIRONMENT, "REGISTRY_DATABASE_URL": url_of(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def fine(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: Done) -> str:
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A registry with an owner in it."""
    path = tmp_path / "registry.db"
    make(path, "first")
    yield path
    if path.exists():
        assert_sound(path)


def make(path: Path, name: str) -> None:
    """A registry that can be told from others by the name of its worker."""
    migrate.prepare(url_of(path))
    with sql(path) as connection:
        connection.execute(
            "INSERT INTO owners (namespace, component, endpoint, instance_id, worker_name, state, "
            "registered_at, renewed_at) VALUES ('ns', 'c', 'e', '7', ?, 'active', 5, 5)",
            (name,),
        )


def name_of(path: Path) -> str:
    with sql(path) as connection:
        ((name,),) = connection.execute("SELECT worker_name FROM owners")
    return str(name)


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


# Backup


WRITER = """
import asyncio, sys
from registry.config import Settings
from registry.store.sqlite.engine import Database
from registry.core.records import Offer, Owner
from registry.service.registry import Registry

async def main(url, pause_s):
    registry = Registry(Settings(database_url=url), Database(url))
    await registry.start()
    tasks = set()

    async def write(number):
        owner = Owner("ns", "backend", "generate", number)
        await registry.register(owner, [], lease_ttl_ms=None)
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()

    number = 0
    while True:
        number += 1
        task = asyncio.create_task(write(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(pause_s)

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


class Numbers:
    """A process that registers owner after owner, by number, and what it had acknowledged."""

    def __init__(self, path: Path, log: Path, per_s: int) -> None:
        self._log = log
        self._output = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, url_of(path), str(1 / per_s)],
            env=ENVIRONMENT,
            stdout=self._output,
        )

    @property
    def acknowledged(self) -> int:
        lines = self._log.read_text().splitlines()
        return int(lines[-1]) if lines else 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._output.close()


@contextmanager
def numbering(path: Path, per_s: int) -> Iterator[Numbers]:
    numbers = Numbers(path, path.with_name("acknowledged"), per_s)
    try:
        wait_for(lambda: numbers.acknowledged > 20)
        yield numbers
    finally:
        numbers.kill()


def numbers_in(path: Path) -> list[int]:
    with sql(path) as connection:
        rows = connection.execute(
            "SELECT CAST(instance_id AS INTEGER) FROM owners WHERE namespace = 'ns' "
            "AND endpoint = 'generate' ORDER BY 1"
        )
        return [number for (number,) in rows]


def test_a_backup_during_500_writes_a_second_is_a_prefix_of_the_acknowledged_history(
    path: Path,
) -> None:
    folder = path.parent
    with sql(path) as connection:  # So that copying takes a while.
        connection.execute(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 60000) "
            "INSERT INTO events (at, kind, reason) SELECT i, 'upgraded', printf('%0200d', i) FROM n"
        )
    counted = []
    with numbering(path, per_s=500) as numbers:
        for turn in range(2):
            before = numbers.acknowledged
            fine(db_apart(path, "backup", folder / f"{turn}.backup"))
            counted.append((before, numbers.acknowledged))
    for turn, (before, after) in enumerate(counted):
        restored = folder / f"{turn}.db"
        fine(db(restored, "restore", folder / f"{turn}.backup"))
        found = numbers_in(restored)
        assert found == list(range(1, len(found) + 1)), "not a prefix"
        assert before <= len(found), "what was acknowledged is missing"
        assert before < after, "the writer waited for the backup"
        assert_sound(restored)
    # The writer was killed: all that it acknowledged is in the database itself.
    assert len(numbers_in(path)) >= counted[-1][1]


def test_a_backup_says_what_it_wrote_and_holds_what_the_database_holds(path: Path) -> None:
    copy, before = path.with_name("copy.backup"), dump_of(path)
    found = json.loads(fine(db(path, "backup", copy, "--json")))
    assert found == {
        "path": str(copy),
        "revision": HEAD_REVISION,
        "size": copy.stat().st_size,
    }
    assert dump_of(copy) == before
    assert names_in(path.parent) >= {"copy.backup", "registry.db"}
    assert not [name for name in names_in(path.parent) if "partial" in name]


def test_a_backup_overwrites_nothing(path: Path) -> None:
    taken = path.with_name("taken")
    taken.write_bytes(b"precious")
    assert "taken" in refused(db(path, "backup", taken))
    assert taken.read_bytes() == b"precious"
    dangling = path.with_name("dangling")
    dangling.symlink_to(path.parent / "nowhere")
    refused(db(path, "backup", dangling))
    refused(db(path, "backup", path))
    assert names_in(path.parent) == {"registry.db", "taken", "dangling"}


def test_a_backup_that_cannot_be_made_leaves_nothing(path: Path) -> None:
    assert db(path, "backup", path.parent / "no folder" / "x").returncode == 2
    assert db(path.with_name("none.db"), "backup", path.parent / "x").returncode == 2
    assert names_in(path.parent) == {"registry.db"}


def damage(path: Path) -> None:
    """Overwrite a page in the middle; the first one, with what the file is, stays."""
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 2 * 4096)


def test_a_damaged_database_is_not_backed_up_as_if_it_were_sound(path: Path) -> None:
    damage(path)
    assert "damaged" in refused(db(path, "backup", path.with_name("copy")))
    assert names_in(path.parent) == {"registry.db"}
    path.unlink()


# Restore


def test_restoring_to_a_new_place_needs_no_force(path: Path) -> None:
    copy, other = path.with_name("copy.backup"), path.with_name("other.db")
    before = dump_of(path)
    fine(db(path, "backup", copy))
    found = json.loads(fine(db_apart(other, "restore", copy, "--json")))
    assert found == {"path": str(other), "revision": HEAD_REVISION, "kept": None}
    assert dump_of(other) == dump_of(copy) == before
    assert compatibility.find_problem(url_of(other)) is None


def test_a_database_that_is_there_is_replaced_only_with_force_and_kept_beside(path: Path) -> None:
    copy = path.with_name("copy.backup")
    fine(db(path, "backup", copy))
    with sql(path) as connection:
        connection.execute("UPDATE owners SET worker_name = 'second'")
    os.chmod(path, 0o640)

    assert "--force" in refused(db(path, "restore", copy))
    assert name_of(path) == "second"

    found = json.loads(fine(db(path, "restore", copy, "--force", "--json")))
    assert name_of(path) == "first"
    assert path.stat().st_mode & 0o777 == 0o640
    assert name_of(Path(found["kept"])) == "second"
    # What was kept is a backup like any other.
    fine(db(path, "restore", found["kept"], "--force"))
    assert name_of(path) == "second"


def test_restoring_behind_a_symlink_replaces_the_database_and_not_the_link(path: Path) -> None:
    copy, link = path.with_name("copy.backup"), path.with_name("link.db")
    fine(db(path, "backup", copy))
    link.symlink_to(path)
    fine(db(link, "restore", copy, "--force"))
    assert link.is_symlink()
    assert name_of(path) == "first"


def test_what_a_killed_service_left_in_its_log_is_kept(path: Path) -> None:
    copy = path.with_name("copy.backup")
    fine(db(path, "backup", copy))
    with numbering(path, per_s=500) as numbers:
        pass
    assert path.with_name("registry.db-wal").stat().st_size > 0
    acknowledged = numbers.acknowledged
    kept = Path(json.loads(fine(db(path, "restore", copy, "--force", "--json")))["kept"])
    assert len(numbers_in(kept)) >= acknowledged
    assert numbers_in(path) == []
    assert_sound(kept)


def test_a_database_that_is_in_use_is_not_replaced(serve: Callable[..., Server]) -> None:
    """An idle service counts as well."""
    server = serve(sweep_interval_s=3600)
    copy = server.database.with_name("copy.backup")
    fine(db(server.database, "backup", copy))
    before = names_in(server.database.parent)
    assert "Stop it first" in refused(db(server.database, "restore", copy, "--force"))
    assert "Stop it first" in refused(db(server.database, "downgrade", "0001", "--yes"))
    assert names_in(server.database.parent) == before
    assert server.register_copies(ONE, {KEY: b"{}"}).status_code == 200
    server.stop()
    fine(db(server.database, "restore", copy, "--force"))
    again = serve()
    assert again.fetch(KEY).status_code == 404
    assert again.register_copies(TWO, {KEY: b"{}"}).status_code == 200


def foreign(path: Path) -> None:
    with sql(path) as connection:
        connection.execute("CREATE TABLE t (a)")


def newer(path: Path) -> None:
    make(path, "newer")
    with sql(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE settings SET value = '9999' WHERE name = 'min_program_revision'")


def with_a_damaged_page(path: Path) -> None:
    make(path, "damaged")
    damage(path)


def cut(path: Path) -> None:
    make(path, "cut")
    os.truncate(path, 3 * 4096 + 100)


def with_a_broken_reference(path: Path) -> None:
    make(path, "broken")
    with sql(path) as connection:
        connection.execute("INSERT INTO owner_refs VALUES (1, 99, NULL, '/x', NULL, 'ok', 1, 1, 1)")


def with_a_broken_index(path: Path) -> None:
    make(path, "index")
    with sql(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET rootpage = 2 WHERE name = 'ix_events_entry_id'"
        )


BAD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_bytes(b"no database at all\n" * 1000),
    "folder": lambda path: path.mkdir(),
    "foreign": foreign,
    "newer": newer,
    "damaged page": with_a_damaged_page,
    "cut": cut,
    "broken reference": with_a_broken_reference,
    "broken index": with_a_broken_index,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sound_backup_is_refused_and_the_database_stays(path: Path, name: str) -> None:
    bad = path.with_name("bad")
    BAD[name](bad)
    before, names = dump_of(path), names_in(path.parent)
    assert str(bad) in refused(db(path, "restore", bad, "--force"))
    assert dump_of(path) == before
    assert names_in(path.parent) == names


def test_what_is_not_a_registry_is_never_replaced(path: Path) -> None:
    other = path.with_name("other.db")
    foreign(other)
    before = other.read_bytes()
    assert "another program" in refused(db(other, "restore", path, "--force"))
    assert other.read_bytes() == before


def test_a_damaged_database_can_be_replaced_and_is_kept_as_it_was(path: Path) -> None:
    copy = path.with_name("copy.backup")
    fine(db(path, "backup", copy))
    damage(path)
    before = path.read_bytes()
    kept = Path(json.loads(fine(db(path, "restore", copy, "--force", "--json")))["kept"])
    assert kept.read_bytes() == before
    assert name_of(path) == "first"


def test_a_log_of_a_database_that_is_gone_is_not_mixed_into_the_one_that_is_restored(
    path: Path,
) -> None:
    copy = path.with_name("copy.backup")
    fine(db(path, "backup", copy))
    with numbering(path, per_s=500):
        pass
    log = path.with_name("registry.db-wal").read_bytes()
    path.unlink()
    fine(db(path, "restore", copy))
    assert numbers_in(path) == []
    assert log in [each.read_bytes() for each in path.parent.glob("*.backup-wal")]


def test_an_older_backup_is_brought_up_to_date_when_a_service_starts(
    path: Path, serve: Callable[..., Server]
) -> None:
    old, copy = path.with_name("old.db"), path.with_name("old.backup")
    make(old, "old")
    fine(db(old, "downgrade", "0001", "--yes"))
    fine(db(old, "backup", copy))
    fine(db(path, "restore", copy, "--force"))
    assert migrate.current(url_of(path)) == "0001"
    assert serve().client.get("/health").status_code == 200
    assert migrate.current(url_of(path)) == HEAD_REVISION
    assert name_of(path) == "old"


def test_a_backup_on_a_read_only_medium_can_be_restored(path: Path) -> None:
    shelf = path.with_name("shelf")
    shelf.mkdir()
    fine(db(path, "backup", shelf / "copy"))
    before = (shelf / "copy").stat()
    fine(db(path.with_name("new.db"), "restore", shelf / "copy"))
    after = (shelf / "copy").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert names_in(shelf) == {"copy"}


# Killed at any step


KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from registry.store.sqlite.backup import back_up
from registry.store.sqlite.restore import restore

EFFECTS = {
    "open", "close", "link", "rename", "replace", "unlink", "remove", "chmod", "chown", "fsync",
    "lockf", "connect", "execute", "backup", "copyfile",
}

def run(what, folder):
    url = f"sqlite:///{folder}/registry.db"
    if what == "backup":
        back_up(url, folder / "new.backup")
    else:
        restore(url, folder / "copy.backup", force=True)

def killed(what, folder, at):
    \"\"\"Whether a child was killed before its effect number `at`; it may have ended before.\"\"\"
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    seen = 0

    def watch(frame, event, function):
        nonlocal seen
        if event == "c_call" and function.__name__ in EFFECTS:
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    try:
        run(what, folder)
    except BaseException:
        sys.setprofile(None)
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

what, template, workshop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
for at in range(1, 1000):
    folder = workshop / str(at)
    shutil.copytree(template, folder)
    if not killed(what, folder, at):
        break
    print(at, flush=True)
"""


def killed_everywhere(what: str, template: Path, workshop: Path) -> list[Path]:
    """Folders with what is left of a command that was killed before each of its effects, and last
    one with what is there when it was not."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            KILLED,
            what,
            template,
            workshop,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    steps = len(done.stdout.split())
    assert steps > 10
    return [workshop / str(number) for number in range(1, steps + 2)]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A database whose service was killed, with a log; and a backup that is another registry."""
    folder = tmp_path / "template"
    folder.mkdir()
    make(folder / "copy.backup", "restored")
    path = tmp_path / "registry.db"
    make(path, "first")
    with sql(path) as connection:
        connection.execute("UPDATE owners SET worker_name = 'original'")
        for suffix in ("", "-wal"):  # As if it had been killed here.
            shutil.copy(f"{path}{suffix}", folder)
    assert (folder / "registry.db-wal").stat().st_size > 0
    return folder


def test_a_backup_that_is_killed_at_any_step_leaves_the_database_and_no_half_of_a_backup(
    template: Path, tmp_path: Path
) -> None:
    workshop = tmp_path / "workshop"
    workshop.mkdir()
    *broken_off, whole = killed_everywhere("backup", template, workshop)
    assert name_of(whole / "new.backup") == "original"
    for folder in broken_off:
        assert name_of(folder / "registry.db") == "original"
        assert_sound(folder / "registry.db")
        if (folder / "new.backup").exists():
            assert name_of(folder / "new.backup") == "original"
            assert_sound(folder / "new.backup")


def test_a_restore_that_is_killed_at_any_step_leaves_the_old_database_or_the_new_one_and_the_old(
    template: Path, tmp_path: Path
) -> None:
    workshop = tmp_path / "workshop"
    workshop.mkdir()
    *broken_off, whole = killed_everywhere("restore", template, workshop)
    assert name_of(whole / "registry.db") == "restored"
    found = set()
    for folder in broken_off:
        name = name_of(folder / "registry.db")
        found.add(name)
        assert_sound(folder / "registry.db")
        if name == "restored":
            (kept,) = folder.glob("registry.db.replaced-*.backup")
            assert name_of(kept) == "original"
        else:
            assert name == "original"
        assert name_of(folder / "copy.backup") == "restored"
    assert found == {"original", "restored"}, "it was not killed on both sides of the change"


def test_what_a_killed_restore_leaves_does_not_stand_in_the_way_of_the_next(
    template: Path, tmp_path: Path
) -> None:
    workshop = tmp_path / "workshop"
    workshop.mkdir()
    broken_off = killed_everywhere("restore", template, workshop)
    for folder in broken_off[5::20]:
        fine(db(folder / "registry.db", "restore", folder / "copy.backup", "--force"))
        assert name_of(folder / "registry.db") == "restored"
