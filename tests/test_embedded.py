"""The in-process registry, as a Python program uses it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry import ArtifactKey, MetadataArtifactRegistry, Owner, Receipt, RegistryError
from registry.core.records import Artifact, Kept, Outcome, OwnerState, Registration
from registry.errors import (
    Busy,
    Conflict,
    DatabaseRefused,
    FileUnreadable,
    Invalid,
    NotRegistered,
    PathNotAllowed,
    SettingsError,
    TooLarge,
    Unserveable,
)
from registry.store.ops import blobs, register
from registry.store.reads.lookup import Location
from registry.store.sqlite.engine import Database
from tests.support import assert_sound, checksum, dump_of, sql

OWNER = Owner("dynamo", "backend", "generate", instance_id=7, lora_slug=None)
OTHER = Owner("dynamo", "backend", "prefill", 7)
MODEL = ("llama-3-8b", "_base")
NAME = (*MODEL, "tokenizer.json")


@pytest.fixture
def registry(database_path: Path) -> Iterator[MetadataArtifactRegistry]:
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "tokenizer.json", b"{}")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def hold_a_copy(database_path: Path, owner: Owner, content: bytes) -> None:
    """As a worker does through a service on the same file."""
    upload = blobs.Upload(checksum(content), len(content), lambda: content)
    item = Registration(owner, (Artifact(ArtifactKey(*NAME), checksum(content)),))
    database = Database(f"sqlite:///{database_path}")
    with database.write() as conn:
        blobs.store_blobs(conn, conn.now, [upload])
        (outcome,) = register.register(conn, conn.now, [item])
    database.close()
    assert not isinstance(outcome, RegistryError)


# The contract


def test_the_registry_does_what_its_documentation_says(
    registry: MetadataArtifactRegistry, file: Path
) -> None:
    assert registry.is_empty()
    assert len(registry) == 0
    assert registry.register(OWNER, *NAME, str(file)) is Outcome.CREATED
    assert registry.get(*NAME) == file
    assert registry.read(*NAME) == b"{}"
    assert len(registry) == 1
    assert not registry.is_empty()

    assert registry.register(OTHER, *NAME, file) is Outcome.SHARED
    assert registry.register(OTHER, *NAME, file) is Outcome.UNCHANGED
    receipt = registry.unregister_for_owner(OWNER)
    assert receipt == Receipt(OWNER, 1, (), (Kept(ArtifactKey(*NAME), 1),))
    assert registry.unregister(*MODEL) == Receipt(None, 1, (ArtifactKey(*NAME),))
    assert registry.get(*NAME) is None
    with pytest.raises(NotRegistered):
        registry.read(*NAME)
    assert registry.is_empty()


def test_an_empty_registry_is_still_true(registry: MetadataArtifactRegistry) -> None:
    """`if registry:` asks whether there is one, although it has a length."""
    assert registry


def test_unregistering_again_or_an_unknown_owner_is_a_receipt_of_zeros(
    registry: MetadataArtifactRegistry, file: Path
) -> None:
    """S7."""
    registry.register(OWNER, *NAME, file)
    registry.unregister_for_owner(OWNER)
    assert registry.unregister_for_owner(OWNER) == Receipt(OWNER)
    assert registry.unregister_for_owner(OTHER) == Receipt(OTHER)
    assert registry.unregister("nobodys", "_base") == Receipt(None)


def test_without_a_lease_nothing_ends_and_with_one_it_is_kept(
    registry: MetadataArtifactRegistry, file: Path
) -> None:
    registry.register(OWNER, *NAME, file)
    (holder,) = registry.explain(*NAME).holders
    assert holder.lease_expires_at is None
    registry.register(OWNER, *NAME, file, lease_ttl_s=1.5)
    (holder,) = registry.explain(*NAME).holders
    assert holder.lease_expires_at is not None
    with pytest.raises(Invalid):
        registry.register(OWNER, *NAME, file, lease_ttl_s=0)


def test_the_path_that_get_answers_is_resolved(
    registry: MetadataArtifactRegistry, file: Path, tmp_path: Path
) -> None:
    link = tmp_path / "snapshot.json"
    link.symlink_to(file)
    registry.register(OWNER, *NAME, link)
    assert registry.get(*NAME) == file


def test_a_relative_path_starts_at_the_working_directory(
    registry: MetadataArtifactRegistry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    registry.register(OWNER, *NAME, file.name)
    assert registry.get(*NAME) == file


def test_dots_behind_a_symlink_lead_where_the_system_goes(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """`link/../file` is beside the link's target and not beside the link."""
    write(tmp_path / "file.json", b"beside the link")
    there = write(tmp_path / "elsewhere" / "file.json", b"beside the target")
    (tmp_path / "elsewhere" / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "folder")
    path = f"{tmp_path}/link/../file.json"
    assert Path(path).read_bytes() == b"beside the target"
    registry.register(OWNER, *NAME, path)
    assert registry.get(*NAME) == there
    assert registry.read(*NAME) == b"beside the target"


