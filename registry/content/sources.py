"""From a located entry to its bytes: which holder has them, unchanged, and how to read them (S12).

The bytes that leave here always hash to the entry's checksum: all of them, or each block of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Literal, TypeVar

from registry.content.blocks import BlockDigests, BlockHasher
from registry.content.cache import LARGE_BYTES, Body, ContentCache
from registry.content.file_memory import WRONG_FOR_S, FileMemory, proof_of
from registry.content.places import Places
from registry.content.streams import COPY_CHUNK_BYTES, CopyStream, FileStream, RunInThread, Stream
from registry.core import hashing, no_links
from registry.core.records import RefStatus
from registry.errors import Busy, FileUnreadable, TooLarge
from registry.store.engine import Engine
from registry.store.ops.blobs import find_chunk
from registry.store.ops.file_status import Observation
from registry.store.reads.lookup import Location

T = TypeVar("T")
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
        self._memory = FileMemory()
        self._digests = BlockDigests()
        self._wrong_copies: dict[str, float] = {}
        """By checksum, when a copy in the database was found to be something else."""
        self._flights: dict[str, asyncio.Task[Any]] = {}

    def forget_proofs(self) -> None:
        """What could be looked at without waiting may be elsewhere by now."""
        self._memory.proofs.clear()

    def forget_copy(self, checksum: str) -> None:
        """A copy that was found wrong may have been put right."""
        self._wrong_copies.pop(checksum, None)

    def ready(self, location: Location) -> Body | None:
        """The content if it is in memory and the located holder still has it. Does not block
        for longer than one `lstat` of a local file."""
        if location.status != RefStatus.OK:
            return None  # To `open`, which puts down that the bytes are there again.
        path = location.path
        if path is not None and not self._is_there(location, path):
            return None
        return self._cache.find(location.checksum)

    def _is_there(self, location: Location, path: str) -> bool:
        """Whether a local file is known to hold the located content, by one `lstat`."""
        proof = self._memory.proofs.get(path)
        find_status = self._places.find_status
        if proof is None or find_status is None:
            return False
        try:
            return proof == proof_of(location.checksum, find_status(path))
        except (OSError, ValueError):
            return False

    def _has(self, location: Location, path: str, identity: str) -> bool:
        """Whether a file with this identity is known to hold the located content."""
        was_drifted = location.status == RefStatus.DRIFTED
        if self._memory.is_right(path, identity, location.checksum, was_drifted=was_drifted):
            return True
        return (
            identity == location.file_identity
            and not was_drifted
            and self._memory.find(path, identity) is None
        )

    async def open(self, location: Location, start: int = 0) -> Body | Stream | None:
        """The located holder's bytes, or None: it does not have them (any more).

        What is streamed was found right where it begins to be sent, at `start`.

        Raises:
            Busy: its file cannot be looked at now, which is nothing that is held against it.
        """
        path = location.path
        if path is None:
            opened = await self._open_copy(location, start)
        elif not self._places.roots.allow(path) or not await self._verified(location, path):
            return None
        else:
            opened = await self._open_file(location, path, start)
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
            loaded = await self._loaded(location, lambda: self._read_copy(location))
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
            digests: bytes | None = await self._alone(name, take_digests)
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
        opened: Body | Stream | None = None
        try:
            loaded = await self._loaded(location, lambda: self._read_file(location, path))
        except _Wrong:
            loaded = None
        if loaded is not NO_ROOM:
            opened = loaded
        else:
            digests = self._digests.find(location.checksum)
            if digests is None:
                if not await self._verified(location, path, anew=True):
                    return None
                digests = self._digests.find(location.checksum)
            opened = await self._open_stream(location, path, digests or b"", start)
        if opened is None:
            self._tell(location, RefStatus.DRIFTED)
        return opened

    async def _open_stream(
        self, location: Location, path: str, digests: bytes, start: int
    ) -> Stream | None:
        """A stream that was found right where it begins, or None."""
        stream = FileStream(
            self._places, location, path, digests, lambda: self._accuse(location, path, stream)
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
        return stream if is_right else None

    def _accuse(self, location: Location, path: str, stream: FileStream) -> None:
        """A file turned out to hold something else, though it looks as it did when it was hashed.
        It must be hashed right again before it is believed."""
        self._memory.note_wrong(path, stream.trusted_identity)
        self._tell(location, RefStatus.DRIFTED)

    async def _loaded(
        self, location: Location, read: Callable[[], Loaded | None]
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        """The content in memory, loaded once for all who ask meanwhile. None: it was not there."""
        body = self._cache.find(location.checksum)
        if body is not None:
            return body
        # By holder as well: one whose bytes are wrong must not fail those who ask for another's.
        name = f"load {location.checksum} {location.path or ''}"
        return await self._alone(name, lambda: self._load(location, read))

    async def _load(
        self, location: Location, read: Callable[[], Loaded | None]
    ) -> Body | Literal[NoRoom.NO_ROOM] | None:
        reserved = self._cache.reserve(location.size)
        if not reserved and location.size > LARGE_BYTES:
            return NO_ROOM
        content: Loaded | None = None
        try:
            if location.path is None:
                content = await self._run(read)
            else:
                content = await self._places.run(location.path, read)
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
            found = hashing.hash_file(path, max_bytes=location.size, keep=True)
        except (FileUnreadable, TooLarge):
            return None
        if found.checksum != location.checksum:
            self._memory.note(found)
            raise _Wrong
        return found.content

    async def _verified(self, location: Location, path: str, *, anew: bool = False) -> bool:
        """Whether the file has the located content; hashes it if it is not known, or `anew`."""
        if not anew:
            known = await self._find_known(location, path)
            if known is not None:
                return known
        name = f"hash {location.checksum} {path}"
        return await self._alone(name, lambda: self._verify(location, path))

    async def _find_known(self, location: Location, path: str) -> bool | None:
        """Whether the file has the located content; None: it must be hashed to know."""
        if self._is_there(location, path):
            return True
        status = await self._places.run(path, hashing.find_status, path)
        if status is not None:
            identity = hashing.identity_of(status)
            if self._has(location, path, identity):
                if self._places.is_local(path):
                    self._memory.prove(path, location.checksum, status)
                return True
            if self._memory.is_wrong(path, identity, location.checksum):
                self._tell(location, RefStatus.DRIFTED)
                return False
        return None

    async def _verify(self, location: Location, path: str) -> bool:
        observation = await self._hash(location, path)
        self._tell(location, observation.status, observation.file_identity)
        return observation.status is RefStatus.OK

    async def _hash(self, location: Location, path: str) -> Observation:
        """Hash the located file, whatever is known of it."""
        may_be_streamed = location.size > LARGE_BYTES
        hasher = BlockHasher() if may_be_streamed else None
        status, identity = RefStatus.DRIFTED, None
        try:
            found = await self._places.run(path, _hash, path, location.size, hasher)
        except (FileUnreadable, TooLarge):
            if await self._places.run(path, _is_missing, path):
                status = RefStatus.MISSING
        else:
            self._memory.note(found)
            if found.checksum == location.checksum:
                status, identity = RefStatus.OK, found.identity
                if hasher is not None:
                    self._digests.keep(location.checksum, hasher.digests())
        return _observation(location, status, identity)

    async def look(self, location: Location) -> Observation | None:
        """Hash the located file, whatever is known of it. None: it is not ours to look at.

        Raises:
            Busy: it cannot be looked at now.
        """
        path = location.path
        if path is None or not self._places.roots.allow(path):
            return None
        return await self._hash(location, path)

    def _tell(self, location: Location, status: RefStatus, identity: str | None = None) -> None:
        """Report a look that found something new."""
        if status != location.status or identity not in (None, location.file_identity):
            self._observe(_observation(location, status, identity))

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


def _is_missing(path: str) -> bool:
    # Where a directory of the path became a link, something may well be there.
    return hashing.find_status(path) is None and not no_links.is_on_the_way(path)


def _hash(path: str, size: int, hasher: BlockHasher | None) -> hashing.FileContent:
    return hashing.hash_file(path, max_bytes=size, hasher=hasher)


def _observation(location: Location, status: RefStatus, identity: str | None) -> Observation:
    return Observation(
        location.owner_id,
        location.entry_id,
        location.path,
        location.checksum,
        status,
        identity,
    )
