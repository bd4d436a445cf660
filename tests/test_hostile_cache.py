"""A cache and a target directory in which anything may stand: what is fetched is right or an error
of ours in time, and nothing outside of them is opened, changed or removed."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.client import cache as caching
from registry.client.cache import PARTIAL_KEPT_S, BlobCache
from registry.client.install import Placed, place
from registry.client.resolver import FetchLimits, Resolver
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.discovery.cards import Card, CardFile, make_card
from registry.errors import DirectoryUnusable, Invalid, RegistryError
from tests.fileservers import FileServer

CONTENT = b"content " * 10_000
CHECKSUM = checksum_of(CONTENT)
NAME = CHECKSUM.removeprefix("blake3:")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user that is none of our business, of the very content that is fetched."""
    path = tmp_path / "victim"
    path.write_bytes(CONTENT)
    os.utime(path, (1, 1))
    return path


def is_untouched(victim: Path) -> bool:
    status = victim.stat()
    return (
        victim.read_bytes() == CONTENT
        and (status.st_atime, status.st_mtime) == (1, 1)
        and stat.S_IMODE(status.st_mode) & 0o200 != 0
    )


def card_of(server: FileServer) -> Card:
    return make_card("m", [CardFile(f"{server.url}/files/a.json", CHECKSUM, len(CONTENT))])


def fetched(folder: Path, to: Path | None = None) -> bytes | RegistryError:
    """What comes of a fetch through the cache in a folder."""
    with FileServer({"a.json": CONTENT}) as server:
        resolver = Resolver(
            cache=BlobCache(folder),
            limits=FetchLimits(deadline_s=20),
            retries=RetryPolicy(attempts=1),
        )
        try:
            [file] = resolver.fetch_card(card_of(server), to=to)
        except RegistryError as error:
            return error
        assert checksum_of(file.path.read_bytes()) == CHECKSUM
        assert not file.path.is_symlink()
        return file.path.read_bytes()


# What stands in the place of a file


