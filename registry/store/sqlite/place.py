"""Where a database lies, and whether SQLite can keep it safe there.

SQLite's log needs memory and locks that all processes share which have the database open. Network
file systems, and those between a virtual machine and its host, only seem to have them: two services
lose each other's writes there, and ruin the file. And a container into which the file alone is
mounted loses the log beside it when it goes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from registry.errors import DatabaseRefused

ALLOWED_BY = "REGISTRY_ALLOW_UNSAFE_STORAGE"
"""The variable that allows such places, for every command and for the registry in-process."""

MOUNTS = Path("/proc/self/mountinfo")

SHARED_TYPES = frozenset(
    {
        # network
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs"),
        # of clusters
        *("ceph", "lustre", "gfs", "gfs2", "ocfs2", "glusterfs", "beegfs", "gpfs", "panfs"),
        *("orangefs", "pvfs2", "acfs", "wekafs", "quobyte"),
        # between a virtual machine and its host
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fakeowner", "drvfs", "hgfs"),
    }
)
LOCAL_FUSE_TYPES = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.ntfs-3g"})
"""Those of the many FUSE file systems that are known to lie on this host's disks."""


class Mount(NamedTuple):
    """A mounted file system: where, and of which type."""

    point: str
    type: str


def check(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> None:
    """Raise DatabaseRefused for a place where SQLite cannot keep a database, unless it is allowed
    all the same."""
    danger = find_danger(path)
    if danger is not None and not is_allowed(environ):
        raise DatabaseRefused(
            f"{danger} To use it all the same, at your own risk, set {ALLOWED_BY}=true."
        )


def is_allowed(environ: Mapping[str, str]) -> bool:
    """Whether places that are not safe are to be used."""
    return environ.get(ALLOWED_BY, "").lower() in ("true", "yes", "on", "1")


def find_danger(path: str | os.PathLike[str]) -> str | None:
    """What makes a place unsafe and what to do, or None: nothing that is known."""
    real = os.path.realpath(path)
    if not os.path.isdir(os.path.dirname(real)):  # This mounts what is mounted when it is used.
        return None
    mount = find_mount(real)
    if mount is None:
        return None
    if mount.point == real and not os.path.isdir(real):
        return (
            f"Only the file {real} is mounted here, and SQLite keeps a part of the database beside "
            "it, which would be lost with this container. Mount its directory instead."
        )
    if mount.type in SHARED_TYPES or (
        re.match(r"fuse(\.|$)", mount.type) and mount.type not in LOCAL_FUSE_TYPES
    ):
        return (
            f"{real} is on a file system of type {mount.type}, mounted at {mount.point}, and not "
            "on a local disk. Such a file system cannot share SQLite's log between processes: "
            "writes would be lost and the file ruined. Put the database on a local disk (ext4, "
            "xfs, btrfs, zfs, tmpfs) and let others reach the service over HTTP."
        )
    return None


def find_mount(real: str) -> Mount | None:
    """What a path without symlinks is on, as far as the system tells."""
    found: Mount | None = None
    for mount in _mounts():
        point = mount.point.rstrip("/")
        if (real == point or real.startswith(f"{point}/")) and (
            found is None or len(point) >= len(found.point.rstrip("/"))
        ):
            found = mount  # Of several at one point the last one is seen.
    return found


def _mounts() -> Iterator[Mount]:
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        # 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/sda1 rw
        fields = line.split(" ")
        point, separator = fields[4], fields.index("-")
        yield Mount(
            re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point),
            fields[separator + 1],
        )
