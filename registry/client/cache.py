"""Fetched content on disk, by checksum, shared by all processes of a user.

    blobs/<64 hex digits>      content; read-only, because it is linked into other directories
    partial/<64 hex digits>    what came so far of content that is being downloaded

A blob appears by a rename when it is complete, verified and synced. Whoever downloads locks the
partial file, so that others wait for the bytes instead of asking for them again; the lock ends
with its process, and the next one goes on where that one ended. Whoever uses a blob hashes it
again.

Both directories belong to the user, and nobody else may write in them; nor are they links. What
else stands in them, links, pipes or other names, is not followed, waited for or removed, but a
thing in the place of a partial file is.

The cache is bounded: after a download, blobs that no directory links to go, the least recently used
first. What was used within the last hour stays, because somebody may be about to link to it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from registry.client.cache_directory import check_ours, failures_in, sync_directory
from registry.core.checks import check_checksum
from registry.core.hashing import (
    FileContent,
    hash_file,
    is_about_the_file,
    is_changing,
    looking_at,
)
from registry.core.regular import open_regular
from registry.errors import Busy, DirectoryUnusable, FileUnreadable, TooLarge

CACHE_MAX_BYTES = 10 << 30
USED_LATELY_S = 3600.0
PARTIAL_KEPT_S = 24 * 3600.0
LOCKED_MAX_S = 1.0
"""How long a blob may be locked by somebody who looks whether it can go."""

CLAIM_TRIES = 100
_is_blob = re.compile(r"[0-9a-f]{64}").fullmatch
_is_partial = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?").fullmatch


class BlobCache:
    """Content by checksum in one directory, which is made when something is added.

    Every method that is given a checksum raises Invalid if it is none, and DirectoryUnusable if
    the directory is not one that this user alone can write in.

    Args:
        max_bytes: how much is kept; linked blobs and those used lately may exceed it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, max_bytes: int = CACHE_MAX_BYTES
    ) -> None:
        self.directory = Path(directory)
        self.blobs = self.directory / "blobs"
        self._partial = self.directory / "partial"
        self._max_bytes = max_bytes

    def path_of(self, checksum: str) -> Path:
        """Where content is when it is there."""
        check_checksum(checksum)
        return self.blobs / checksum.removeprefix("blake3:")

    def find(self, checksum: str, max_bytes: int) -> FileContent | None:
        """What is kept under a checksum, hashed now; None when nothing usable is.

        The caller compares: a damaged file is returned as what it is. What is found stays for an
        hour at least.

        Raises:
            Busy: it cannot be looked at now.
        """
        path = self.path_of(checksum)
        try:
            with looking_at(str(path)):
                check_ours(self.blobs)
                # Links on the way to the cache are the user's own; behind it there is none.
                path = Path(os.path.realpath(self.blobs)) / path.name
                if not _note_use(path):
                    return None
            return hash_file(str(path), max_bytes=max_bytes, expected=checksum)
        except (FileUnreadable, TooLarge):
            return None
        except Busy as error:
            if not is_changing(error):
                raise
            return None

    def try_claim(self, checksum: str) -> DownloadClaim | None:
        """The right to download content, or None while another process or thread has it."""
        target = self.path_of(checksum)
        path = self._partial / target.name
        with failures_in(self.directory):
            self._make()
            for _ in range(CLAIM_TRIES):
                file = _open_partial(path)
                if file is None:
                    continue
                if not _lock(file, fcntl.LOCK_EX):
                    file.close()
                    return None
                if _is_at(file, path):
                    return DownloadClaim(file, path, target)
                # Another one finished with this file between our opening and locking it.
                file.close()
        raise DirectoryUnusable(f"{path} is replaced again and again by somebody else.")

    def claim_beside(self, checksum: str) -> DownloadClaim:
        """A claim beside another's, for when that one does not get on: its process is stopped."""
        target = self.path_of(checksum)
        path = self._partial / f"{target.name}.{secrets.token_hex(8)}"
        with failures_in(self.directory):
            self._make()
            file = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), "r+b")
            _lock(file, fcntl.LOCK_EX)
        return DownloadClaim(file, path, target)

    def partial_size(self, checksum: str) -> int:
        """How much has come of content that is being downloaded."""
        try:
            return (self._partial / self.path_of(checksum).name).lstat().st_size
        except OSError:
            return 0

    def collect(self) -> None:
        """Remove what others left over, and what the bound leaves no room for, as far as that can
        be done."""
        try:
            check_ours(self._partial)
            check_ours(self.blobs)
        except (OSError, DirectoryUnusable):
            return
        for path, _ in _files_in(self._partial, _is_partial):
            _remove_if(path, lambda status: _is_long_ago(status.st_mtime, PARTIAL_KEPT_S))
        blobs = list(_files_in(self.blobs, _is_blob))
        excess = sum(status.st_size for _, status in blobs) - self._max_bytes
        for path, status in sorted(blobs, key=lambda blob: _used_at(blob[1])):
            if excess <= 0:
                return
            if _remove_if(path, _is_unused):
                excess -= status.st_size

    def _make(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for directory in (self._partial, self.blobs):
            with suppress(FileExistsError):
                directory.mkdir(mode=0o755)
            check_ours(directory)


class DownloadClaim:
    """The right to download one blob, until `close`.

    `file` holds what came so far, perhaps of an earlier process. It stays for the next claim,
    unless it was kept as the blob.
    """

    def __init__(self, file: BinaryIO, path: Path, target: Path) -> None:
        self.file = file
        self._path = path
        self._target = target

    def keep(self) -> Path:
        """Make the file the blob. The caller has seen to it that it is the right content.

        Raises:
            DirectoryUnusable: it cannot be kept.
        """
        with failures_in(self._target.parent.parent):
            self.file.flush()
            descriptor = self.file.fileno()
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o444)
            os.fsync(descriptor)
            os.replace(self._path, self._target)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            sync_directory(self._target.parent)
        return self._target

    def close(self) -> None:
        """Let others have a go. What cannot be written any more is left out."""
        with suppress(OSError):
            self.file.flush()
            if os.fstat(self.file.fileno()).st_size == 0 and _is_at(self.file, self._path):
                self._path.unlink()
        with suppress(OSError):
            self.file.close()


