"""Files of owners: which paths may be held in place, what a file is, and what is in it.

A file's identity is `device:inode:size:mtime_ns:ctime_ns`, taken by `fstat` of the opened file
(S12). A write in the same clock tick would not show in it, so an identity is trusted only when it
was 2 s old as the file was hashed.

An identity that changes says "look again" and accuses nobody: a hard link, `chmod` and a rename
change the ctime of bytes that stay as they are. What was read is judged by its hash.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from registry.core import no_links
from registry.core.regular import ABSENT, NOT_FOR_US, shown_path
from registry.core.work_progress import step
from registry.errors import Busy, FileUnreadable, TooLarge

IDENTITY_TRUSTED_AFTER_NS = 2_000_000_000
READ_BYTES = 1 << 20
LOOKS = 3
"""How often a file that changes meanwhile is opened and read before nothing is said of it."""
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

ABOUT_THE_FILE = (
    ABSENT
    | NOT_FOR_US
    | {errno.ENODEV, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW}
)
"""What a look at a file may fail with that tells something of the file. Every other error tells of
this process, the machine or the file system at this moment, and is never held against the file."""

_WAYS_OUT = {
    errno.EMFILE: "this process has as many files open as it may: raise its limit (ulimit -n)",
    errno.ENFILE: "the machine has as many files open as it can: raise fs.file-max",
    errno.ENOMEM: "memory is short: give more, or lower content_cache_bytes or max_connections",
    errno.ENOBUFS: "memory is short: give more, or lower content_cache_bytes or max_connections",
}
_CHECK_THE_MOUNT = "check the file system that it is on"


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file held when it was read. `identity` is None while it cannot be trusted yet."""

    path: str
    checksum: str
    size: int
    identity: str | None
    content: bytes | bytearray | None = None


class FileChanges(Exception):
    """The cause of a Busy: a file changed at each look, so that nothing can be said of it."""


class Hasher(Protocol):
    """What `blake3` makes of bytes that pass by."""

    def reset(self) -> object: ...

    def update(self, part: bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


def identity_of(status: os.stat_result) -> str:
    """A file's identity as text (S12)."""
    return (
        f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
        f":{status.st_ctime_ns}"
    )


def is_about_the_file(error: BaseException) -> bool:
    """Whether an error tells something of the file that was looked at, not of us or the moment."""
    if isinstance(error, OSError):
        return error.errno in ABOUT_THE_FILE
    return isinstance(error, ValueError)  # No path can look like this one.


@contextmanager
def looking_at(path: str) -> Iterator[None]:
    """What a look at a file raises becomes ours: what it says is decided here and nowhere else.

    Raises:
        FileUnreadable: the error tells something of the file.
        Busy: a shortage of ours, or a file system that fails: it says nothing about the file, and
            may be over when the look is repeated.
    """
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error)
        if is_about_the_file(error):
            raise FileUnreadable(
                f"{shown_path(path)} cannot be read by the registry: {reason}. Check that it "
                "exists and that the registry's user may read it."
            ) from error
        raise Busy(
            f"{shown_path(path)} cannot be looked at now: {reason}. That says nothing about the "
            f"file; {_WAYS_OUT.get(code or 0, _CHECK_THE_MOUNT)}. Try again."
        ) from error


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error, or what `looking_at` made of one, says that there is no memory."""
    cause = error.__cause__ if isinstance(error, Busy) else error
    if isinstance(cause, OSError):
        return cause.errno == errno.ENOMEM
    return isinstance(cause, MemoryError)


def changing(path: str) -> Busy:
    """What is told of a file that changed at each look, with `FileChanges` as its cause."""
    return Busy(
        f"{shown_path(path)} changes while it is read, so that nothing can be said of it. Let "
        "whoever writes it finish, and try again."
    )


def is_changing(error: BaseException) -> bool:
    """Whether a file could not be judged only because it changed at each look."""
    return isinstance(error.__cause__, FileChanges)


def was_absent(error: BaseException) -> bool:
    """Whether a file could not be read because nothing was at its path."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in ABSENT


def trusted_identity(status: os.stat_result, at_ns: int) -> str | None:
    """A file's identity, or None: it was so young at a time that a write might not show in it."""
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    return identity_of(status) if at_ns - changed_ns >= IDENTITY_TRUSTED_AFTER_NS else None


