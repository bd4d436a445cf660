"""From a located entry to its bytes: which holder has them, unchanged, and how to read them (S12).

The bytes that leave here always hash to the entry's checksum: all of them, or each block of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Literal

from registry.content.blocks import BlockDigests, BlockHasher
from registry.content.cache import LARGE_BYTES, Body, ContentCache
from registry.content.file_looks import FileLooks, observation
from registry.content.file_memory import WRONG_FOR_S
from registry.content.places import Places
from registry.content.single_flight import SingleFlight
from registry.content.streams import COPY_CHUNK_BYTES, CopyStream, FileStream, RunInThread, Stream
from registry.core import hashing
from registry.core.records import RefStatus
from registry.errors import Busy, FileUnreadable, TooLarge
from registry.store.engine import Engine
from registry.store.ops.blobs import find_chunk
from registry.store.ops.file_status import Observation
from registry.store.reads.lookup import Location

Loaded = bytes | bytearray

REMEMBERED_COPIES = 1024


class _Wrong(Exception):
    """The bytes were read, and are not those of the checksum."""


class NoRoom(Enum):
    """Large content that the budget has no room for: it is streamed."""

    NO_ROOM = "no room"


NO_ROOM = NoRoom.NO_ROOM


class Holdings:
    """Opens the bytes of located entries, for one event loop.

    `run` runs a blocking call of the database in a thread; `observe` is told what a look at a
    holder's bytes found.
    """

    def __init__(
        self,
        database: Engine,
        places: Places,
        cache: ContentCache,
        run: RunInThread,
        observe: Callable[[Observation], None],
    ) -> None:
        self._database = database
        self._places = places
        self._cache = cache
        self._run = run
        self._observe = observe
        self._digests = BlockDigests()
        self._flights = SingleFlight()
        self.looks = FileLooks(places, self._digests, self._flights, self._tell)
        self._wrong_copies: dict[str, float] = {}
        """By checksum, when a copy in the database was found to be something else."""

    def forget_copy(self, checksum: str) -> None:
        """A copy that was found wrong may have been put right."""
        self._wrong_copies.pop(checksum, None)

    def ready(self, location: Location) -> Body | None:
        """The content if it is in memory and the located holder still has it. Does not block
        for longer than one look at a local file."""
        if location.status != RefStatus.OK:
            return None  # To `open`, which puts down that the bytes are there again.
        path = location.path
        if path is not None and not self.looks.is_there(location, path):
            return None
        return self._cache.find(location.checksum)

    async def open(self, location: Location, start: int = 0) -> Body | Stream | None:
        """The located holder's bytes, or None: it does not have them (any more).

        What is streamed was found right where it begins to be sent, at `start`.

        Raises:
            Busy: its file cannot be looked at now, which is nothing that is held against it.
        """
        path = location.path
        if path is None:
            opened = await self._open_copy(location, start)
        else:
            way = await self.looks.find_way(location, path)
            if way is None:
                return None
            opened = await self._open_file(location, way, start)
        if opened is not None:
            self._tell(location, RefStatus.OK)
        return opened

    async def _open_copy(self, location: Location, start: int) -> Body | Stream | None:
        wrong_at = self._wrong_copies.get(location.checksum)
        if wrong_at is not None and time.monotonic() - wrong_at < WRONG_FOR_S:
            return None
        if location.status != RefStatus.OK and not await self._is_right_copy(location):
            return None
        try:
            loaded = await self._loaded(location, None)
        except _Wrong:
            self._accuse_copy(location)
            return None
        if loaded is not NO_ROOM:
            return loaded
        digests = self._digests.find(location.checksum)
        if digests is None and await self._is_right_copy(location):
            digests = self._digests.find(location.checksum)
        if digests is None:
            return None
        stream = CopyStream(
            self._run, self._database, location, digests, lambda: self._accuse_copy(location)
        )
        return stream if await stream.begin(start) else None

    async def _is_right_copy(self, location: Location) -> bool:
        """Whether a copy has the checksum that it goes by; takes the digests of its blocks."""
        name = f"hash {location.checksum}"

        async def take_digests() -> bytes | None:
            digests: bytes | None = await self._run(self._hash_copy, location)
            return digests

        try:
            digests: bytes | None = await self._flights.alone(name, take_digests)
        except _Wrong:
            self._accuse_copy(location)
            return False
        if digests is None:
            return False
        self._digests.keep(location.checksum, digests)
        self._wrong_copies.pop(location.checksum, None)
        return True

    def _hash_copy(self, location: Location) -> bytes | None:
        hasher = BlockHasher()
        for offset in range(0, location.size, COPY_CHUNK_BYTES):
            with self._database.read() as conn:
                part = find_chunk(conn, location.checksum, offset, COPY_CHUNK_BYTES)
            if part is None:
                return None
            hasher.update(part)
        if f"blake3:{hasher.hexdigest()}" != location.checksum:
            raise _Wrong
        return hasher.digests()

    def _accuse_copy(self, location: Location) -> None:
        """A copy turned out to be something else than its checksum says."""
        if len(self._wrong_copies) >= REMEMBERED_COPIES:
            self._wrong_copies.clear()
        self._wrong_copies[location.checksum] = time.monotonic()
        self._tell(location, RefStatus.DRIFTED)

    async def _open_file(self, location: Location, path: str, start: int) -> Body | Stream | None:
        for _ in range(hashing.LOOKS):
            try:
                loaded = await self._loaded(location, path)
            except _Wrong:
                self._tell(location, RefStatus.DRIFTED)
                return None
            if loaded is NO_ROOM:
                digests = self._digests.find(location.checksum)
                if digests is not None:
                    stream = await self._open_stream(location, path, digests, start)
                    if stream is not None:
                        return None if stream.was_wrong else stream
            elif loaded is not None:
                return loaded
            # It must be hashed, or changed since it was found right.
            way = await self.looks.hashed(location, location.path or path, path)
            if way is None:
                return None
            path = way
        raise hashing.changing(path) from hashing.FileChanges()

    async def _open_stream(
        self, location: Location, path: str, digests: bytes, start: int
    ) -> FileStream | None:
        """A stream that was found right where it begins, or wrong. None: the file is not the one
        any more that was opened."""
        stream = FileStream(
            self._places,
            location,
            path,
            digests,
            lambda: self.looks.accuse(location, path, stream.trusted_identity),
        )
        is_right = False
        try:
            await stream.open()
            is_right = await stream.begin(start)
        except FileUnreadable:
            pass
        finally:
            if not is_right:
                stream.close()
        return stream if is_right or stream.was_wrong else None

    async def _loaded(
        self, location: Location, path: str | None
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        """The content in memory, loaded once for all who ask meanwhile, from a file or from the
        copy. None: it was not there."""
        body = self._cache.find(location.checksum)
        if body is not None:
            return body
        # By holder as well: one whose bytes are wrong must not fail those who ask for another's.
        name = f"load {location.checksum} {path or ''}"
        return await self._flights.alone(name, lambda: self._load(location, path))

    async def _load(
        self, location: Location, path: str | None
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        reserved = self._cache.reserve(location.size)
        if not reserved and location.size > LARGE_BYTES:
            return NO_ROOM
        content: Loaded | None = None
        try:
            if path is None:
                content = await self._run(self._read_copy, location)
            else:
                content = await self._places.run(path, self._read_file, location, path)
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
        if content is not None and hashing.checksum_of(content) != location.checksum:
            raise _Wrong
        return content

    def _read_file(self, location: Location, path: str) -> Loaded | None:
        try:
            found = hashing.hash_file(
                path, max_bytes=location.size, keep=True, expected=location.checksum
            )
        except (FileUnreadable, TooLarge):
            return None
        if found.checksum != location.checksum:
            self.looks.note(found)
            raise _Wrong
        return found.content

    def _tell(self, location: Location, status: RefStatus, identity: str | None = None) -> None:
        """Report a look that found something new."""
        if status != location.status or identity not in (None, location.file_identity):
            self._observe(observation(location, status, identity))