def _open_partial(path: Path) -> BinaryIO | None:
    """A partial file, made if need be; None: something else was there, and is gone now."""
    try:
        file = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")
    except OSError as error:
        if not is_about_the_file(error) or isinstance(error, FileNotFoundError):
            raise
        path.unlink(missing_ok=True)
        return None
    if os.fstat(file.fileno()).st_nlink > 1:
        # What is written here must not be written elsewhere as well.
        file.close()
        path.unlink(missing_ok=True)
        return None
    return file


def _lock(file: BinaryIO, kind: int) -> bool:
    """Whether the lock on a file could be had. It ends when the file is closed."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether a path still leads to an opened file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _note_use(path: Path) -> bool:
    """Keep a blob from being removed while blobs used lately are kept; whether it is there.

    Raises:
        OSError: it is not there, or is something else.
    """
    deadline = time.monotonic() + LOCKED_MAX_S
    with os.fdopen(open_regular(path), "rb") as file:
        while not _lock(file, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        status = os.fstat(file.fileno())
        # A linked blob is safe as it is, and a file elsewhere should not seem to have changed.
        if status.st_nlink == 1:
            with suppress(OSError):
                # In a cache that cannot be written, nobody removes anything.
                os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
        return _is_at(file, path)


def _remove_if(path: Path, useless: Callable[[os.stat_result], bool]) -> bool:
    """Remove a file that nobody has locked and that is useless, looked at under a lock."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if not (_lock(file, fcntl.LOCK_EX) and _is_at(file, path)):
                return False
            if useless(os.fstat(file.fileno())):
                path.unlink()
                return True
    except OSError:
        # Gone already, or not ours to remove.
        pass
    return False


def _is_unused(status: os.stat_result) -> bool:
    return status.st_nlink == 1 and _is_long_ago(_used_at(status), USED_LATELY_S)


def _is_long_ago(then: float, long_s: float) -> bool:
    # A time far ahead is a clock that was wrong; it must not keep a file for ever.
    return abs(time.time() - then) > long_s


def _used_at(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _files_in(
    directory: Path, is_ours: Callable[[str], object]
) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files of a directory whose names this cache gives."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if is_ours(entry.name) and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
