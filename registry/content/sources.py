"""From a located entry to its bytes: which holder has them, unchanged, and how to read them (S12).

The bytes that leave here always hash to the entry's checksum, or are streamed in a way that never
completes unless they do.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from typing import Any, Literal, TypeVar

from blake3 import blake3

from registry.content.cache import LARGE_BYTES, Body, ContentCache
from registry.core import hashing
from registry.core.records import RefStatus
from registry.errors import Busy, FileUnreadable, TooLarge
from registry.store.engine import Engine
from registry.store.ops.blobs import find_chunk
from registry.store.ops.file_status import Observation
from registry.store.reads.lookup import Location

T = TypeVar("T")
RunInThread = Callable[..., Awaitable[Any]]

FILE_CHUNK_BYTES = 256 << 10
COPY_CHUNK_BYTES = 512 << 10
"""SQLite walks from the beginning of a content to each part of it: fewer are faster."""
REMEMBERED_FILES = 65_536


class FileStream:
    """A file too large for memory, read in parts from one descriptor.

    `trusted` tells whether a part of it is known to be right, as long as the file is unchanged;
    if not, only all of it can be checked, while it is sent.
    """

    chunk_bytes = FILE_CHUNK_BYTES

    def __init__(
        self, run: RunInThread, location: Location, descriptor: int, identity: str, *, trusted: bool
    ) -> None:
        self._run = run
        self._descriptor = descriptor
        self._identity = identity
        self.trusted = trusted
        self.checksum = location.checksum
        self.size = location.size

    async def read(self, offset: int, length: int) -> bytes:
        """A part of the file; shorter than asked for, or empty, if the file was cut."""
        part: bytes = await self._run(os.pread, self._descriptor, length, offset)
        return part

    async def unchanged(self) -> bool:
        """Whether nobody wrote to the file since it was opened."""
        return hashing.identity_of(os.fstat(self._descriptor)) == self._identity

    def close(self) -> None:
        os.close(self._descriptor)


class CopyStream:
    """Copied content too large for memory, read in parts. No transaction spans two parts."""

    chunk_bytes = COPY_CHUNK_BYTES
    trusted = True

    def __init__(self, run: RunInThread, location: Location, database: Engine) -> None:
        self._run = run
        self._database = database
        self.checksum = location.checksum
        self.size = location.size

    async def read(self, offset: int, length: int) -> bytes:
        """A part of the content; empty if it was removed meanwhile."""
        part: bytes = await self._run(self._read, offset, length)
        return part

    def _read(self, offset: int, length: int) -> bytes:
        with self._database.read() as conn:
            return find_chunk(conn, self.checksum, offset, length) or b""

    async def unchanged(self) -> bool:
        """Always: content under a checksum never changes."""
        return True

    def close(self) -> None:
        pass


Stream = FileStream | CopyStream


class NoRoom(Enum):
    """Large content that the budget has no room for: it is streamed."""

    NO_ROOM = "no room"


NO_ROOM = NoRoom.NO_ROOM


class FileMemory:
    """What files were found to hold: (identity, checksum) by path, the last 65,536 looked at.

    Only identities that can be trusted are remembered, so that a file is hashed once for each
    time it changes, whether it has the right bytes or the wrong ones.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self.proofs: dict[str, tuple[str | int, ...]] = {}
        """By path, the content that a file of an allowed path was found to hold, with the parts of
        the identity that it had: what `identity_of` and the rest said, in a form that is quicker
        to compare."""

    def checksum_of(self, path: str, identity: str) -> str | None:
        """The checksum of the file, if this identity of it was hashed."""
        seen = self._seen.get(path)
        return seen[1] if seen is not None and seen[0] == identity else None

    def prove(self, path: str, proof: tuple[str | int, ...]) -> None:
        """Remember that a file was found to hold a content, until it is hashed again."""
        if len(self.proofs) >= REMEMBERED_FILES:
            self.proofs.clear()
        self.proofs[path] = proof

    def note(self, found: hashing.FileContent) -> None:
        """Remember what a file held."""
        self.proofs.pop(found.path, None)
        if found.identity is not None:
            self._seen[found.path] = (found.identity, found.checksum)
            self._seen.move_to_end(found.path)
            if len(self._seen) > REMEMBERED_FILES:
                self._seen.popitem(last=False)


