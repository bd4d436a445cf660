"""Content too large for memory, read in parts. No part leaves that was not found right (S12)."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any

from registry.content.blocks import BLOCK_BYTES, read_right
from registry.content.places import Places
from registry.core import hashing
from registry.store.engine import Engine
from registry.store.ops.blobs import find_chunk
from registry.store.reads.lookup import Location

RunInThread = Callable[..., Awaitable[Any]]

COPY_CHUNK_BYTES = 2 * BLOCK_BYTES
"""SQLite walks from the beginning of a content to each part of it: fewer are faster."""


class Stream:
    """The bytes of a content at one of its holders.

    `digests` are those of the content's blocks. `on_wrong` is called once what was read turned out
    to be something else.
    """

    chunk_bytes = BLOCK_BYTES

    def __init__(self, location: Location, digests: bytes, on_wrong: Callable[[], None]) -> None:
        self.checksum = location.checksum
        self.size = location.size
        self._digests = digests
        self._on_wrong = on_wrong
        self._first: tuple[int, int, bytes] | None = None
        """Offset, end and bytes of what was read ahead."""

    async def begin(self, offset: int) -> bool:
        """Read the first part of what is sent, from an offset; whether it is right."""
        length = self._chunk(offset, self.size)
        part = await self._read(offset, length)
        if part is not None:
            self._first = (offset, offset + length, part)
        return part is not None

    async def read(self, offset: int, end: int) -> bytes | None:
        """The next part of the bytes from an offset to an end. None: they are not right, or gone.

        Raises:
            RegistryError: it cannot be read.
        """
        length = self._chunk(offset, end)
        first, self._first = self._first, None
        if first is not None and first[0] <= offset and offset + length <= first[1]:
            return first[2][offset - first[0] :][:length]
        return await self._read(offset, length)

    def _chunk(self, offset: int, end: int) -> int:
        """The length of the part at an offset: to the end of its block or blocks."""
        return min(self.chunk_bytes - offset % BLOCK_BYTES, end - offset)

    async def _read(self, offset: int, length: int) -> bytes | None:
        raise NotImplementedError

    def _check(self, read: Callable[[int, int], bytes], offset: int, length: int) -> bytes | None:
        return read_right(read, self._digests, self.size, offset, length)

    def close(self) -> None:
        """Let go of what is read from."""


class FileStream(Stream):
    """A file that is read from one descriptor, as long as what it gives is right: whatever becomes
    of its name, its links, its mode or its times."""

    def __init__(
        self,
        places: Places,
        location: Location,
        path: str,
        digests: bytes,
        on_wrong: Callable[[], None],
    ) -> None:
        super().__init__(location, digests, on_wrong)
        self._places = places
        self._path = path
        self._lock = Lock()
        self._descriptor: int | None = None
        self._is_reading = False
        self._identity = ""
        self.trusted_identity: str | None = None
        """What the file is known by, unless it is too young for that."""
        self.was_wrong = False
        """Whether it gave other bytes, though it looked as it did when it was opened."""

    async def open(self) -> None:
        """Open the file.

        Raises:
            FileUnreadable: it is no regular file, cannot be read, or the path leads elsewhere now.
            Busy: it cannot be looked at now.
        """
        descriptor, status = await self._places.run(
            self._path, _open, self._path, late=lambda opened: self._close(opened[0])
        )
        self._descriptor = descriptor
        self._identity = hashing.identity_of(status)
        self.trusted_identity = hashing.trusted_identity(status, time.time_ns())

    async def _read(self, offset: int, length: int) -> bytes | None:
        part, is_wrong = await self._places.run(self._path, self._read_now, offset, length)
        if is_wrong:
            self.was_wrong = True
            self._on_wrong()
        return part

    def _read_now(self, offset: int, length: int) -> tuple[bytes | None, bool]:
        """The part if it is right, and whether the file lies: it is wrong and looks the same."""
        with self._lock:
            descriptor = self._descriptor
            if descriptor is None:
                return None, False  # Nobody waits for it any more.
            self._is_reading = True
        try:
            with hashing.looking_at(self._path):
                part = self._check(lambda at, size: _pread(descriptor, at, size), offset, length)
                is_same = hashing.identity_of(os.fstat(descriptor)) == self._identity
            return part, part is None and is_same
        finally:
            with self._lock:
                self._is_reading = False
                is_left = self._descriptor is None
            if is_left:
                os.close(descriptor)

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            is_reading = self._is_reading
        # Whoever reads yet closes it: it may hang, and the number must not be another file's.
        if descriptor is not None and not is_reading:
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._places.leave(self._path, os.close, descriptor)


def _open(path: str) -> tuple[int, os.stat_result]:
    with hashing.opened(path) as descriptor, hashing.looking_at(path):
        status = os.fstat(descriptor)
        return os.dup(descriptor), status


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    """As many bytes as there are, up to a length: a network file system may give fewer at once."""
    parts = []
    while length and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


class CopyStream(Stream):
    """Copied content. No transaction spans two parts."""

    chunk_bytes = COPY_CHUNK_BYTES

    def __init__(
        self,
        run: RunInThread,
        database: Engine,
        location: Location,
        digests: bytes,
        on_wrong: Callable[[], None],
    ) -> None:
        super().__init__(location, digests, on_wrong)
        self._run = run
        self._database = database

    async def _read(self, offset: int, length: int) -> bytes | None:
        part, is_wrong = await self._run(self._read_now, offset, length)
        if is_wrong:
            self._on_wrong()
        return part if part is None else bytes(part)

    def _read_now(self, offset: int, length: int) -> tuple[bytes | None, bool]:
        is_there = True

        def read(at: int, size: int) -> bytes:
            nonlocal is_there
            with self._database.read() as conn:
                part = find_chunk(conn, self.checksum, at, size)
            is_there = part is not None
            return part or b""

        part = self._check(read, offset, length)
        return part, part is None and is_there