def a_socket(path: Path, victim: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path, victim: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs root")


def sparse(path: Path, victim: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def full_directory(path: Path, victim: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("x")


def read_only_file(path: Path, victim: Path) -> None:
    path.write_bytes(b"some")
    path.chmod(0o400)


ODD: dict[str, Callable[[Path, Path], object]] = {
    "a FIFO": lambda path, victim: os.mkfifo(path),
    "a device": device,
    "a socket": a_socket,
    "a link to a file": lambda path, victim: path.symlink_to(victim),
    "a link to nothing": lambda path, victim: path.symlink_to(victim.with_name("nothing")),
    "a link to itself": lambda path, victim: path.symlink_to(path.name),
    "a link to a directory": lambda path, victim: path.symlink_to(victim.parent),
    "a link to a device": lambda path, victim: path.symlink_to("/dev/zero"),
    "a file of a tebibyte": sparse,
    "an empty file": lambda path, victim: path.write_bytes(b""),
    "wrong bytes": lambda path, victim: path.write_bytes(b"x" * len(CONTENT)),
    "a read-only file": read_only_file,
    "a directory": lambda path, victim: path.mkdir(),
    "a directory with files": full_directory,
}
of_every_oddity = pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())


def prepared(folder: Path) -> Path:
    (folder / "blobs").mkdir(parents=True)
    (folder / "partial").mkdir()
    return folder


@pytest.mark.parametrize("place_of_it", ["blobs", "partial"])
@of_every_oddity
def test_whatever_stands_in_the_place_of_a_blob_or_a_partial_file_is_not_used(
    tmp_path: Path, victim: Path, make: Callable[[Path, Path], object], place_of_it: str
) -> None:
    folder = prepared(tmp_path / "cache")
    make(folder / place_of_it / NAME, victim)
    is_directory = (folder / place_of_it / NAME).is_dir()
    is_directory &= not (folder / place_of_it / NAME).is_symlink()
    started = time.monotonic()
    got = fetched(folder)
    if is_directory:
        assert isinstance(got, DirectoryUnusable)
        assert NAME in str(got)
    else:
        assert got == CONTENT
    assert time.monotonic() - started < 15
    assert is_untouched(victim)
    assert not os.path.lexists(tmp_path / "nothing")


@of_every_oddity
def test_whatever_stands_in_the_place_of_a_file_of_the_target_is_replaced_and_not_followed(
    tmp_path: Path, victim: Path, make: Callable[[Path, Path], object]
) -> None:
    (tmp_path / "to").mkdir()
    target = tmp_path / "to/a.json"
    make(target, victim)
    is_directory = target.is_dir() and not target.is_symlink()
    got = fetched(tmp_path / "cache", tmp_path / "to")
    if is_directory:
        assert isinstance(got, RegistryError)
        assert "is a directory" in str(got)
    else:
        assert got == CONTENT
    assert is_untouched(victim)
    assert os.listdir(tmp_path / "to") == ["a.json"]


@pytest.mark.parametrize("which", ["", "blobs", "partial"])
@of_every_oddity
def test_a_cache_or_a_room_of_it_that_is_no_directory_is_named(
    tmp_path: Path, victim: Path, make: Callable[[Path, Path], object], which: str
) -> None:
    folder = tmp_path / "cache"
    (folder / which).parent.mkdir(exist_ok=True)
    make(folder / which, victim)
    got = fetched(folder)
    if (folder / which).is_dir() and (which == "" or not (folder / which).is_symlink()):
        # The way to the cache is the user's business.
        assert got == CONTENT
    else:
        assert isinstance(got, DirectoryUnusable)
        assert str(folder) in str(got)
    assert is_untouched(victim)


@of_every_oddity
def test_a_target_that_is_no_directory_is_named(
    tmp_path: Path, victim: Path, make: Callable[[Path, Path], object]
) -> None:
    make(tmp_path / "to", victim)
    got = fetched(tmp_path / "cache", tmp_path / "to")
    if (tmp_path / "to").is_dir():
        assert got == CONTENT
    else:
        assert isinstance(got, DirectoryUnusable)
        assert str(tmp_path / "to") in str(got)
    assert is_untouched(victim)


# Other users, shortages, locks


@pytest.mark.parametrize("room", ["blobs", "partial"])
def test_a_cache_in_which_another_user_can_write_is_refused(tmp_path: Path, room: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    folder = prepared(tmp_path / "cache")
    os.chown(folder / room, 12345, -1)
    got = fetched(folder)
    assert isinstance(got, DirectoryUnusable)
    assert "belongs to user 12345" in str(got)


def test_a_cache_made_under_a_generous_umask_is_closed_to_others(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "cache")
    for room in (folder / "blobs", folder / "partial"):
        room.chmod(0o777)
    assert fetched(folder) == CONTENT
    modes = {stat.S_IMODE(room.stat().st_mode) for room in folder.iterdir()}
    assert modes == {0o755}


def test_what_is_written_into_a_partial_file_is_written_nowhere_else(
    tmp_path: Path, victim: Path
) -> None:
    folder = prepared(tmp_path / "cache")
    linked = tmp_path / "linked"
    linked.write_bytes(b"mine")
    os.link(linked, folder / "partial" / NAME)
    assert fetched(folder) == CONTENT
    assert linked.read_bytes() == b"mine"
    assert linked.stat().st_mode & 0o200


@pytest.mark.parametrize("to", [None, "to"])
def test_a_full_disk_is_an_error_that_says_so_and_a_fetch_goes_on_afterwards(
    tmp_path: Path, to: str | None
) -> None:
    target = None if to is None else tmp_path / to
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        got = fetched(tmp_path / "cache", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(got, DirectoryUnusable)
    assert os.strerror(errno.EFBIG) in str(got)
    assert "space" in str(got)
    assert target is None or not target.exists()
    assert fetched(tmp_path / "cache", target) == CONTENT


def test_what_is_in_a_read_only_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetched(tmp_path / "cache") == CONTENT

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", fail)
    found = BlobCache(tmp_path / "cache").find(CHECKSUM, len(CONTENT))
    assert found is not None
    assert found.checksum == CHECKSUM


def test_somebody_who_locks_a_blob_for_ever_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "LOCKED_MAX_S", 0.1)
    assert fetched(tmp_path / "cache") == CONTENT
    with (tmp_path / "cache/blobs" / NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert fetched(tmp_path / "cache") == CONTENT
        BlobCache(tmp_path / "cache", max_bytes=0).collect()


# Names


@pytest.mark.parametrize(
    "checksum",
    [
        *("blake3:/etc/passwd", "blake3:..", "blake3:", "", "blake3:" + "a" * 300),
        *("blake3:../partial/x", "blake3:" + "A" * 64, NAME, CHECKSUM + "\n", "sha256:" + "0" * 64),
    ],
)
def test_a_checksum_is_never_a_path(tmp_path: Path, checksum: str) -> None:
    cache = BlobCache(tmp_path / "cache")
    calls: list[Callable[[], object]] = [
        lambda: cache.find(checksum, 100),
        lambda: cache.try_claim(checksum),
        lambda: cache.claim_beside(checksum),
        lambda: cache.partial_size(checksum),
        lambda: cache.path_of(checksum),
        lambda: Placed("a", checksum, 1, tmp_path),
    ]
    for call in calls:
        with pytest.raises(Invalid, match="checksum"):
            call()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/passwd", "a\\b", "a\0", "a\n"])
def test_a_filename_never_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="filename"):
        Placed(name, CHECKSUM, 1, tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_two_files_that_have_one_name_in_a_directory_are_refused(
    tmp_path: Path, exists: bool
) -> None:
    """As `config.json` and `Config.json` have where case is ignored."""
    if exists:
        (tmp_path / "to").mkdir()
        (tmp_path / "to/a.json").write_bytes(b"before")
    files = []
    for number in range(2):
        path = tmp_path / str(number)
        path.write_bytes(str(number).encode())
        files.append(Placed("a.json", checksum_of(str(number).encode()), 1, path))
    with pytest.raises(DirectoryUnusable, match="have one name"):
        place(files, tmp_path / "to")
    assert (tmp_path / "to").exists() is exists
    if exists:
        assert (tmp_path / "to/a.json").read_bytes() == b"before"
        assert os.listdir(tmp_path / "to") == ["a.json"]


def test_a_directory_that_somebody_made_meanwhile_is_filled_as_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def make_it_first(source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / "theirs").write_text("x")
        rename(source, target)

    monkeypatch.setattr(os, "rename", make_it_first)
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    place([Placed("a.json", CHECKSUM, len(CONTENT), path)], tmp_path / "to")
    assert sorted(os.listdir(tmp_path / "to")) == ["a.json", "theirs"]


# What is removed


def test_only_files_of_the_cache_are_ever_removed(tmp_path: Path, victim: Path) -> None:
    folder = prepared(tmp_path / "cache")
    mine = [folder / room / name for room in ("blobs", "partial") for name in ("notes", "a" * 63)]
    for path in mine:
        path.write_text("mine")
        os.utime(path, (1, 1))
    (folder / "partial" / ("b" * 64)).symlink_to(victim)
    BlobCache(folder, max_bytes=0).collect()
    assert all(path.exists() for path in mine)
    assert is_untouched(victim)


@pytest.mark.parametrize("room", ["blobs", "partial"])
def test_nothing_is_removed_behind_a_link(tmp_path: Path, room: str) -> None:
    folder, elsewhere = prepared(tmp_path / "cache"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / NAME).write_text("mine")
    os.utime(elsewhere / NAME, (1, 1))
    (folder / room).rmdir()
    (folder / room).symlink_to(elsewhere)
    BlobCache(folder, max_bytes=0).collect()
    assert (elsewhere / NAME).exists()


def test_a_time_ahead_keeps_nothing_for_ever(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "cache")
    ahead = time.time() + 10 * PARTIAL_KEPT_S
    for room in ("blobs", "partial"):
        (folder / room / NAME).write_bytes(CONTENT)
        os.utime(folder / room / NAME, (ahead, ahead))
    BlobCache(folder, max_bytes=0).collect()
    assert not (folder / "blobs" / NAME).exists()
    assert not (folder / "partial" / NAME).exists()