class Holdings:
    """Opens the bytes of located entries, for one event loop.

    `run` and `run_on_files` run a blocking call in a thread, of the database or of holders'
    files; `observe` is told what a look at a file found.
    """

    def __init__(
        self,
        database: Engine,
        roots: hashing.ArtifactRoots,
        cache: ContentCache,
        run: RunInThread,
        run_on_files: RunInThread,
        observe: Callable[[Observation], None],
    ) -> None:
        self._database = database
        self._roots = roots
        self._cache = cache
        self._run = run
        self._run_on_files = run_on_files
        self._observe = observe
        self._memory = FileMemory()
        self._flights: dict[str, asyncio.Task[Any]] = {}

    def ready(self, location: Location) -> Body | None:
        """The content if it is in memory and the located holder still has it. Does not block
        for longer than one `lstat`."""
        path = location.path
        if path is not None:
            if location.status != RefStatus.OK:
                return None  # To `open`, which puts down that the file is there again.
            if not self._is_there(location, path):
                return None
        return self._cache.find(location.checksum)

    def _is_there(self, location: Location, path: str) -> bool:
        """Whether the file at a path is known to hold the located content, by one `lstat`."""
        try:
            now = os.lstat(path)
        except (OSError, ValueError):
            return False
        proof = (
            location.checksum,
            now.st_mtime_ns,
            now.st_ctime_ns,
            now.st_size,
            now.st_ino,
            now.st_dev,
        )
        if self._memory.proofs.get(path) == proof:
            return True
        identity = hashing.identity_of_regular(now)
        if identity is None or not self._has(location, path, identity):
            return False
        self._memory.prove(path, proof)
        return True

    def _has(self, location: Location, path: str, identity: str) -> bool:
        """Whether a file with this identity is known to hold the located content."""
        if not self._roots.allow(path):
            return False
        if self._memory.checksum_of(path, identity) not in (None, location.checksum):
            return False
        return (
            identity == location.file_identity
            or self._memory.checksum_of(path, identity) == location.checksum
        )

    async def open(self, location: Location) -> Body | Stream | None:
        """The located holder's bytes, or None: it does not have them (any more).

        Raises:
            Busy: its file cannot be looked at now, which is nothing that is held against it.
        """
        if location.path is None:
            return await self._open_copy(location)
        if not self._roots.allow(location.path):
            return None
        if not await self._verified(location, location.path):
            return None
        opened = await self._open_file(location, location.path)
        self._tell(location, location.path, RefStatus.OK if opened else RefStatus.DRIFTED)
        return opened

    async def _open_copy(self, location: Location) -> Body | Stream | None:
        loaded = await self._loaded(location, lambda: self._read_copy(location))
        if loaded is NO_ROOM:
            return CopyStream(self._run, location, self._database)
        return loaded

    async def _open_file(self, location: Location, path: str) -> Body | Stream | None:
        loaded = await self._loaded(location, lambda: self._read_file(location, path))
        if loaded is NO_ROOM:
            stream: FileStream | None = await self._run_on_files(self._stream_file, location, path)
            return stream
        return loaded

    async def _loaded(
        self, location: Location, read: Callable[[], bytes | None]
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        """The content in memory, loaded once for all who ask meanwhile. None: it was not there."""
        body = self._cache.find(location.checksum)
        if body is not None:
            return body
        # By holder as well: one whose bytes are wrong must not fail those who ask for another's.
        name = f"load {location.checksum} {location.path or ''}"
        return await self._alone(name, lambda: self._load(location, read))

    async def _load(
        self, location: Location, read: Callable[[], bytes | None]
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        reserved = self._cache.reserve(location.size)
        if not reserved and location.size > LARGE_BYTES:
            return NO_ROOM
        content: bytes | None = None
        try:
            run = self._run if location.path is None else self._run_on_files
            content = await run(read)
        except (MemoryError, Busy) as error:
            if not hashing.is_lack_of_memory(error):
                raise
            self._cache.clear()  # There is less of it than the budget says.
            if location.size <= LARGE_BYTES:
                raise
            return NO_ROOM
        finally:
            if reserved and content is None:
                self._cache.release(location.size)
        if content is None:
            return None
        if not reserved:
            return Body(location.checksum, content)
        return self._cache.fill(location.checksum, content)

    def _read_copy(self, location: Location) -> bytes | None:
        with self._database.read() as conn:
            # As a part: a whole value SQLite would put together in memory of its own first.
            content = find_chunk(conn, location.checksum, 0, location.size)
        if content is None or hashing.checksum_of(content) != location.checksum:
            return None
        return content

    def _read_file(self, location: Location, path: str) -> bytes | None:
        try:
            found = hashing.hash_file(path, max_bytes=location.size, keep=True)
        except (FileUnreadable, TooLarge):
            return None
        return found.content if found.checksum == location.checksum else None

    def _stream_file(self, location: Location, path: str) -> FileStream | None:
        try:
            with hashing.opened(path) as descriptor, hashing.looking_at(path):
                # It may be another file by now than the one that was verified.
                identity = hashing.identity_of(os.fstat(descriptor))
                trusted = self._has(location, path, identity)
                return FileStream(
                    self._run_on_files, location, os.dup(descriptor), identity, trusted=trusted
                )
        except FileUnreadable:
            return None

    async def _verified(self, location: Location, path: str) -> bool:
        """Whether the file has the located content; hashes it if it is not known."""
        identity = hashing.find_identity(path)
        if identity is not None:
            if self._has(location, path, identity):
                return True
            if self._memory.checksum_of(path, identity) is not None:
                self._tell(location, path, RefStatus.DRIFTED)
                return False
        return await self._alone("hash " + path, lambda: self._verify(location, path))

    async def _verify(self, location: Location, path: str) -> bool:
        try:
            found = await self._run_on_files(self._hash, path, location.size)
        except (FileUnreadable, TooLarge):
            there = hashing.find_identity(path) is not None
            self._tell(location, path, RefStatus.DRIFTED if there else RefStatus.MISSING)
            return False
        self._memory.note(found)
        if found.checksum != location.checksum:
            self._tell(location, path, RefStatus.DRIFTED)
            return False
        self._tell(location, path, RefStatus.OK, found.identity)
        return True

    async def look(self, location: Location) -> Observation | None:
        """Hash the located file, whatever is known of it. None: it is not ours to look at.

        Raises:
            Busy: it cannot be looked at now.
        """
        path = location.path
        if path is None or not self._roots.allow(path):
            return None
        status, identity = RefStatus.DRIFTED, None
        try:
            found = await self._run_on_files(self._hash, path, location.size)
        except (FileUnreadable, TooLarge):
            if hashing.find_identity(path) is None:
                status = RefStatus.MISSING
        else:
            self._memory.note(found)
            if found.checksum == location.checksum:
                status, identity = RefStatus.OK, found.identity
        return _observation(location, path, status, identity)

    @staticmethod
    def _hash(path: str, size: int) -> hashing.FileContent:
        return hashing.hash_file(path, max_bytes=size)

    def _tell(
        self, location: Location, path: str, status: RefStatus, identity: str | None = None
    ) -> None:
        """Report a look that found something new."""
        if status != location.status or identity not in (None, location.file_identity):
            self._observe(_observation(location, path, status, identity))

    async def _alone(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work once for everybody who asks for it meanwhile."""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = asyncio.create_task(work())
            flight.add_done_callback(lambda done: self._landed(name, done))
        result: T = await asyncio.shield(flight)
        return result

    def _landed(self, name: str, flight: asyncio.Task[Any]) -> None:
        self._flights.pop(name, None)
        if not flight.cancelled():
            flight.exception()  # Seen, even where everybody who waited was cancelled.


def _observation(
    location: Location, path: str, status: RefStatus, identity: str | None
) -> Observation:
    return Observation(
        location.owner_id, location.entry_id, path, location.checksum, status, identity
    )


class Hasher:
    """The checksum of bytes that pass by."""

    def __init__(self) -> None:
        self._blake3 = blake3()

    def update(self, part: bytes) -> None:
        self._blake3.update(part)

    @property
    def checksum(self) -> str:
        return f"blake3:{self._blake3.hexdigest()}"
