"""Fetched content on disk, by checksum, shared by all processes of a user.

    blobs/<64 hex digits>      content; read-only, because it is linked into other directories
    partial/<64 hex digits>    what came so far of content that is being downloaded

A blob appears by a rename when it is complete, verified and synced. Whoever downloads locks the
partial file, so that others wait for the bytes instead of asking for them again; the lock ends
with its process, and the next one goes on where that one ended. Whoever uses a blob hashes it
again.

The cache is bounded: after a download, blobs that no directory links to go, the least recently used
first. What was used within the last hour stays, because somebody may be about to link to it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from registry.core.hashing import FileContent, hash_file, looking_at
from registry.errors import FileUnreadable, TooLarge

CACHE_MAX_BYTES = 10 << 30
USED_LATELY_S = 3600.0
PARTIAL_KEPT_S = 24 * 3600.0


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/metadata-registry`, where XDG_CACHE_HOME is `~/.cache` if unset."""
    base = environ.get("XDG_CACHE_HOME", "")
    # A relative path there is to be ignored, says the XDG base directory specification.
    cache_home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return cache_home / "metadata-registry"


class BlobCache:
    """Content by checksum in one directory, which is made when something is added.

    Args:
        max_bytes: how much is kept; linked blobs and those used lately may exceed it.
    """

    def __init__(self, directory: Path, *, max_bytes: int = CACHE_MAX_BYTES) -> None:
        self.blobs = directory / "blobs"
        self._partial = directory / "partial"
        self._max_bytes = max_bytes

    def path_of(self, checksum: str) -> Path:
        """Where content is when it is there."""
        return self.blobs / checksum.removeprefix("blake3:")

    def find(self, checksum: str, max_bytes: int) -> FileContent | None:
        """What is kept under a checksum, hashed now; None when nothing usable is.

        The caller compares: a damaged file is returned as what it is. What is found stays for an
        hour at least.
        """
        path = self.path_of(checksum)
        try:
            with looking_at(str(path)):
                _note_use(path)
            return hash_file(os.path.realpath(path), max_bytes=max_bytes)
        except (FileUnreadable, TooLarge):
            return None

    def try_claim(self, checksum: str) -> Claim | None:
        """The right to download content, or None while another process or thread has it."""
        self._make()
        path = self._partial / self.path_of(checksum).name
        while True:
            file = _open_for_writing(path)
            if not _lock(file, fcntl.LOCK_EX):
                file.close()
                return None
            if _is_at(file, path):
                return Claim(file, path, self.path_of(checksum))
            # Another one finished with this file between our opening and locking it.
            file.close()

    def claim_beside(self, checksum: str) -> Claim:
        """A claim beside another's, for when that one does not get on: its process is stopped."""
        self._make()
        name = f"{self.path_of(checksum).name}.{secrets.token_hex(8)}"
        file = _open_for_writing(self._partial / name)
        _lock(file, fcntl.LOCK_EX)
        return Claim(file, self._partial / name, self.path_of(checksum))

    def partial_size(self, checksum: str) -> int:
        """How much has come of content that is being downloaded."""
        try:
            return (self._partial / self.path_of(checksum).name).stat().st_size
        except OSError:
            return 0

    def collect(self) -> None:
        """Remove what others left over, and what the bound leaves no room for."""
        for path, _ in _files_in(self._partial):
            _remove_if(path, lambda status: time.time() - status.st_mtime > PARTIAL_KEPT_S)
        blobs = list(_files_in(self.blobs))
        excess = sum(status.st_size for _, status in blobs) - self._max_bytes
        for path, status in sorted(blobs, key=lambda blob: _used_at(blob[1])):
            if excess <= 0:
                return
            if _remove_if(path, _is_unused):
                excess -= status.st_size

    def _make(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        self.blobs.mkdir(parents=True, exist_ok=True)


class Claim:
    """The right to download one blob, until `close`.

    `file` holds what came so far, perhaps of an earlier process. It stays for the next claim,
    unless it was kept as the blob.
    """

    def __init__(self, file: BinaryIO, path: Path, target: Path) -> None:
        self.file = file
        self._path = path
        self._target = target

    def keep(self) -> Path:
        """Make the file the blob. The caller has seen to it that it is the right content."""
        self.file.flush()
        descriptor = self.file.fileno()
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o444)
        os.fsync(descriptor)
        os.replace(self._path, self._target)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        sync_directory(self._target.parent)
        return self._target

    def close(self) -> None:
        """Let others have a go."""
        self.file.flush()
        if os.fstat(self.file.fileno()).st_size == 0 and _is_at(self.file, self._path):
            self._path.unlink()
        self.file.close()


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_for_writing(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")


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


def _note_use(path: Path) -> None:
    """Keep a blob from being removed for as long as blobs used lately are kept.

    Raises:
        OSError: it is not there, or not any more.
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
        # A linked blob is safe as it is, and a file elsewhere should not seem to have changed.
        if status.st_nlink == 1:
            os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
        if not _is_at(file, path):
            raise FileNotFoundError(path)


def _remove_if(path: Path, useless: Callable[[os.stat_result], bool]) -> bool:
    """Remove a file that nobody has locked and that is useless, looked at under a lock."""
    try:
        with path.open("rb") as file:
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
    return status.st_nlink == 1 and time.time() - _used_at(status) > USED_LATELY_S


def _used_at(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _files_in(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