def find_status(path: str) -> os.stat_result | None:
    """The status of what is at a resolved path now, or None: no regular file is there.

    Raises:
        Busy: it cannot be looked at now.
    """
    try:
        with looking_at(path):
            _check_way(path)
            status = os.lstat(path)
    except FileUnreadable:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def find_identity(path: str) -> str | None:
    """The identity of what is at a resolved path now, or None: no regular file is there.

    Raises:
        Busy: it cannot be looked at now.
    """
    status = find_status(path)
    return None if status is None else identity_of(status)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the regular file at a resolved path; anything else is not even opened.

    Raises:
        FileUnreadable: it is not a regular file, cannot be read, or the path leads elsewhere now.
        Busy: it cannot be looked at now, or is replaced all the time.
    """
    descriptor = _open_what_is_there(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_what_is_there(path: str) -> int:
    """Open what is at a path; once more, if it was replaced meanwhile."""
    is_same = False
    for _ in range(LOOKS):
        descriptor = _open(path)
        is_there = False
        try:
            with looking_at(path):
                is_there = not _moved(descriptor, path)
                is_same = is_there or os.path.samestat(os.fstat(descriptor), os.lstat(path))
        finally:
            if not is_there:
                os.close(descriptor)
        if is_there:
            return descriptor
    if is_same:
        raise FileUnreadable(f"{shown_path(path)} leads elsewhere by now. Register it again.")
    raise changing(path) from FileChanges()


def _open(path: str) -> int:
    with looking_at(path):
        _check_way(path)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FileUnreadable(f"{shown_path(path)} is not a regular file.")
        descriptor = os.open(path, _OPEN_FLAGS)
        is_regular = False
        try:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            if not is_regular:
                os.close(descriptor)
    if not is_regular:
        raise FileUnreadable(f"{shown_path(path)} is not a regular file any more.")
    return descriptor


def _check_way(path: str) -> None:
    if no_links.is_on_the_way(path):
        raise FileUnreadable(
            f"{shown_path(path)} leads elsewhere by now: a directory of it became a symlink. "
            "Register it again."
        )


def _moved(descriptor: int, path: str) -> bool:
    """Whether a directory on the way was swapped for a symlink since the path was resolved."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") != path
    except OSError as error:
        if not is_about_the_file(error):
            raise
        return os.path.realpath(path, strict=True) != path  # There is no /proc.


def hash_file(
    path: str,
    *,
    max_bytes: int,
    keep: bool = False,
    hasher: Hasher | None = None,
    expected: str | None = None,
) -> FileContent:
    """Read and hash the regular file at a resolved path.

    With `keep` the bytes come along in `content`; otherwise memory stays at 1 MiB. `hasher` makes
    the checksum, and whatever else it may of the same bytes. Each MiB is a step.

    A file whose identity changed meanwhile is read again. What was read from one descriptor counts
    nevertheless if it has the `expected` checksum, or the one of the look before; its identity
    cannot be trusted.

    Raises:
        FileUnreadable: it is no regular file, or cannot be read.
        TooLarge: it has more than `max_bytes`.
        Busy: it cannot be looked at now, or changes all the time.
    """
    hasher = hasher or blake3()
    before, is_stable = None, False
    for _ in range(LOOKS):
        found, is_stable = _hash_once(path, max_bytes, keep, hasher)
        if found is not None and (is_stable or found.checksum in (expected, before)):
            return found
        before = None if found is None else found.checksum
        del found
    if is_stable:
        raise FileUnreadable(f"{shown_path(path)} does not have as many bytes as it says.")
    raise changing(path) from FileChanges()


def _hash_once(
    path: str, max_bytes: int, keep: bool, hasher: Hasher
) -> tuple[FileContent | None, bool]:
    """What a file held at one look, or None: not as many bytes as it should have. And whether it
    was the same all the time."""
    hasher.reset()
    with looking_at(path), opened(path) as descriptor:
        before = os.fstat(descriptor)
        if before.st_size > max_bytes:
            raise TooLarge(
                f"{shown_path(path)} has {before.st_size} bytes; this registry takes files of at "
                f"most {max_bytes} bytes (max_blob_bytes).",
                max_bytes=max_bytes,
            )
        started_ns = time.time_ns()
        # What is kept comes in one piece: joined from several it would be in memory twice.
        content = bytearray(before.st_size) if keep else None
        size = 0
        while part := _read(descriptor, path, left=before.st_size - size):
            step()
            hasher.update(part)
            if content is not None:
                content[size : size + len(part)] = part
            size += len(part)
            if size > before.st_size:
                break
        after = os.fstat(descriptor)
        kept = bytes(content) if content is not None and size <= READ_BYTES else content
    is_stable = identity_of(after) == identity_of(before)
    if size != before.st_size:
        return None, is_stable
    found = FileContent(
        path=path,
        checksum=f"blake3:{hasher.hexdigest()}",
        size=size,
        identity=trusted_identity(after, started_ns) if is_stable else None,
        content=kept,
    )
    return found, is_stable


def _read(descriptor: int, path: str, *, left: int) -> bytes:
    """The next bytes of a file that should have so many left."""
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError as error:
        if error.errno != errno.EIO or left:
            raise
        # A disk is not asked for what is not there: it is one of the kernel's, like /proc/self/mem.
        raise FileUnreadable(f"{shown_path(path)} is no file with bytes of its own.") from error


def checksum_of(content: bytes | memoryview) -> str:
    """`blake3:` and 64 lowercase hex digits, the form that NVIDIA Dynamo uses."""
    return f"blake3:{blake3(content).hexdigest()}"
