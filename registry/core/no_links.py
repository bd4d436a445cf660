"""Looks at files that follow no symlink, not in a directory of the path either.

A resolved path has none. One that was put there since may lead to a file system that hangs, so it
is not even followed to see where it leads.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

_AT_FDCWD = -100
_RESOLVE_NO_SYMLINKS = 0x04
_SYS_OPENAT2 = 437
"""The same on every architecture."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _find_opener() -> Callable[[str], int] | None:
    """Gives a descriptor of what is at a path, for looks alone; None where the kernel is older than
    5.6, or forbids the call."""
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    call.restype = ctypes.c_long
    how = _OpenHow(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    reference, size = ctypes.addressof(how), ctypes.sizeof(how)

    def open_path(path: str, _how: _OpenHow = how) -> int:
        descriptor: int = call(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), reference, size)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return descriptor

    try:
        os.close(open_path("/"))
    except OSError:
        return None
    return open_path


_open_path = _find_opener()

AVAILABLE = _open_path is not None
"""Whether this kernel can look without following links."""


def status(path: str) -> os.stat_result:
    """As `os.lstat`, but OSError (ELOOP) where a directory of the path is a symlink."""
    assert _open_path is not None
    descriptor = _open_path(path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def is_on_the_way(path: str) -> bool:
    """Whether a directory of a path is a symlink, as far as this kernel tells."""
    if _open_path is None or "\0" in path:
        return False
    try:
        os.close(_open_path(path))
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
