"""Opening files in directories that others can write: only regular files, and never waiting.

A FIFO would be waited for, a device acts when it is opened, and a link leads to files that nobody
meant. All of them are refused without a look at what is in them.
"""

from __future__ import annotations

import errno
import os
import stat

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_READ_BYTES = 1 << 20
PATH_SHOWN_MAX = 240


ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Nothing is there."""

NOT_FOR_US = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EISDIR})
"""Something is there, and it is no regular file or may not be read. Other codes are shortages and
faults of this machine, which say nothing about the file."""


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    *,
    follow: bool = False,
) -> int:
    """A descriptor of a regular file, without waiting for anybody.

    Args:
        follow: whether the last segment of the path may be a link.

    Raises:
        OSError: there is none, or it cannot be opened. What is no regular file has ELOOP, ENXIO or
            EISDIR.
    """
    links = 0 if follow else os.O_NOFOLLOW
    descriptor = os.open(path, flags | links | _FLAGS, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENXIO, "it is not a regular file", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path, fit for a message: printable, quoted, and not long. Its end is there: the name."""
    text = ascii(os.fspath(path))
    return text if len(text) <= PATH_SHOWN_MAX else f"'...{text[-PATH_SHOWN_MAX + 4 :]}"


def read_at_most(descriptor: int, max_bytes: int) -> bytes:
    """Everything in an opened file.

    Raises:
        OSError: it cannot be read, or has more than `max_bytes` (EFBIG).
    """
    parts: list[bytes] = []
    size = os.fstat(descriptor).st_size
    if size <= max_bytes:
        size = 0
        while size <= max_bytes and (part := os.read(descriptor, _READ_BYTES)):
            parts.append(part)
            size += len(part)
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes")
    return b"".join(parts)


def read_regular(path: str | os.PathLike[str], max_bytes: int, *, follow: bool = False) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: as `open_regular` and `read_at_most`.
    """
    descriptor = open_regular(path, follow=follow)
    try:
        return read_at_most(descriptor, max_bytes)
    finally:
        os.close(descriptor)
