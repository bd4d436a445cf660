"""Files of owners: which paths may be held in place, what a file is, and what is in it.

A file's identity is `device:inode:size:mtime_ns:ctime_ns`, taken by `fstat` of the opened file
(S12). A write in the same clock tick would not show in it, so an identity is trusted only when it
was 2 s old as the file was hashed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from blake3 import blake3

from registry.core.regular import ABSENT, NOT_FOR_US, shown_path
from registry.errors import Busy, FileUnreadable, PathNotAllowed, SettingsError, TooLarge

IDENTITY_TRUSTED_AFTER_NS = 2_000_000_000
READ_BYTES = 1 << 20
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
    content: bytes | None = None


class ArtifactRoots:
    """The directories below which files may be held in place (S13).

    None trusts the caller with any path; an empty list allows none.

    Raises:
        SettingsError: a root is not a directory.
    """

    def __init__(self, roots: Sequence[str | os.PathLike[str]] | None) -> None:
        self.roots: tuple[str, ...] | None = None
        if roots is not None:
            self.roots = tuple(_resolved_root(os.fspath(root)) for root in roots)
            self._prefixes = tuple(root.rstrip("/") + "/" for root in self.roots)

    def allow(self, resolved_path: str) -> bool:
        """Whether a resolved path lies below a root."""
        return self.roots is None or resolved_path.startswith(self._prefixes)

    def resolve(self, path: str) -> str:
        """The real path of a file that may be held in place, symlinks followed.

        Raises:
            PathNotAllowed: it lies outside of every root, or no root is configured.
            FileUnreadable: the path is relative, or is none.
            Busy: it cannot be looked at now, which says nothing about the file.
        """
        if self.roots == ():
            raise PathNotAllowed(
                "This registry has no artifact root, so no file can be registered in place. Copy "
                "the content in, or start the service with --artifact-root."
            )
        if not os.path.isabs(path):
            raise FileUnreadable(
                f"The path {shown_path(path)} is not absolute. Give the full path."
            )
        with looking_at(path):
            try:
                resolved = os.path.realpath(path, strict=True)
            except OSError as error:
                if not is_about_the_file(error):
                    raise
                # Judged by where it would be: whether something is there is told below a root only.
                resolved = os.path.realpath(path)
        try:
            resolved.encode()  # It is kept as text.
        except UnicodeEncodeError as error:
            raise FileUnreadable(
                f"The path {shown_path(path)} leads to a name that is not UTF-8."
            ) from error
        if not self.allow(resolved):
            raise PathNotAllowed(
                f"{shown_path(path)} is not below an artifact root of this registry, symlinks "
                "followed. Copy the content in, or start the service with another --artifact-root."
            )
        return resolved


def _resolved_root(root: str) -> str:
    resolved = os.path.realpath(root)
    if not os.path.isdir(resolved):
        raise SettingsError(f"The artifact root {root} is not a directory. Create it, or drop it.")
    return resolved


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


def find_identity(path: str) -> str | None:
    """The identity of what is at a resolved path now, or None: no regular file is there.

    Raises:
        Busy: it cannot be looked at now.
    """
    try:
        with looking_at(path):
            return identity_of_regular(os.lstat(path))
    except FileUnreadable:
        return None


def identity_of_regular(status: os.stat_result) -> str | None:
    """The identity of a regular file, or None: it is something else."""
    return identity_of(status) if stat.S_ISREG(status.st_mode) else None


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the regular file at a resolved path; anything else is not even opened.

    Raises:
        FileUnreadable: it is not a regular file, cannot be read, or the path leads elsewhere now.
        Busy: it cannot be looked at now.
    """
    with looking_at(path):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FileUnreadable(f"{shown_path(path)} is not a regular file.")
        descriptor = os.open(path, _OPEN_FLAGS)
    try:
        with looking_at(path):
            moved = not stat.S_ISREG(os.fstat(descriptor).st_mode) or _moved(descriptor, path)
        if moved:
            raise FileUnreadable(
                f"{shown_path(path)} changed while it was opened. Register it again."
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _moved(descriptor: int, path: str) -> bool:
    """Whether a directory on the way was swapped for a symlink since the path was resolved."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") != path
    except OSError as error:
        if not is_about_the_file(error):
            raise
        return os.path.realpath(path, strict=True) != path  # There is no /proc.


def hash_file(path: str, *, max_bytes: int, keep: bool = False) -> FileContent:
    """Read and hash the regular file at a resolved path.

    With `keep` the bytes come along in `content`; otherwise memory stays at 1 MiB.

    Raises:
        FileUnreadable: it is no regular file, cannot be read, or was written to meanwhile.
        TooLarge: it has more than `max_bytes`.
        Busy: it cannot be looked at now.
    """
    with looking_at(path), opened(path) as descriptor:
        before = os.fstat(descriptor)
        if before.st_size > max_bytes:
            raise TooLarge(
                f"{shown_path(path)} has {before.st_size} bytes; this registry takes files of at "
                f"most {max_bytes} bytes (max_blob_bytes).",
                max_bytes=max_bytes,
            )
        started_ns = time.time_ns()
        hasher = blake3()
        parts: list[bytes] = []
        size = 0
        # What is kept comes in one piece: joined from several it would be in memory twice.
        at_once = before.st_size + 1 if keep else READ_BYTES
        while part := _read(descriptor, path, at_once, left=before.st_size - size):
            size += len(part)
            if size > before.st_size:
                break
            hasher.update(part)
            if keep:
                parts.append(part)
        after = os.fstat(descriptor)
    if size != before.st_size or identity_of(after) != identity_of(before):
        raise FileUnreadable(f"{shown_path(path)} changed while it was read. Register it again.")
    changed_ns = max(after.st_mtime_ns, after.st_ctime_ns)
    trusted = started_ns - changed_ns >= IDENTITY_TRUSTED_AFTER_NS
    with looking_at(path):
        content = b"".join(parts) if keep else None
    return FileContent(
        path=path,
        checksum=f"blake3:{hasher.hexdigest()}",
        size=size,
        identity=identity_of(after) if trusted else None,
        content=content,
    )


def _read(descriptor: int, path: str, length: int, *, left: int) -> bytes:
    """The next bytes of a file that should have so many left."""
    try:
        return os.read(descriptor, length)
    except OSError as error:
        if error.errno != errno.EIO or left:
            raise
        # A disk is not asked for what is not there: it is one of the kernel's, like /proc/self/mem.
        raise FileUnreadable(f"{shown_path(path)} is no file with bytes of its own.") from error


def checksum_of(content: bytes | memoryview) -> str:
    """`blake3:` and 64 lowercase hex digits, the form that NVIDIA Dynamo uses."""
    return f"blake3:{blake3(content).hexdigest()}"