def test_a_path_that_is_not_utf_8_is_refused_and_harms_nobody(
    registry: MetadataArtifactRegistry, tmp_path: Path, file: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.json"
    Path(os.fsdecode(odd)).write_bytes(b"{}")
    link = tmp_path / "link.json"
    link.symlink_to(os.fsdecode(odd))
    for path in (os.fsdecode(odd), link):
        with pytest.raises(FileUnreadable):
            registry.register(OWNER, *NAME, path)
    assert registry.get(*NAME) is None
    assert registry.register(OWNER, *NAME, file) is Outcome.CREATED


def test_an_owner_that_ended_is_kept_as_a_tombstone_and_may_come_back(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path
) -> None:
    registry.register(OWNER, *NAME, file)
    registry.unregister_for_owner(OWNER)
    with sql(database_path) as connection:
        assert connection.execute("SELECT state, end_reason FROM owners").fetchall() == [
            (OwnerState.DETACHED, "unregistered")
        ]
    assert registry.register(OWNER, *NAME, file) is Outcome.CREATED
    with sql(database_path) as connection:
        assert connection.execute("SELECT state, ended_at FROM owners").fetchall() == [
            (OwnerState.ACTIVE, None)
        ]


# Sharing and conflicts


def test_the_same_content_from_another_path_is_shared_and_each_owner_keeps_its_path(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """S1 and S5."""
    mine, theirs = write(tmp_path / "a/t.json", b"same"), write(tmp_path / "b/t.json", b"same")
    registry.register(OWNER, *NAME, mine)
    assert registry.register(OTHER, *NAME, theirs) is Outcome.SHARED
    assert {holder.path for holder in registry.explain(*NAME).holders} == {str(mine), str(theirs)}
    registry.unregister_for_owner(OWNER)
    mine.unlink()
    assert registry.get(*NAME) == theirs
    assert registry.read(*NAME) == b"same"


def test_other_content_is_a_conflict_that_names_the_holders_and_changes_nothing(
    registry: MetadataArtifactRegistry, tmp_path: Path, database_path: Path
) -> None:
    """S2: both checksums and the holders; one event, and none for the same refusal again."""
    registry.register(OWNER, *NAME, write(tmp_path / "a.json", b"first"))
    before = dump_of(database_path)
    other = write(tmp_path / "b.json", b"second")
    with pytest.raises(Conflict) as refused:
        registry.register(OTHER, *NAME, other)
    with pytest.raises(Conflict):
        registry.register(OTHER, *NAME, other)
    (conflict,) = refused.value.conflicts
    assert conflict.registered == checksum(b"first")
    assert conflict.offered == checksum(b"second")
    assert [holder.owner for holder in conflict.holders] == [OWNER]
    after = dump_of(database_path)
    assert {name for name in before if after[name] != before[name]} == {"events", "ids"}
    assert len(after["events"]) == len(before["events"]) + 1


def test_a_sole_holder_replaces_its_content(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """S3."""
    registry.register(OWNER, *NAME, write(tmp_path / "a.json", b"first"))
    second = write(tmp_path / "b.json", b"second")
    assert registry.register(OWNER, *NAME, second) is Outcome.REPLACED
    assert registry.read(*NAME) == b"second"
    entry = registry.explain(*NAME).entry
    assert entry is not None
    assert entry.generation == 2


# Reading


def test_read_falls_back_to_another_holder_whose_bytes_are_right(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """S12: a file that changed or is gone is passed over; with none left nothing is served."""
    owners = [Owner("dynamo", "backend", "generate", number) for number in range(3)]
    paths = [write(tmp_path / f"{number}.json", b"right") for number in range(3)]
    for owner, path in zip(owners, paths, strict=True):
        registry.register(owner, *NAME, path)
    paths[0].unlink()
    assert registry.read(*NAME) == b"right"
    write(paths[1], b"wrong")
    assert registry.read(*NAME) == b"right"
    paths[2].unlink()
    with pytest.raises(Unserveable):
        registry.read(*NAME)
    assert len(registry) == 1
    write(paths[2], b"right")
    assert registry.read(*NAME) == b"right"


def test_read_falls_back_to_a_copy(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path
) -> None:
    registry.register(OWNER, *NAME, file)
    hold_a_copy(database_path, OTHER, b"{}")
    file.unlink()
    assert registry.read(*NAME) == b"{}"


def test_get_is_none_while_only_copies_are_held(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path
) -> None:
    hold_a_copy(database_path, OTHER, b"{}")
    assert registry.get(*NAME) is None
    assert registry.read(*NAME) == b"{}"
    assert not registry.is_empty()
    registry.register(OWNER, *NAME, file)
    assert registry.get(*NAME) == file
    registry.unregister_for_owner(OWNER)
    assert registry.get(*NAME) is None


@pytest.mark.parametrize("swap", ["fifo", "directory", "symlink", "other content"])
def test_what_took_the_place_of_a_file_is_not_read(
    registry: MetadataArtifactRegistry, file: Path, tmp_path: Path, swap: str
) -> None:
    registry.register(OWNER, *NAME, file)
    file.unlink()
    if swap == "fifo":
        os.mkfifo(file)
    elif swap == "directory":
        file.mkdir()
    elif swap == "symlink":
        file.symlink_to(write(tmp_path / "target.json", b"[]"))
    else:
        write(file, b"[]")
    with pytest.raises(Unserveable):
        registry.read(*NAME)


class Interrupted(MetadataArtifactRegistry):
    """Something happens between finding the holders and reading their bytes."""

    interruptions: list[MetadataArtifactRegistry]

    def _content(self, location: Location) -> bytes | None:
        while self.interruptions:
            self.interrupt(self.interruptions.pop())
        return super()._content(location)

    def interrupt(self, other: MetadataArtifactRegistry) -> None:
        raise NotImplementedError


def test_what_is_unregistered_while_it_is_read_is_not_registered(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path
) -> None:
    class Unregistering(Interrupted):
        def interrupt(self, other: MetadataArtifactRegistry) -> None:
            other.unregister_for_owner(OWNER)
            file.unlink()

    registry.register(OWNER, *NAME, file)
    with Unregistering(f"sqlite:///{database_path}") as reader:
        reader.interruptions = [registry]
        with pytest.raises(NotRegistered):
            reader.read(*NAME)


def test_what_is_replaced_while_it_is_read_is_read_anew(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path, tmp_path: Path
) -> None:
    class Replacing(Interrupted):
        def interrupt(self, other: MetadataArtifactRegistry) -> None:
            other.register(OWNER, *NAME, write(tmp_path / "new.json", b"new"))
            file.unlink()

    registry.register(OWNER, *NAME, file)
    with Replacing(f"sqlite:///{database_path}") as reader:
        reader.interruptions = [registry]
        assert reader.read(*NAME) == b"new"


# What may be registered


def test_without_roots_any_readable_file_may_be_registered(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    """The caller is trusted."""
    assert registry.register(OWNER, *NAME, write(tmp_path / "x", b"")) is Outcome.CREATED


def test_with_roots_only_files_below_them_may_be_registered(
    database_path: Path, tmp_path: Path
) -> None:
    """S13: symlinks followed, dots resolved, and a sibling with the root's name in front."""
    root = tmp_path / "root"
    inside = write(root / "in.json", b"in")
    outside = write(tmp_path / "root-beside" / "out.json", b"out")
    (root / "link.json").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    with MetadataArtifactRegistry(f"sqlite:///{database_path}", [root]) as registry:
        for path in (
            outside,
            root / "link.json",
            root / "folder" / "out.json",
            root / ".." / "root-beside" / "out.json",
        ):
            with pytest.raises(PathNotAllowed):
                registry.register(OWNER, *NAME, path)
        assert registry.is_empty()
        registry.register(OWNER, *NAME, root / "." / "in.json")
        assert registry.get(*NAME) == inside


def test_with_no_root_at_all_nothing_may_be_registered(database_path: Path, file: Path) -> None:
    with (
        MetadataArtifactRegistry(f"sqlite:///{database_path}", []) as registry,
        pytest.raises(PathNotAllowed),
    ):
        registry.register(OWNER, *NAME, file)


def test_files_that_another_user_of_the_database_registered_outside_of_the_roots_are_not_read(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path, tmp_path: Path
) -> None:
    registry.register(OWNER, *NAME, file)
    (tmp_path / "root").mkdir()
    with MetadataArtifactRegistry(f"sqlite:///{database_path}", [tmp_path / "root"]) as narrow:
        with pytest.raises(Unserveable):
            narrow.read(*NAME)
        inside = write(tmp_path / "root" / "t.json", b"{}")
        narrow.register(OTHER, *NAME, inside)
        assert narrow.read(*NAME) == b"{}"


def test_what_is_no_readable_regular_file_is_refused(
    registry: MetadataArtifactRegistry, tmp_path: Path, database_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = dump_of(database_path)
    for path in (tmp_path / "missing.json", tmp_path / "fifo", tmp_path, "/dev/zero", ""):
        with pytest.raises(FileUnreadable):
            registry.register(OWNER, *NAME, path)
    with pytest.raises(Invalid):
        registry.register(OWNER, *NAME, "nul\0.json")
    with pytest.raises(Invalid):
        registry.register(OWNER, *MODEL, "../tokenizer.json", tmp_path / "x")
    assert dump_of(database_path) == before


def test_a_file_over_the_limit_is_refused_without_being_read(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.json"
    huge.touch()
    os.truncate(huge, 10 << 30)
    with pytest.raises(TooLarge):
        registry.register(OWNER, *NAME, huge)


def test_a_root_that_is_no_directory_is_a_wrong_setting(database_path: Path, file: Path) -> None:
    with pytest.raises(SettingsError):
        MetadataArtifactRegistry(f"sqlite:///{database_path}", [file])


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "registry.db"]
)
def test_a_url_that_is_no_sqlite_file_is_refused(url: str) -> None:
    with pytest.raises(DatabaseRefused):
        MetadataArtifactRegistry(url)


# Sharing an instance, and the file


def test_threads_share_one_instance(tmp_path: Path, database_path: Path) -> None:
    """More threads than the pool has connections; each registers, reads, and half unregister."""
    registry = MetadataArtifactRegistry(f"sqlite:///{database_path}", busy_timeout_s=60)
    same = write(tmp_path / "same.json", b"same")
    own = [write(tmp_path / f"{number}.json", b"%d" % number) for number in range(40)]

    def work(number: int) -> None:
        owner = Owner("dynamo", "backend", "generate", number)
        for _ in range(3):
            registry.register(owner, *NAME, same)
            registry.register(owner, "own", "_base", f"{number}.json", own[number])
            assert registry.read(*NAME) == b"same"
            assert registry.read("own", "_base", f"{number}.json") == b"%d" % number
            if number % 2:
                assert registry.unregister_for_owner(owner).released == 2
                assert registry.get("own", "_base", f"{number}.json") is None

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(work, range(40)))
    assert len(registry) == 1 + 20
    entry = registry.explain(*NAME).entry
    assert entry is not None
    assert entry.holders == 20
    registry.close()
    assert_sound(database_path)


def test_a_locked_database_is_busy_after_the_timeout_and_reads_go_on(
    database_path: Path, file: Path
) -> None:
    with MetadataArtifactRegistry(f"sqlite:///{database_path}", busy_timeout_s=0.05) as registry:
        registry.register(OWNER, *NAME, file)
        with sql(database_path) as other:
            other.execute("BEGIN IMMEDIATE")
            for attempt in (
                lambda: registry.register(OTHER, *NAME, file),
                lambda: registry.unregister_for_owner(OWNER),
                lambda: registry.unregister(*MODEL),
            ):
                with pytest.raises(Busy):
                    attempt()
            assert registry.read(*NAME) == b"{}"
        assert registry.unregister_for_owner(OWNER).released == 1


def test_two_instances_on_one_file_see_each_others_changes_at_once(
    registry: MetadataArtifactRegistry, file: Path, database_path: Path
) -> None:
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as second:
        registry.register(OWNER, *NAME, file)
        assert second.get(*NAME) == file
        second.unregister_for_owner(OWNER)
        assert registry.get(*NAME) is None


def test_what_was_registered_is_there_after_closing_and_opening_again(
    database_path: Path, file: Path
) -> None:
    url = f"sqlite:///{database_path}"
    with MetadataArtifactRegistry(url) as first:
        first.register(OWNER, *NAME, file)
    with MetadataArtifactRegistry(url) as second:
        assert second.read(*NAME) == b"{}"
        assert second.register(OWNER, *NAME, file) is Outcome.UNCHANGED


def test_a_file_without_its_log_can_be_read_before_anything_is_written(
    database_path: Path, file: Path
) -> None:
    """The first thing a new process does is often a read, by a connection that may not write."""
    url = f"sqlite:///{database_path}"
    with MetadataArtifactRegistry(url) as first:
        first.register(OWNER, *NAME, file)
    assert not database_path.with_name(database_path.name + "-wal").exists()
    with MetadataArtifactRegistry(url) as second:
        assert second.get(*NAME) == file


def test_readers_and_a_writer_that_replaces_content_never_see_it_wrong_or_missing(
    registry: MetadataArtifactRegistry, tmp_path: Path
) -> None:
    contents = [b"%d" % number for number in range(60)]
    paths = [write(tmp_path / f"{c.decode()}.json", c) for c in contents]
    registry.register(OWNER, *NAME, paths[0])
    over = threading.Event()

    def read() -> list[int]:
        seen = []
        while not over.is_set():
            seen.append(contents.index(registry.read(*NAME)))
        return seen

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        try:
            for path in paths[1:]:
                assert registry.register(OWNER, *NAME, path) is Outcome.REPLACED
        finally:
            over.set()
        for reader in readers:
            seen = reader.result(60)
            assert seen == sorted(seen)
