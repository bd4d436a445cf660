"""Which files can keep a caller waiting: the mounts that this process sees, by their types.

A call on a file of a network or FUSE file system may take for ever, so none is made where others
wait for it. Whatever is not known to be local counts as remote.
"""

from __future__ import annotations

import logging
import os
import re
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from registry.core import no_links

TABLE = "/proc/self/mountinfo"

LOCAL = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "nilfs2"),
        *("reiserfs", "tmpfs", "ramfs", "squashfs", "erofs", "iso9660", "udf", "vfat", "exfat"),
        *("msdos", "ntfs3", "hfsplus", "ubifs", "jffs2"),
    )
)
"""Types that ask nobody but the kernel and the disks of this machine."""

KERNEL = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "hugetlbfs", "nsfs", "cgroup"),
        *("cgroup2", "debugfs", "tracefs", "securityfs", "selinuxfs", "pstore", "bpf"),
        *("configfs", "fusectl", "binfmt_misc", "efivarfs", "rpc_pipefs", "nfsd"),
    )
)
"""Types in which the kernel shows itself. No holder has files there, and nobody waits."""

_octal = re.compile(r"\\([0-7]{3})")

log = logging.getLogger("registry")

Status = Callable[[str], os.stat_result]
"""The status of what is at a path itself, as `os.lstat` gives it, or OSError."""


_guarded: Status | None = no_links.status if no_links.AVAILABLE else None


class _Name:
    """A component of the path of a mount point."""

    __slots__ = ("below", "point")

    def __init__(self) -> None:
        self.point: str | None = None
        """The path as far as here, if something is mounted there."""
        self.below: dict[str, _Name] = {}


class Mounts:
    """The mounts of a process at one moment, from the text of `/proc/self/mountinfo`.

    A look-up costs as much as the mount points are deep, however long the path is.
    """

    def __init__(self, table: str) -> None:
        self._options: dict[str, list[tuple[str, str]]] = {}
        """By mount point, the type and options of everything that is mounted there."""
        for line in filter(None, table.split("\n")):
            front, _, back = line.partition(" - ")
            kind, _, options = back.split(" ", 2)
            self._options.setdefault(_plain(front.split(" ")[4]), []).append((kind, options))
        self._top = _Name()
        for point in self._options:
            self._add(point)
        self._local: dict[str, bool] = {}
        """By mount point, what was found out of `is_local`."""
        self.any_remote = not all(map(self._is_harmless, self._options))
        """Whether there is a mount that can keep a caller waiting, anywhere."""

    def point_of(self, path: str) -> str:
        """The mount point above an absolute path without links, or `/`."""
        found, name, start = "/", self._top, 1
        while name.below:
            end = path.find("/", start)
            below = name.below.get(path[start:] if end < 0 else path[start:end])
            if below is None:
                break
            found = below.point or found
            if end < 0:
                break
            name, start = below, end + 1
        return found

    def _add(self, point: str) -> None:
        name = self._top
        for part in filter(None, point.split("/")):
            name = name.below.setdefault(part, _Name())
        name.point = point

    def is_local(self, path: str) -> bool:
        """Whether a look at an absolute path without links waits for this machine alone."""
        point = self.point_of(path)
        is_local = self._local.get(point)
        if is_local is None:
            is_there = all(kind in LOCAL or kind == "overlay" for kind, _ in self._types(point))
            is_local = is_there and self._is_harmless(point) and self._is_reached(point)
            self._local[point] = is_local
        return is_local

    def _is_reached(self, point: str) -> bool:
        """Whether nothing remote is mounted on the way to a mount."""
        while point != "/":
            point = self.point_of(os.path.dirname(point))
            if not self._is_harmless(point):
                return False
        return True

    def _types(self, point: str) -> list[tuple[str, str]]:
        return self._options.get(point, [("unknown", "")])

    def _is_harmless(self, point: str) -> bool:
        return all(
            kind in LOCAL
            or kind in KERNEL
            or (kind == "overlay" and (point == "/" or self._are_local(_layers_of(options))))
            or (kind == "autofs" and point.startswith("/proc/"))
            for kind, options in self._types(point)
        )

    def _are_local(self, layers: list[str]) -> bool:
        """Whether all layers of an overlay are local. Those of the root are not asked for: this
        program itself runs from there, and a container cannot see its layers."""
        kinds = [self._types(self.point_of(layer)) for layer in layers if os.path.isabs(layer)]
        is_local = all(kind in LOCAL for each in kinds for kind, _ in each)
        return is_local and 0 < len(kinds) == len(layers)


def _layers_of(options: str) -> list[str]:
    """The directories that an overlay is made of."""
    found = []
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"):
            found += [layer for layer in value.split(":") if layer]
    return found


def _plain(text: str) -> str:
    """A path as it is, from a table that spells white space and backslashes as octal numbers."""
    return _octal.sub(lambda found: chr(int(found[1], 8)), text)


class MountTable:
    """The mounts as they are now: read again, in a thread, whenever one comes or goes.

    Without `/proc` nothing is local.
    """

    def __init__(self) -> None:
        self._table: BinaryIO | None = None
        self._stop: int | None = None
        self._on_change: Callable[[], None] = lambda: None
        self.mounts = Mounts("")
        self.find_status: Status | None = None
        """Looks at a local path without waiting for anybody, however it leads; None: none can."""
        with suppress(OSError):
            self._table = open(TABLE, "rb", buffering=0)  # noqa: SIM115
            self._read(self._table.fileno())

    def start(self, on_change: Callable[[], None]) -> None:
        """Watch from now on. `on_change` is called from the thread that does."""
        if self._table is not None:
            stopped, self._stop = os.pipe2(os.O_CLOEXEC)
            self._on_change = on_change
            thread = threading.Thread(
                target=self._watch, args=(self._table, stopped), name="registry-mounts", daemon=True
            )
            thread.start()

    def close(self) -> None:
        """Watch no longer."""
        if self._stop is not None:
            os.close(self._stop)  # Which tells the thread.
        elif self._table is not None:
            self._table.close()

    def _watch(self, table: BinaryIO, stopped: int) -> None:
        waiting = select.poll()
        waiting.register(table, select.POLLPRI)
        waiting.register(stopped, 0)
        while not any(descriptor == stopped for descriptor, _ in waiting.poll()):
            self._read(table.fileno())
            self._on_change()
        table.close()
        os.close(stopped)

    def _read(self, table: int) -> None:
        mounts = read_mounts(table)
        self.find_status = _guarded if mounts.any_remote else os.lstat
        self.mounts = mounts


def read_mounts(table: int | None = None) -> Mounts:
    """The mounts as they are now. All files count as remote if they cannot be read.

    `table` is a descriptor of `/proc/self/mountinfo`.
    """
    if table is None:
        try:
            with open(TABLE, "rb", buffering=0) as opened:
                return read_mounts(opened.fileno())
        except OSError:
            return Mounts("")
    try:
        os.lseek(table, 0, os.SEEK_SET)
        parts = []
        while part := os.read(table, 1 << 16):
            parts.append(part)
        return Mounts(os.fsdecode(b"".join(parts)))
    except (OSError, ValueError, IndexError) as error:
        log.warning("the mounts cannot be read, so all files count as remote: %s", error)
        return Mounts("")
