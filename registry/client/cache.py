"""Fetched content on disk, by checksum, shared by all processes of a user.

A file appears under its name only when it is complete: it is written under another name, synced
and renamed. Processes that fetch the same content at once replace each other's equal files. Files
are read-only because they are linked into other directories, where an edit would change them here
as well; whoever uses one hashes it again.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from registry.errors import FileUnreadable, TooLarge
from registry.files import FileContent, hash_file


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/metadata-registry/blobs`, where XDG_CACHE_HOME is `~/.cache` if unset."""
    base = environ.get("XDG_CACHE_HOME", "")
    # A relative path there is to be ignored, says the XDG base directory specification.
    cache_home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return cache_home / "metadata-registry" / "blobs"


class BlobCache:
    """Content by checksum in one directory, which is made when something is added."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, checksum: str, max_bytes: int) -> FileContent | None:
        """What is kept under a checksum, hashed now; None when nothing usable is.

        The caller compares: a damaged file is returned as what it is.
        """
        try:
            return hash_file(os.path.realpath(self._path(checksum)), max_bytes=max_bytes)
        except (FileUnreadable, TooLarge):
            return None

    def add(self, checksum: str, write: Callable[[BinaryIO], object]) -> Path:
        """Keep what `write` writes, in place of what was kept; nothing if it raises.

        `write` sees to it that the content has this checksum.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(checksum)
        temporary = self._directory / f".{path.name}.{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o444)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self._directory)
        return path

    def _path(self, checksum: str) -> Path:
        return self._directory / checksum.removeprefix("blake3:")


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
