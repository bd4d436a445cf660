"""The token file as a file: who may write to it, and how it is replaced in one step."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.core.settings_files import read_toml_text
from registry.errors import SettingsError

FILE_MODE = 0o600


def read(path: Path) -> tuple[str, int]:
    """The text of the file and its mode."""
    hint = f"Make one with `metadata-registry token new --role admin --token-file {path}`."
    text, status = read_toml_text(path, "token file", hint=hint)
    return text, status.st_mode


def check_mode(path: Path, mode: int) -> None:
    """A group may read the file, as it must where it is mounted for a service's user."""
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise SettingsError(
            f"The token file {path} has the mode {stat.S_IMODE(mode):04o}; it must be 0600, or "
            f"0640 if its group has to read it. Do: chmod 600 {path}"
        )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One at a time may replace files in the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Replace the file in one step. Its mode, owner and group stay."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                status = path.stat()
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
