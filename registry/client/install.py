"""Put fetched files into a directory: all of them, or nothing changes there.

Everything is staged beside the target first. A new directory appears by one rename. In a
directory that exists, each file is replaced by a rename, and when one fails those before it are
put back; only a crash in these microseconds can leave a mixture, of whole files.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from registry.client.cache import sync_directory
from registry.core.hashing import hash_file
from registry.errors import ChecksumMismatch, FileUnreadable, TooLarge

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Placed:
    """A verified file of the cache, and the name that it gets."""

    filename: str
    checksum: str
    size: int
    path: Path


def place(files: Sequence[Placed], directory: Path) -> None:
    """Link or copy files into a directory, which is made if need be. Other files there stay.

    Raises:
        FileUnreadable: a directory stands where a file should go.
        ChecksumMismatch: a file of the cache changed while it was copied.
        OSError: the directory cannot be written.
    """
    if os.path.lexists(directory):
        _place_in(files, directory)
    else:
        _place_as(files, directory)


def _place_as(files: Sequence[Placed], directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _stage(directory.parent) as stage:
        for file in files:
            _link_or_copy(file, stage / file.filename)
        sync_directory(stage)
        os.rename(stage, directory)
    sync_directory(directory.parent)


def _place_in(files: Sequence[Placed], directory: Path) -> None:
    changed = [file for file in files if not _is_there(file, directory / file.filename)]
    with _stage(directory) as stage:
        for number, file in enumerate(changed):
            _link_or_copy(file, stage / f"new-{number}")
        _swap(stage, [directory / file.filename for file in changed])
    sync_directory(directory)


def _swap(stage: Path, targets: Sequence[Path]) -> None:
    """Replace each target by its staged file; put all back if one cannot be replaced."""
    begun: list[tuple[Path, Path]] = []
    try:
        for number, target in enumerate(targets):
            backup = stage / f"old-{number}"
            begun.append((target, backup))
            _keep(target, backup)
            os.replace(stage / f"new-{number}", target)
    except BaseException:
        for target, backup in reversed(begun):
            _restore(target, backup)
        raise


def _keep(target: Path, backup: Path) -> None:
    """Keep what a rename is about to replace, if there is anything."""
    if not os.path.lexists(target):
        return
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError:
        # Not every file system has hard links.
        os.rename(target, backup)


def _restore(target: Path, backup: Path) -> None:
    if os.path.lexists(backup):
        os.replace(backup, target)
    else:
        target.unlink(missing_ok=True)


def _is_there(file: Placed, target: Path) -> bool:
    """Whether the target has this content already. Then it is left alone."""
    if target.is_dir():
        raise FileUnreadable(f"{target} is a directory; a file of that name is to go there.")
    try:
        found = hash_file(str(target.absolute()), max_bytes=file.size)
    except (FileUnreadable, TooLarge):
        return False
    return found.checksum == file.checksum


def _link_or_copy(file: Placed, target: Path) -> None:
    try:
        os.link(file.path, target)
    except OSError:
        _copy(file, target)


def _copy(file: Placed, target: Path) -> None:
    hasher = blake3()
    with file.path.open("rb") as source, target.open("xb") as copy:
        while part := source.read(COPY_BYTES):
            hasher.update(part)
            copy.write(part)
        copy.flush()
        os.fsync(copy.fileno())
    if f"blake3:{hasher.hexdigest()}" != file.checksum:
        raise ChecksumMismatch(f"{file.path} changed while it was copied. Fetch again.")


@contextmanager
def _stage(parent: Path) -> Iterator[Path]:
    """A directory of our own on the same file system, gone at the end."""
    stage = parent / f".metadata-registry-{secrets.token_hex(8)}"
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
