"""Content on its way in: hashed while it comes, kept in a temporary file, bounded in all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from blake3 import blake3

from registry.content.budget import Room
from registry.errors import Busy, ChecksumMismatch, StorageUnavailable, TooLarge, UploadsPending

UPLOADS_MAX = 256
SPOOL_MEMORY_BYTES = 256 << 10
"""Of one upload; what is more of it goes to the disk."""


class Spool:
    """The bytes of an upload; what does not stay in memory is in a file in `directory`."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory or "the system's"
        self._file = tempfile.SpooledTemporaryFile(SPOOL_MEMORY_BYTES, dir=directory)  # noqa: SIM115
        self._hasher = blake3()
        self.size = 0

    @property
    def checksum(self) -> str:
        """The checksum of what came so far."""
        return f"blake3:{self._hasher.hexdigest()}"

    def write(self, part: bytes) -> None:
        """Take in the next part.

        Raises:
            StorageUnavailable: the disk of the temporary files is full or fails.
        """
        self._hasher.update(part)
        self.size += len(part)
        with self._working():
            self._file.write(part)

    def content(self) -> bytes:
        """All of it. May be called again.

        Raises:
            StorageUnavailable: as `write`.
        """
        with self._working():
            self._file.seek(0)
            return self._file.read()

    def close(self) -> None:
        """Let go of the bytes."""
        with suppress(OSError):  # What was not written to a full disk is not missed.
            self._file.close()

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = "is full" if error.errno == errno.ENOSPC else f"fails ({error.strerror})"
            raise StorageUnavailable(
                f"The disk of the temporary files, {self._directory}, {what}; nothing was written. "
                "Free some space, or set TMPDIR to another place."
            ) from error


def spool_directory(beside: str | None) -> str | None:
    """Where temporary files go: the place that TMPDIR names, else beside the database, which has to
    be written anyway, else the system's. The first that can be written."""
    for directory in (os.environ.get("TMPDIR"), beside):
        if directory:
            with suppress(OSError), tempfile.TemporaryFile(dir=directory):
                return directory
    return None


class Uploads:
    """The uploads that are under way in this process: at most 256, and `max_bytes` of them all."""

    def __init__(
        self, *, max_blob_bytes: int, max_bytes: int, directory: str | None = None
    ) -> None:
        self._directory = directory
        self._max_blob_bytes = max_blob_bytes
        self._room = Room(max_bytes, self._no_room)
        self._count = 0

    @asynccontextmanager
    async def taken_in(self, checksum: str, parts: AsyncIterator[bytes]) -> AsyncIterator[Spool]:
        """The whole content, once it came and has its checksum; gone when the block ends.

        Raises:
            ChecksumMismatch: the content is other than its checksum says.
            TooLarge: it has more than `max_blob_bytes`.
            UploadsPending, Busy: there is too much on its way in already.
            StorageUnavailable: it cannot be kept.
        """
        if self._count >= UPLOADS_MAX:
            raise Busy(f"{UPLOADS_MAX} uploads are under way already. Try again shortly.")
        self._count += 1
        spool = Spool(self._directory)
        try:
            with self._room.share() as share:
                async for part in parts:
                    self._check_size(spool.size + len(part))
                    share.take(len(part))
                    spool.write(part)
                if spool.checksum != checksum:
                    raise ChecksumMismatch(
                        f"The {spool.size} bytes that came have {spool.checksum}, not {checksum}. "
                        "Hash the file again and repeat the upload."
                    )
                yield spool
        finally:
            self._count -= 1
            spool.close()

    def _check_size(self, size: int) -> None:
        if size > self._max_blob_bytes:
            raise TooLarge(
                f"The content has more than {self._max_blob_bytes} bytes, the most that this "
                "registry takes in one file (max_blob_bytes).",
                max_bytes=self._max_blob_bytes,
            )

    def _no_room(self) -> UploadsPending:
        return UploadsPending(
            f"Uploads of {self._room.used_bytes} bytes are under way; at most "
            f"{self._room.max_bytes} may be (pending_upload_bytes). Try again when they are done."
        )
