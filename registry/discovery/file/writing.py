"""Writing files so that nobody ever sees a part of one, and keeping them live."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = ".tmp_"


class NotOurs(Exception):
    """A file belongs to another user, whom it cannot be left to."""


def write(path: Path, content: bytes) -> None:
    """Write a file, in place of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path.parent, content) as temporary:
        os.replace(temporary, path)


def touch(path: Path, content: bytes) -> None:
    """Keep a file live, and write it again if it is gone, or is nothing that can be touched."""
    try:
        if stat.S_ISREG(path.lstat().st_mode):
            os.utime(path, follow_symlinks=False)
            return
    except (FileNotFoundError, PermissionError):
        # Removed as lapsed, or another user's file.
        pass
    write(path, content)


def swap(path: Path, before: os.stat_result, content: bytes) -> bool:
    """Put another file in the place of one, if it is still there; whether it was.

    The new one has the time, the user and the mode of the old one: who touches that goes on
    touching this, which only its own user can do, and what has lapsed stays so. Between the last
    look and the swap is a moment in which a file that is removed comes back, until it lapses.

    Raises:
        NotOurs: it cannot be left to its user.
    """
    with suppress(FileNotFoundError), _temporary(path.parent, content) as temporary:
        _leave_to(temporary, before)
        now = path.lstat()
        if _is_same(now, before):
            os.utime(temporary, ns=(now.st_atime_ns, now.st_mtime_ns))
            os.replace(temporary, path)
            return True
    return False


def _is_same(now: os.stat_result, before: os.stat_result) -> bool:
    """Files are never written in place, so another content is another file."""
    return all(
        getattr(now, name) == getattr(before, name)
        for name in ("st_dev", "st_ino", "st_mode", "st_uid", "st_size")
    )


def _leave_to(temporary: Path, before: os.stat_result) -> None:
    own = temporary.stat()
    if own.st_uid != before.st_uid:
        try:
            os.chown(temporary, before.st_uid, before.st_gid)
        except PermissionError:
            raise NotOurs(
                f"its file belongs to user {before.st_uid}, who could not keep it live any more; "
                "run this as that user, or as root"
            ) from None
    elif own.st_gid != before.st_gid:
        with suppress(PermissionError):
            os.chown(temporary, -1, before.st_gid)
    os.chmod(temporary, stat.S_IMODE(before.st_mode))


@contextmanager
def _temporary(directory: Path, content: bytes) -> Iterator[Path]:
    path = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            file.write(content)
        yield path
    finally:
        path.unlink(missing_ok=True)
