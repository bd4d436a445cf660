"""Which files may be looked at without a thread: those that no other machine and no process has to
answer for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.content.mounts import Mounts, MountTable, read_mounts
from registry.core import no_links
from tests.mounted import mounted, needs_fuse
from tests.support import wait_for


def table(*mounts: str) -> Mounts:
    """Mounts of `point type [options]`."""
    lines = []
    for number, mount in enumerate(mounts):
        point, kind, *options = mount.split(" ")
        lines.append(
            f"{number} 1 8:{number} / {point} rw,relatime shared:1 - {kind} source "
            f"rw,{','.join(options)}"
        )
    return Mounts("\n".join(lines) + "\n")


HOST = ("/ ext4", "/proc proc", "/sys sysfs", "/dev devtmpfs", "/dev/shm tmpfs", "/run tmpfs")

CASES: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "a plain host": (HOST, {"/models/a": True, "/dev/shm/a": True, "/": True, "/proc/1/a": False}),
    "nothing is known": ((), {"/models/a": False}),
    "network": (
        (*HOST, "/nfs nfs4", "/smb cifs", "/share/9 9p", "/v virtiofs", "/ceph ceph", "/l lustre"),
        {
            **{f"/{name}/a": False for name in ("nfs", "smb", "share/9", "v", "ceph", "l")},
            "/models/a": True,
            "/nfsx/a": True,
            "/share/a": True,
        },
    ),
    "FUSE": (
        (*HOST, "/a fuse.sshfs", "/b fuse", "/c fuseblk", "/d fuse.bindfs"),
        {f"/{name}/x": False for name in "abcd"},
    ),
    "a type that is new": ((*HOST, "/new somefs"), {"/new/a": False, "/a": True}),
    "a mount within a root": (
        (*HOST, "/models xfs", "/models/remote nfs", "/models/remote/disk ext4"),
        {"/models/a": True, "/models/remote/a": False, "/models/remote/disk/a": False},
    ),
    "a file that is a mount": (
        (*HOST, "/models/a.json fuse.x"),
        {"/models/a.json": False, "/models/b.json": True},
    ),
    "a mount over another": ((*HOST, "/m ext4", "/m nfs"), {"/m/a": False}),
    "a mount under another": ((*HOST, "/m nfs", "/m ext4"), {"/m/a": False}),
    "a diskless machine": (("/ nfs", "/proc proc", "/disk ext4"), {"/a": False, "/disk/a": False}),
    "a container": (
        ("/ overlay lowerdir=l/A:l/B,upperdir=/x", "/proc proc", "/models ext4", "/pvc nfs4"),
        {"/a": True, "/models/a": True, "/pvc/a": False},
    ),
    "an overlay of local directories": (
        (*HOST, "/o overlay lowerdir=/a:/b,upperdir=/c,workdir=/d"),
        {"/o/a": True},
    ),
    "an overlay with a remote layer": (
        (*HOST, "/nfs nfs", "/o overlay lowerdir=/a:/nfs/b,upperdir=/c"),
        {"/o/a": False, "/a": True},
    ),
    "an overlay of what cannot be seen": (
        (*HOST, "/o overlay lowerdir=l/A", "/p overlay"),
        {"/o/a": False, "/p/a": False},
    ),
    "names with spaces": (
        (*HOST, "/my\\040models nfs", "/back\\134slash nfs", "/gr\u00f6\u2028\u00dfe nfs"),
        {"/my models/a": False, "/back\\slash/a": False, "/gr\u00f6\u2028\u00dfe/a": False},
    ),
    "an automounter": ((*HOST, "/net autofs"), {"/net/host/a": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_local_is_told_by_its_type_and_by_all_that_is_above_it(name: str) -> None:
    mounts, expected = CASES[name]
    found = table(*mounts)
    assert {path: found.is_local(path) for path in expected} == expected


@pytest.mark.parametrize(
    ("mounts", "any_remote"),
    [
        (HOST, False),
        ((*HOST, "/nfs nfs"), True),
        ((*HOST, "/x fuse.lxcfs"), True),
        ((*HOST, "/proc/sys/fs/binfmt_misc autofs"), False),
        ((*HOST, "/net autofs"), True),
        ((*HOST, "/o overlay lowerdir=l/A"), True),
        (("/ overlay lowerdir=l/A", "/proc proc"), False),
    ],
)
def test_links_are_only_a_danger_where_something_remote_is_mounted(
    mounts: tuple[str, ...], any_remote: bool
) -> None:
    assert table(*mounts).any_remote is any_remote


@pytest.mark.parametrize("path", ["/", "//", "//a", "/models/a", "/nfs", "/nfs/a/b"])
def test_every_path_has_a_mount_point(path: str) -> None:
    found = table(*HOST, "/nfs nfs").point_of(path)
    assert found == ("/nfs" if path.startswith("/nfs") else "/")


@needs_fuse
def test_a_mount_that_comes_or_goes_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path.resolve() / "mount"
    watched = MountTable()
    changes: list[bool] = []
    watched.start(lambda: changes.append(watched.mounts.is_local(f"{folder}/a")))
    try:
        before = watched.mounts.is_local(f"{folder}/a")
        with mounted(tmp_path / "source", folder):
            wait_for(lambda: changes[-1:] == [False])
            assert watched.find_status is not os.lstat
            assert not read_mounts().is_local(f"{folder}/a")
        wait_for(lambda: changes[-1:] == [before])
    finally:
        watched.close()


@pytest.mark.skipif(not no_links.AVAILABLE, reason="needs Linux 5.6")
def test_a_look_that_follows_no_link_finds_what_lstat_finds(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    (base / "folder").mkdir()
    (base / "folder/file").write_bytes(b"x")
    (base / "folder/link").symlink_to("file")
    (base / "other").symlink_to("folder")
    for name in ("folder", "folder/file", "folder/link"):
        path = f"{base}/{name}"
        assert no_links.status(path) == os.lstat(path)
        assert not no_links.is_on_the_way(path)
    for name in ("other/file", "other/nothing"):
        with pytest.raises(OSError, match="symbolic links"):
            no_links.status(f"{base}/{name}")
        assert no_links.is_on_the_way(f"{base}/{name}")
    with pytest.raises(FileNotFoundError):
        no_links.status(f"{base}/nothing")
    assert not no_links.is_on_the_way(f"{base}/nothing")
    assert not no_links.is_on_the_way("a\0b")
