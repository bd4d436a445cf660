"""Which files of a database the processes of this host have open.

SQLite finds the write-ahead log and its index by their names. When one of them is removed while a
process has the database open, the next process makes another one, both go on writing, and the
database is ruined. So whoever opens a database here announces its files, and opens nothing while
somebody has announced others.

An announcement is a shared lock on a byte of the directory that the database is in: it needs no
file, nobody can remove it, and it goes with its process. The bytes are those of the name and of the
inode of the database, so that neither a file that took the name nor a second name escapes. Where
the system knows no such lock, or the directory may not be read, nothing is announced.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import weakref
from hashlib import blake2b
from typing import NamedTuple

from registry.errors import Busy
from registry.store.sqlite.errors import shortage

WAL_SUFFIX = "-wal"
SHM_SUFFIX = "-shm"
LOCK_BYTES = (0x40000000, 512)
"""Where in a file SQLite's locks are. Whoever has a database open holds some of it."""

GRACE_S = 0.25
"""How long others may take to open or to close a database, in which its files come and go."""
_PAUSE_S = 0.005
_SLOT_BITS = 30
_FLOCK = "hhqqi4x"

FileId = tuple[int, int]


class Files(NamedTuple):
    """What lies at a database's path: device and inode of each file, None where there is none."""

    database: FileId | None
    wal: FileId | None
    shm: FileId | None

    @property
    def is_whole(self) -> bool:
        """Whether the log and its index are there, as they are while somebody has it open."""
        return None not in self


def find_files(path: str) -> Files:
    """The files of a database at a path without symlinks."""
    return Files(find_id(path), find_id(path + WAL_SUFFIX), find_id(path + SHM_SUFFIX))


def find_id(path: str) -> FileId | None:
    """Device and inode of a file, or None: it is not there, or out of reach."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def size_of(path: str | os.PathLike[str]) -> int:
    """The size of a file, 0 if it is not there or out of reach."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


_announcements: weakref.WeakSet[Announcement] = weakref.WeakSet()


class Announcement:
    """What one user of a database says about the files that it has open, and what others say."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._descriptor: int | None = None
        self._bytes: list[int] = []
        if hasattr(fcntl, "F_OFD_SETLK"):
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                self._descriptor = os.open(os.path.dirname(self._path), flags)
            except OSError as error:
                if (used_up := shortage(error)) is not None:
                    raise used_up from error
        _announcements.add(self)

    def wait_until_free(self, *, is_wal: bool = False, patience_s: float = GRACE_S) -> None:
        """Return once nobody has the database open with other files than those at its path.

        With `is_wal` the database has a log whenever it is open: without one, or without its
        index, no other program may have it open either, as far as the system tells.

        Raises:
            Busy: somebody still does after `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        while True:
            files = find_files(self._path)
            if not self._is_contradicted(files) and not (
                is_wal and not files.is_whole and find_holders(files.database)
            ):
                return
            if time.monotonic() > deadline:
                raise self._in_use(files)
            time.sleep(_PAUSE_S)

    def announce(self, files: Files) -> None:
        """Say that these files are open here, until `close`.

        Raises:
            Busy: somebody has others open.
        """
        if self._descriptor is None:
            return
        for start in self._spans(files):
            byte = start + _slot(files)
            try:
                self._lock(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte, 1)
            except OSError:
                return  # The file system knows no locks.
            self._bytes.append(byte)
        if self._is_contradicted(files):
            raise self._in_use(files)

    def close(self) -> None:
        """Take back what was said."""
        if self._descriptor is None:
            return
        for byte in self._bytes:
            self._lock(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte, 1)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor. Whoever has a copy of it goes on saying the same."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_contradicted(self, files: Files) -> bool:
        if self._descriptor is None:
            return False
        slot = _slot(files)
        try:
            return any(
                self._is_locked(start, slot)
                or self._is_locked(start + slot + 1, (1 << _SLOT_BITS) - slot - 1)
                for start in self._spans(files)
            )
        except OSError:
            return False

    def _spans(self, files: Files) -> list[int]:
        """Where the bytes begin that stand for the database: by its name, and by its inode."""
        names: list[object] = [os.path.basename(self._path)]
        if files.database is not None:
            names.append(files.database)
        return [_hashed(name) << _SLOT_BITS for name in names]

    def _is_locked(self, start: int, length: int) -> bool:
        if not length:
            return False
        found = self._lock(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, start, length)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def _lock(self, command: int, kind: int, start: int, length: int) -> bytes:
        assert self._descriptor is not None
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
        return fcntl.fcntl(self._descriptor, command, request)

    def _in_use(self, files: Files) -> Busy:
        holders = find_holders(files.database)
        who = f" (process {', '.join(map(str, sorted(holders)))})" if holders else ""
        return Busy(
            f"Files of the database {self._path} were removed or replaced while it was in use, and "
            f"somebody still has those open that were there before{who}. What was acknowledged is "
            "kept, and nothing is written until all have let go of them: services do so by "
            "themselves, a shell or another program has to be ended."
        )


def find_holders(database: FileId | None) -> set[int]:
    """The other processes that have a SQLite database open, as far as the system tells."""
    found: set[int] = set()
    if database is None:
        return found
    device, inode = database
    name = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    start, length = LOCK_BYTES
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                # 1: POSIX  ADVISORY  READ 26791 fe:00:5775636 1073741826 1073742335
                fields = line.split()
                if (
                    len(fields) == 8
                    and fields[5] == name
                    and start <= int(fields[6]) < start + length
                ):
                    found.add(int(fields[4]))
    except (OSError, ValueError):
        return set()
    return found - {os.getpid()}


def _slot(files: Files) -> int:
    return _hashed(tuple(files))


def _hashed(value: object) -> int:
    digest = blake2b(repr(value).encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest) & ((1 << _SLOT_BITS) - 1)


def _forked() -> None:
    """In a child, which has nothing open: what its parent says ends with the parent."""
    for announcement in list(_announcements):
        announcement.forget()


os.register_at_fork(after_in_child=_forked)
