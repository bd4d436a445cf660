"""What whoever follows and changes the records of others may rely on, in a directory and in an
etcd: replacing under the publisher's liveness, copies byte for byte, and changes that nobody saw
happen are told as such."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from registry.core.records import Owner
from registry.discovery import (
    Change,
    Kind,
    Listed,
    RawChange,
    RawStore,
    Record,
    Rewriting,
    instance_record,
    model_record,
)
from registry.discovery import file as file_store
from registry.discovery.cards import make_card
from registry.discovery.etcd import EtcdDiscovery
from registry.discovery.etcd.listing import EtcdListing
from registry.discovery.etcd.publications import Publications
from registry.discovery.etcd.settings import read_settings
from registry.discovery.file import FileDiscovery, comparing
from registry.discovery.file.writing import swap
from registry.discovery.record_io import RECORD_MAX_BYTES, encode_record
from registry.errors import DiscoveryUnavailable, Invalid
from tests.etcds import Etcd, Watcher, base64_of
from tests.support import wait_for

OWNER = Owner("dynamo", "backend", "generate", 0xABC)
OTHER = Owner("dynamo", "backend", "generate", 0xDEF)
MODEL, MODEL_2 = (model_record(each, make_card("Org/Tiny", [])) for each in (OWNER, OTHER))
REWRITTEN, EDITED = (
    model_record(OWNER, make_card("Org/Tiny", [], fields={"user_data": text}))
    for text in ("rewritten", "edited by its worker")
)
FILE, FILE_2 = (f"kv/v1/mdc/dynamo%2Fbackend%2Fgenerate%2F{each}" for each in ("abc", "def"))
_numbers = count()


class Store(Rewriting, RawStore, Protocol):
    """A store that can do everything."""


class Opener(Protocol):
    def __call__(self, *, ttl_s: float = 1.0) -> Store: ...


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd") / "data", max_request_bytes=40_000_000) as etcd:
        yield etcd


@pytest.fixture
def prefix() -> str:
    return f"test-{next(_numbers)}/"


@pytest.fixture(params=["file", "etcd"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Opener]:
    """Opens the same place as often as wanted."""
    opened: list[Store] = []

    def open_one(*, ttl_s: float = 1.0) -> Store:
        if request.param == "file":
            opened.append(FileDiscovery(tmp_path / "kv", ttl_s=ttl_s))
        else:
            url = f"{request.getfixturevalue('shared').url}/{prefix}"
            opened.append(EtcdDiscovery(read_settings(url, {}), ttl_s=ttl_s))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener(ttl_s=10.0)


# Replacing


def test_a_record_is_replaced_once_in_the_place_of_what_was_read(opener: Opener) -> None:
    publisher, other = opener(ttl_s=10.0), opener(ttl_s=10.0)
    publisher.publish(MODEL)
    assert other.replace(MODEL, REWRITTEN)
    assert not other.replace(MODEL, EDITED)
    assert publisher.list(Kind.MODEL) == [REWRITTEN]
    assert other.replace(REWRITTEN, MODEL)
    assert publisher.find(MODEL.key) == MODEL


def test_what_replaced_a_record_lives_as_long_as_its_publisher(opener: Opener) -> None:
    publisher, other, gone = opener(), opener(), opener()
    publisher.publish(MODEL)
    gone.publish(MODEL_2)
    assert other.replace(MODEL, REWRITTEN)
    gone.close()
    # By the time that the other lapses, this would have as well.
    wait_for(lambda: other.list(Kind.MODEL) == [REWRITTEN])
    publisher.close()
    wait_for(lambda: other.list(Kind.MODEL) == [])


def test_nothing_takes_the_place_of_what_is_gone(store: Store) -> None:
    assert not store.replace(MODEL, REWRITTEN)
    store.publish(MODEL)
    store.withdraw(MODEL.key)
    assert not store.replace(MODEL, REWRITTEN)
    assert store.list_raw() == {}


TOO_LARGE = model_record(
    OWNER, make_card("Org/Tiny", [], fields={"user_data": "x" * RECORD_MAX_BYTES})
)
NO_REPLACEMENT = {
    "another key": (MODEL_2, "cannot take the place"),
    "too large": (TOO_LARGE, "a record has at most"),
    "another's content": (Record(MODEL.key, dict(MODEL_2.content)), "its key says otherwise"),
}


@pytest.mark.parametrize(("new", "says"), NO_REPLACEMENT.values(), ids=NO_REPLACEMENT.keys())
def test_what_nobody_would_read_replaces_nothing(store: Store, new: Record, says: str) -> None:
    store.publish(MODEL)
    with pytest.raises(Invalid, match=says):
        store.replace(MODEL, new)
    assert store.list(Kind.MODEL) == [MODEL]


def test_an_own_record_that_was_replaced_is_kept_live_as_it_is_now(opener: Opener) -> None:
    store = opener()
    store.publish(MODEL)
    assert store.replace(MODEL, REWRITTEN)
    opener().withdraw(MODEL.key)
    wait_for(lambda: store.list(Kind.MODEL) == [REWRITTEN])


def test_a_watch_tells_of_what_replaced_a_record(opener: Opener) -> None:
    publisher, other = opener(ttl_s=10.0), opener(ttl_s=10.0)
    publisher.publish(MODEL)
    changes = other.watch(Kind.MODEL)
    assert [next(changes), next(changes)] == [Change(MODEL.key, MODEL), Listed()]
    other.replace(MODEL, REWRITTEN)
    assert next(changes) == Change(MODEL.key, REWRITTEN)


# Replacing in an etcd


@pytest.fixture
def etcd(shared: Etcd, prefix: str) -> Iterator[EtcdDiscovery]:
    opened = EtcdDiscovery(read_settings(f"{shared.url}/{prefix}", {}))
    yield opened
    opened.close()


def after_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Something happens between what a replacement reads and what it writes."""
    find, left = EtcdListing.find, [True]

    def find_and_act(listing: EtcdListing, stored: bytes) -> Any:
        found = find(listing, stored)
        if left:
            left.pop()
            act()
        return found

    monkeypatch.setattr(EtcdListing, "find", find_and_act)


