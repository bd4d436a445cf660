"""Where SQLite cannot keep a database: service and commands say so before they touch it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import MetadataArtifactRegistry
from registry.content.uploads import SPOOL_MEMORY_BYTES, Spool, spool_directory
from registry.core.records import ArtifactKey, Owner
from registry.errors import DatabaseRefused, StorageUnavailable
from registry.store.sqlite import migrate, place
from tests.commands import run_here
from tests.support import Server, assert_sound

DOORS: list[tuple[str, ...]] = [
    ("db", "upgrade"),
    ("db", "downgrade", "0002", "--yes"),
    ("db", "current"),
    ("db", "check"),
    ("db", "backup", "{tmp}/copy"),
    ("db", "restore", "{tmp}/other", "--force"),
    ("audit",),
    ("verify",),
    ("sweep",),
    ("sweep", "--dry-run"),
    ("sql", "SELECT 1"),
    ("serve", "--port", "0"),
]
SAFE = ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "fuseblk", "new"]
SAFE += ["fuse.fuse-overlayfs"]
UNSAFE = ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "gfs2", "vboxsf"]
UNSAFE += ["fuse", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.grpcfuse"]


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, *mounts: tuple[Path | str, str]) -> None:
    """Let the system tell of these mounts."""
    told = folder / "mountinfo"
    with told.open("w", encoding="utf-8") as file:
        for number, (point, kind) in enumerate([("/", "ext4"), *mounts]):
            escaped = str(point).replace("\\", "\\134").replace(" ", "\\040")
            file.write(f"{number} 1 0:{number} / {escaped} rw shared:1 - {kind} source rw\n")
    monkeypatch.setattr(place, "MOUNTS", told)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a name that has to be escaped."""
    data = tmp_path / "my data"
    data.mkdir()
    return data


@pytest.mark.parametrize("kind", [*SAFE, *UNSAFE])
def test_a_database_may_lie_on_every_local_file_system_and_on_no_network(
    data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, (data, "nfs"), (data, kind))
    if kind in SAFE:
        place.check(data / "registry.db")
        return
    with pytest.raises(DatabaseRefused, match="local disk") as refused:
        MetadataArtifactRegistry(f"sqlite:///{data}/registry.db")
    for word in (kind, str(data), "HTTP", place.ALLOWED_BY):
        assert word in refused.value.detail
    assert list(data.iterdir()) == []


def test_what_counts_is_the_mount_that_a_file_is_really_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, link = data / "local", tmp_path / "link"
    local.mkdir()
    link.symlink_to(data)
    pretend(monkeypatch, tmp_path, (local, "xfs"), (data, "nfs4"), (f"{data}2", "cifs"))
    assert place.find_danger(local / "registry.db") is None
    assert place.find_danger(tmp_path / "registry.db") is None
    for unsafe in (data / "registry.db", link / "registry.db"):
        assert "nfs4" in (place.find_danger(unsafe) or "")
    (tmp_path / "to.db").symlink_to(data / "registry.db")
    assert "nfs4" in (place.find_danger(tmp_path / "to.db") or "")


@pytest.mark.parametrize("door", DOORS, ids=" ".join)
def test_every_command_refuses_a_network_file_system_unless_it_is_allowed(
    data: Path, tmp_path: Path, door: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{data}/registry.db"
    for each in (url, f"sqlite:///{tmp_path}/other"):
        migrate.prepare(each)
    before = (data / "registry.db").read_bytes()
    pretend(monkeypatch, tmp_path, (data, "nfs4"))
    command = [each.replace("{tmp}", str(tmp_path)) for each in door]
    done = run_here(*command, REGISTRY_DATABASE_URL=url)
    assert done.returncode == 2
    assert "nfs4" in done.stderr
    assert [each.name for each in data.iterdir()] == ["registry.db"]
    assert (data / "registry.db").read_bytes() == before
    if door[0] != "serve":
        allowed = {place.ALLOWED_BY: "true", "REGISTRY_DATABASE_URL": url}
        done = run_here(*command, **allowed)
        assert done.returncode == 0, done.stderr
    assert_sound(data / "registry.db")


@pytest.fixture
def mounted_file(data: Path) -> Iterator[Path]:
    """A database whose file is a mount of its own, as a container may have it."""
    path = data / "registry.db"
    migrate.prepare(f"sqlite:///{path}")
    mount = subprocess.run(["mount", "--bind", path, path], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"this user may not mount a file: {mount.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)
    assert_sound(path)


def test_a_file_that_is_mounted_alone_is_refused_or_warned_of(mounted_file: Path) -> None:
    link = mounted_file.parent.parent / "link.db"
    link.symlink_to(mounted_file)
    for path in (mounted_file, link):
        done = run_here("audit", REGISTRY_DATABASE_URL=f"sqlite:///{path}")
        assert done.returncode == 2
        assert "Mount its directory instead" in done.stderr
    with Server(mounted_file, allow_unsafe_storage=True, workers=2) as server:
        health = server.client.get("/health")
        assert health.status_code == 200
        assert "Mount its directory" in health.json()["warnings"]["storage"]


# Temporary files


def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere"])


def test_uploads_are_kept_beside_the_database_where_no_other_place_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere_else(monkeypatch)
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for variable, expected in (
        ("", str(tmp_path)),
        ("/nowhere", str(tmp_path)),
        (str(chosen), str(chosen)),
    ):
        monkeypatch.setenv("TMPDIR", variable)
        assert spool_directory(str(tmp_path)) == expected
    spool = Spool(str(tmp_path))
    content = os.urandom(2 * SPOOL_MEMORY_BYTES)
    spool.write(content)
    assert spool.content() == content
    spool.close()


def test_a_place_for_temporary_files_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere_else(monkeypatch)
    for directory in (str(tmp_path / "gone"), None):
        spool = Spool(directory)
        with pytest.raises(StorageUnavailable, match="TMPDIR"):
            spool.write(bytes(2 * SPOOL_MEMORY_BYTES))
        spool.close()


_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def with_a_read_only_root(but: Path) -> None:
    """As a container has it: one directory alone may be written, of this process from now on."""
    place = os.fsencode(but)
    for done in (
        _libc.unshare(CLONE_NEWNS),
        _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        _libc.mount(place, place, None, MS_BIND, None),
        _libc.mount(None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None),
    ):
        if done:
            raise OSError(ctypes.get_errno(), "a mount namespace cannot be had")


def test_an_upload_works_without_any_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    key, content = ArtifactKey("m", "_base", "tokenizer.json"), os.urandom(600_000)
    path = tmp_path / "registry.db"
    try:
        server = Server(path, before_start=lambda: with_a_read_only_root(tmp_path))
    except subprocess.SubprocessError:
        pytest.skip("this user may not have a mount namespace")
    with server:
        assert server.register_copies(Owner("n", "c", "e", 1), {key: content}).status_code == 200
        assert server.fetch(key).content == content
    assert_sound(path)
