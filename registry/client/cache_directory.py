"""The directory of the cache: where it is by default, whose it must be, what its failures mean."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from registry.errors import DirectoryUnusable

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/metadata-registry`, where XDG_CACHE_HOME is `~/.cache` if unset.

    A user without a home that can be written to, as containers have, gets
    `metadata-registry-<user id>` in the directory for temporary files.

    Raises:
        DirectoryUnusable: that is there and belongs to somebody else.
    """
    base = environ.get("XDG_CACHE_HOME", "")
    # A relative path there is to be ignored, says the XDG base directory specification.
    if os.path.isabs(base):
        return Path(base) / "metadata-registry"
    home = _home(environ)
    if home is not None and _can_be_made(home / ".cache" / "metadata-registry"):
        return home / ".cache" / "metadata-registry"
    return _temporary_directory()


def _home(environ: Mapping[str, str]) -> Path | None:
    """The user's home directory, or None: there is none."""
    if os.path.isabs(environ.get("HOME", "")):
        return Path(environ["HOME"])
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return Path(home) if os.path.isabs(home) else None


def _can_be_made(directory: Path) -> bool:
    """Whether a directory is there and can be written to, or can be made."""
    for each in (directory, *directory.parents):
        if os.path.lexists(each):
            return each.is_dir() and os.access(each, os.W_OK | os.X_OK)
    return False


def _temporary_directory() -> Path:
    """A directory of this user's own where everybody may make one."""
    advice = "Set XDG_CACHE_HOME to a directory that this user may write to."
    try:
        directory = Path(tempfile.gettempdir()) / f"metadata-registry-{os.getuid()}"
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
    except OSError as error:
        raise DirectoryUnusable(
            f"There is no place for a cache: {error.strerror}. {advice}"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise DirectoryUnusable(f"{directory} does not belong to this user alone. {advice}")
    return directory


@contextmanager
def failures_in(directory: Path) -> Iterator[None]:
    """Turns what a file system raises about a directory into DirectoryUnusable."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            # A deadline that is over is an OSError as well.
            raise
        where = error.filename2 or error.filename
        named = "" if where is None else f" ({os.fsdecode(where)!a})"
        raise DirectoryUnusable(
            f"{directory} cannot be used: {os.strerror(error.errno)}{named}. Check who owns it, "
            "its rights and its space, or choose another directory."
        ) from error


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_ours(directory: Path) -> None:
    """Raise unless a directory is one, and is safe from other users.

    Raises:
        DirectoryUnusable: it is a link or no directory, or others may change what is in it.
        OSError: it is not there, or cannot be looked at.
    """
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryUnusable(f"{directory} is no directory, or a link to one. Remove it.")
    user = os.geteuid()
    if status.st_uid == user and status.st_mode & _OTHERS_MAY_WRITE:
        # Made under a generous umask. A file system without modes stays as it is.
        with suppress(OSError):
            directory.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_MAY_WRITE)
    elif status.st_uid not in (user, 0) or status.st_mode & _OTHERS_MAY_WRITE:
        raise DirectoryUnusable(
            f"{directory} belongs to user {status.st_uid} (mode {stat.S_IMODE(status.st_mode):o}), "
            f"who could change files behind the back of user {user}. Remove it, or set "
            "XDG_CACHE_HOME to another directory."
        )
