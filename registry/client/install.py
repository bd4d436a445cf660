"""Put fetched files into a directory: all of them, or nothing changes there.

Everything is staged beside the target first. A new directory appears by one rename. In a
directory that exists, each file is replaced by a rename, and when one fails those before it are
put back; only a crash in these microseconds can leave a mixture, of whole files.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from registry.client.cache_directory import failures_in, sync_directory
from registry.core.checks import check_checksum, check_filename
from registry.core.hashing import hash_file, is_changing
from registry.core.regular import open_regular
from registry.core.text import shown
from registry.errors import Busy, ChecksumMismatch, DirectoryUnusable, FileUnreadable, TooLarge

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Placed:
    """A verified file of the cache, and the name that it gets.

    Raises:
        Invalid: a field is not well-formed.
    """

    filename: str
    checksum: str
    size: int
    path: Path

    def __post_init__(self) -> None:
        check_filename(self.filename)
        check_checksum(self.checksum)


def place(files: Sequence[Placed], directory: Path) -> None:
    """Link or copy files into a directory, which is made if need be. Other files there stay.

    A link that stands in the place of a file is replaced, not followed.

    Raises:
        FileUnreadable: a directory stands where a file should go.
        ChecksumMismatch: a file of the cache changed while it was copied.
        DirectoryUnusable: the directory cannot be written, or two of the files have one name there.
        Busy: it cannot be looked at now.
    """
    with failures_in(directory):
        if os.path.lexists(directory) or not _place_as(files, directory):
            _place_in(files, directory)


def _place_as(files: Sequence[Placed], directory: Path) -> bool:
    """Make a new directory of the files, unless one is there by then."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _stage(directory.parent) as stage:
        for file in files:
            _link_or_copy(file, stage / file.filename)
        sync_directory(stage)
        try:
            os.rename(stage, directory)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
    sync_directory(directory.parent)
    return True


def _place_in(files: Sequence[Placed], directory: Path) -> None:
    # How the user comes to the directory is the user's business; in it no link is followed.
    directory = Path(os.path.realpath(directory))
    changed = [file for file in files if not _is_there(file, directory / file.filename)]
    with _stage(directory) as stage:
        new, old = stage / "new", stage / "old"
        new.mkdir()
        old.mkdir()
        for file in changed:
            _link_or_copy(file, new / file.filename)
        _swap([file.filename for file in changed], new, old, directory)
    sync_directory(directory)


def _swap(filenames: Sequence[str], new: Path, old: Path, directory: Path) -> None:
    """Replace each file by the new one; put all back if one cannot be replaced."""
    begun: list[str] = []
    try:
        for name in filenames:
            begun.append(name)
            _keep(directory / name, old / name)
            os.replace(new / name, directory / name)
    except BaseException:
        for name in reversed(begun):
            _restore(directory / name, old / name)
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
    try:
        if stat.S_ISDIR(target.lstat().st_mode):
            raise FileUnreadable(f"{target} is a directory; a file of that name is to go there.")
    except FileNotFoundError:
        return False
    try:
        found = hash_file(str(target), max_bytes=file.size, expected=file.checksum)
    except (FileUnreadable, TooLarge):
        return False
    except Busy as error:
        if not is_changing(error):
            raise
        return False
    return found.checksum == file.checksum


def _link_or_copy(file: Placed, target: Path) -> None:
    try:
        os.link(file.path, target, follow_symlinks=False)
    except FileExistsError as error:
        raise DirectoryUnusable(
            f"{shown(file.filename)} and another file of this model have one name on the file "
            "system of the directory, which ignores case, say. Choose a directory elsewhere."
        ) from error
    except OSError:
        _copy(file, target)


def _copy(file: Placed, target: Path) -> None:
    hasher = blake3()
    with os.fdopen(open_regular(file.path), "rb") as source, target.open("xb") as copy:
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