def stored_at(shared: Etcd, prefix: str) -> list[tuple[str, int]]:
    found = shared.stored(prefix)
    return [(each["value"], int(each.get("lease", 0))) for each in found]


def test_a_lease_that_ends_while_its_record_is_replaced_leaves_nothing(
    shared: Etcd, prefix: str, etcd: EtcdDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = int(shared.ask("lease/grant", {"TTL": 60})["ID"])
    shared.put(f"{prefix}{MODEL.key}", encode_record(MODEL), lease)
    after_reading(monkeypatch, lambda: shared.ask("lease/revoke", {"ID": str(lease)}))
    assert not etcd.replace(MODEL, REWRITTEN)
    assert shared.stored(prefix) == []


@pytest.mark.parametrize("is_leased", [True, False])
def test_a_replaced_record_hangs_on_the_lease_that_it_hung_on(
    shared: Etcd, prefix: str, etcd: EtcdDiscovery, is_leased: bool
) -> None:
    lease = int(shared.ask("lease/grant", {"TTL": 60})["ID"]) if is_leased else 0
    shared.put(f"{prefix}{MODEL.key}", encode_record(MODEL), lease)
    etcd.publish(MODEL_2)
    assert etcd.replace(MODEL, REWRITTEN)
    expected = base64_of(encode_record(REWRITTEN))
    assert stored_at(shared, f"{prefix}{MODEL.key}") == [(expected, lease)]


def test_a_record_that_its_worker_edits_meanwhile_stays_so(
    shared: Etcd, prefix: str, etcd: EtcdDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd.publish(MODEL)
    edited = encode_record(EDITED)
    after_reading(monkeypatch, lambda: shared.put(f"{prefix}{MODEL.key}", edited))
    assert not etcd.replace(MODEL, REWRITTEN)
    assert etcd.list(Kind.MODEL) == [EDITED]


def test_a_replacement_whose_answer_was_lost_counts_as_done(
    etcd: EtcdDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Publications.replace

    def twice(publications: Publications, key: bytes, revision: int, content: bytes) -> bool:
        replace(publications, key, revision, content)
        return replace(publications, key, revision, content)

    monkeypatch.setattr(Publications, "replace", twice)
    etcd.publish(MODEL)
    assert etcd.replace(MODEL, REWRITTEN)


# Replacing in a directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[FileDiscovery]:
    opened = FileDiscovery(tmp_path / "kv")
    yield opened
    opened.close()


def place(path: Path, record: Record, age_s: float = 0) -> None:
    """A record as another process wrote it, touched for the last time so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_record(record))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_replaced_file_is_as_old_as_it_was_and_has_the_mode_and_user_that_it_had(
    directory: FileDiscovery, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    place(path, MODEL, age_s=5)
    path.chmod(0o624)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    before = path.stat()
    assert directory.replace(MODEL, REWRITTEN)
    after = path.stat()
    for name in ("st_mtime_ns", "st_mode", "st_uid", "st_gid"):
        assert getattr(after, name) == getattr(before, name), name
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_has_lapsed_is_not_replaced(directory: FileDiscovery, tmp_path: Path) -> None:
    place(tmp_path / FILE, MODEL, age_s=11)
    assert not directory.replace(MODEL, REWRITTEN)
    assert directory.list(Kind.MODEL) == []


def test_a_file_that_cannot_be_left_to_its_user_is_not_replaced(
    directory: FileDiscovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not touch it any more would lose its record."""
    path = tmp_path / FILE
    place(path, MODEL)
    if os.geteuid() != 0:
        pytest.skip("only root makes files of others")
    os.chown(path, 12345, 12345)

    def fail(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", fail)
    with pytest.raises(DiscoveryUnavailable, match=r"belongs to user 12345.*as root"):
        directory.replace(MODEL, REWRITTEN)
    assert directory.list(Kind.MODEL) == [MODEL]
    assert list(path.parent.iterdir()) == [path]


def test_what_happens_while_a_file_is_replaced_is_not_undone(
    directory: FileDiscovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE

    def edit() -> None:
        edited = path.with_name(".edited")
        place(edited, EDITED)
        edited.replace(path)

    for act, left in ((path.unlink, []), (edit, [EDITED])):
        place(path, MODEL)

        def act_and_swap(*args: Any, act: Callable[[], object] = act) -> bool:
            act()
            return swap(*args)

        monkeypatch.setattr(file_store, "swap", act_and_swap)
        assert not directory.replace(MODEL, REWRITTEN)
        assert directory.list(Kind.MODEL) == left


def link_to_a_good_one(path: Path) -> None:
    place(path.with_name(".good"), MODEL)
    path.symlink_to(".good")


ODD: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a link": link_to_a_good_one,
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_what_is_no_file_is_not_replaced(
    directory: FileDiscovery, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    make(path)
    before = path.lstat()
    assert not directory.replace(MODEL, REWRITTEN)
    assert stat.S_IFMT(path.lstat().st_mode) == stat.S_IFMT(before.st_mode)


# Copies byte for byte


CHANNEL = "v1/event_channels/dynamo/backend/a-b.c_d/7f"
BYTES = b"\x00\xff not JSON"


def test_everything_can_be_copied_byte_for_byte(opener: Opener, tmp_path: Path) -> None:
    publisher, other = opener(ttl_s=10.0), opener(ttl_s=10.0)
    instance = instance_record(OWNER, "h:1")
    publisher.publish(MODEL)
    publisher.publish(instance)
    publisher.publish_raw(CHANNEL, BYTES)
    listed = other.list_raw()
    assert list(listed) == sorted([str(MODEL.key), str(instance.key), CHANNEL])
    assert listed[CHANNEL] == BYTES
    copy = FileDiscovery(tmp_path / "copy")
    for name, content in listed.items():
        copy.publish_raw(name, content)
    assert copy.list_raw() == listed
    assert (copy.list(Kind.MODEL), copy.list(Kind.INSTANCE)) == ([MODEL], [instance])
    copy.close()


def test_a_watch_of_everything_tells_each_change(opener: Opener) -> None:
    publisher, other = opener(ttl_s=10.0), opener(ttl_s=10.0)
    publisher.publish(MODEL)
    changes = other.watch_raw()
    model = RawChange(str(MODEL.key), encode_record(MODEL))
    assert [next(changes), next(changes)] == [model, Listed()]
    publisher.publish_raw(CHANNEL, BYTES)
    assert next(changes) == RawChange(CHANNEL, BYTES)
    publisher.publish_raw(CHANNEL, b"")
    assert next(changes) == RawChange(CHANNEL, b"")
    other.withdraw_raw(CHANNEL)
    assert next(changes) == RawChange(CHANNEL, None)
    publisher.withdraw(MODEL.key)
    assert next(changes) == RawChange(str(MODEL.key), None)
    other.close()
    assert list(changes) == []


def test_a_copy_lives_as_long_as_its_publisher_is_open(opener: Opener) -> None:
    publisher, other, gone = opener(), opener(), opener()
    publisher.publish_raw(CHANNEL, BYTES)
    gone.publish_raw(f"{CHANNEL}/2", BYTES)
    gone.close()
    wait_for(lambda: other.list_raw() == {CHANNEL: BYTES})
    publisher.close()
    wait_for(lambda: other.list_raw() == {})
    with pytest.raises(DiscoveryUnavailable, match="was closed"):
        publisher.publish_raw(CHANNEL, BYTES)


NO_NAMES = {
    "nothing": "",
    "no bucket": "v1",
    "no key": "v1/mdc",
    "an empty key": "v1/mdc/",
    "another root": "v2/mdc/a",
    "above": "../v1/mdc/a",
    "a bucket above": "v1/../a",
    "a bucket that is here": "v1/./a",
    "an empty bucket": "v1//a",
    "a bucket that ends in a line": "v1/mdc\n/a",
    "a bucket of dots and letters": "v1/.tmp_a/a",
    "a line": "v1/mdc/a\nb",
    "a zero": "v1/mdc/a\0b",
    "half a character": "v1/mdc/\udcff",
    "too long": "v1/mdc/" + "a" * 1025,
}


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES.keys())
def test_what_is_no_name_is_refused_at_the_door(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        store.publish_raw(name, b"{}")
    with pytest.raises(Invalid):
        store.withdraw_raw(name)
    assert store.list_raw() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["../../../x", "..", "/etc/passwd", ".tmp_x", "%2e%2e", "é ü"])
def test_any_other_key_stays_within_its_bucket(store: Store, tmp_path: Path, key: str) -> None:
    store.publish_raw(f"v1/mdc/{key}", b"1")
    assert store.list_raw() == {f"v1/mdc/{key}": b"1"}
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} <= {
        tmp_path / "kv/v1/mdc"
    }
    store.withdraw_raw(f"v1/mdc/{key}")
    assert store.list_raw() == {}


def test_what_is_larger_than_a_record_is_not_copied(store: Store) -> None:
    with pytest.raises(Invalid, match="at most"):
        store.publish_raw(CHANNEL, b"x" * (RECORD_MAX_BYTES + 1))


def test_what_cannot_be_copied_from_a_directory_is_left_out(
    directory: FileDiscovery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.publish(MODEL)
    root, secret = tmp_path / "kv/v1", tmp_path / "secret"
    secret.mkdir()
    (secret / "password").write_text("x")
    (root / "link").symlink_to(secret)
    (root / "mdc/link").symlink_to(secret / "password")
    (root / "a file").write_text("x")
    (root / "mdc/a.b").write_text("not as a key is written")
    (root / "mdc/large").write_bytes(b"x" * (RECORD_MAX_BYTES + 1))
    os.mkfifo(root / "mdc/pipe")
    assert list(directory.list_raw()) == [str(MODEL.key)]
    assert caplog.text.count("is left out") == 6


def test_what_cannot_be_copied_from_an_etcd_is_left_out(
    shared: Etcd, prefix: str, etcd: EtcdDiscovery, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.publish(MODEL)
    for name in ("v1/a", "v1//a", "v1/../a", "v1/mdc/line\n", "v1/mdc/" + "a" * 1025):
        shared.put(f"{prefix}{name}", b"x")
    shared.put(f"{prefix}v1/mdc/large", b"x" * (RECORD_MAX_BYTES + 1))
    shared.put(f"{prefix}v2/mdc/a", b"x")
    assert list(etcd.list_raw()) == [str(MODEL.key)]
    assert caplog.text.count("is left out") == 6


# Whether anybody saw it happen


class Notes:
    """What a watch told: a word for each change and whether it was found by listing again."""

    def __init__(self, store: Store) -> None:
        self._changes = store.watch(Kind.MODEL)

    def take(self, number: int) -> list[tuple[str, bool] | Listed]:
        """The next so many."""
        found: list[tuple[str, bool] | Listed] = []
        for _, change in zip(range(number), self._changes, strict=False):
            if isinstance(change, Listed):
                found.append(change)
            else:
                word = "gone" if change.record is None else "there"
                found.append((word, change.relisted))
        return found


def empty(root: Path) -> None:
    for path in (root / "v1/mdc").iterdir():
        path.unlink()


def remove(root: Path) -> None:
    shutil.rmtree(root)


def move_away(root: Path) -> None:
    root.rename(root.with_name("away"))


def replace_by_an_empty_one(root: Path) -> None:
    """Often under the number that the old one had."""
    shutil.rmtree(root / "v1")
    (root / "v1/mdc").mkdir(parents=True)


def replace_one_bucket(root: Path) -> None:
    shutil.rmtree(root / "v1/mdc")
    (root / "v1/mdc").mkdir()


SEEN = {"files are removed": empty}
NOT_SEEN = {
    "the directory is removed": remove,
    "the directory is moved away": move_away,
    "an empty one is in its place": replace_by_an_empty_one,
    "an empty one is in its place, in the same above": replace_one_bucket,
}


@pytest.mark.parametrize(
    ("act", "is_seen"),
    [*((act, True) for act in SEEN.values()), *((act, False) for act in NOT_SEEN.values())],
    ids=[*SEEN, *NOT_SEEN],
)
def test_records_that_go_with_their_directory_were_not_seen_to_go(
    directory: FileDiscovery, tmp_path: Path, act: Callable[[Path], None], is_seen: bool
) -> None:
    place(tmp_path / FILE, MODEL)
    place(tmp_path / FILE_2, MODEL_2)
    notes = Notes(cast(Store, directory))
    assert notes.take(3) == [("there", False), ("there", False), Listed()]
    act(tmp_path / "kv")
    if is_seen:
        assert notes.take(2) == [("gone", False)] * 2
    else:
        assert notes.take(3) == [("gone", True), ("gone", True), Listed()]
    # It does not say so again and again.
    time.sleep(2 * file_store.WATCH_EVERY_S)
    place(tmp_path / FILE, MODEL)
    is_found = act in (remove, move_away)
    assert notes.take(1) == [("there", is_found)]


def test_a_bucket_that_comes_later_makes_nothing_look_found(
    directory: FileDiscovery, tmp_path: Path
) -> None:
    directory.publish(MODEL)
    changes = directory.watch_raw()
    assert isinstance(next(changes), RawChange)
    assert isinstance(next(changes), Listed)
    directory.publish_raw(CHANNEL, BYTES)
    assert next(changes) == RawChange(CHANNEL, BYTES)
    remove(tmp_path / "kv/v1/mdc")
    gone = [next(changes), next(changes)]
    assert gone == [RawChange(str(MODEL.key), None, relisted=True), Listed()]
    directory.close()


def test_a_record_that_lapses_was_seen_to(opener: Opener) -> None:
    publisher, reader = opener(), opener()
    publisher.publish(MODEL)
    notes = Notes(reader)
    assert notes.take(2) == [("there", False), Listed()]
    publisher.close()
    assert notes.take(1) == [("gone", False)]


def test_nobody_saw_what_happened_while_nobody_looked(
    directory: FileDiscovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when this machine was suspended: the publishers on it were, too."""
    directory.publish(MODEL)
    notes = Notes(cast(Store, directory))
    assert notes.take(2) == [("there", False), Listed()]
    (tmp_path / FILE).unlink()
    monkeypatch.setattr(comparing, "GAP_S", 0.0)
    assert notes.take(2) == [("gone", True), Listed()]


def test_records_of_an_etcd_that_was_emptied_were_not_seen_to_go(tmp_path: Path) -> None:
    with Etcd(tmp_path / "data") as own:
        store = EtcdDiscovery(read_settings(own.url, {}))
        for record in (MODEL, MODEL_2):
            own.put(str(record.key), encode_record(record))
        watcher = Watcher(store)
        watcher.wait_until(MODEL, MODEL_2)
        own.kill()
        shutil.rmtree(own.data)
        own.start()
        watcher.wait_until()
        gone = {Change(record.key, None, relisted=True) for record in (MODEL, MODEL_2)}
        assert set(watcher.changes[2:]) == gone
        own.put(str(MODEL.key), encode_record(MODEL))
        watcher.wait_until(MODEL)
        assert watcher.changes[-1] == Change(MODEL.key, MODEL)
        assert watcher.listings == 2
        store.close()
