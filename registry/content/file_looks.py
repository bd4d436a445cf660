"""Looks at holders' files: where their paths lead, and what is there (S12, S13)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from registry.content.blocks import BlockDigests, BlockHasher
from registry.content.cache import LARGE_BYTES
from registry.content.file_memory import FileMemory, proof_of
from registry.content.places import Places
from registry.content.round_looks import RoundLooks
from registry.content.single_flight import SingleFlight
from registry.core import hashing, no_links
from registry.core.memo import Memo
from registry.core.records import RefStatus
from registry.errors import Busy, FileUnreadable, PathNotAllowed, TooLarge
from registry.store.ops.file_status import Observation
from registry.store.reads.lookup import Location

WAYS_BYTES = 16 << 20
FOLLOWED_AT_ONCE = 32

Tell = Callable[[Location, RefStatus, str | None], None]
"""Is told what a look found: the status of a holder's bytes, and the identity of the file that has
them, if it can be trusted."""


class FileLooks:
    """What is known of files in place, and the looks that find it out, for one event loop."""

    def __init__(
        self, places: Places, digests: BlockDigests, flights: SingleFlight, tell: Tell
    ) -> None:
        self._places = places
        self._digests = digests
        self._flights = flights
        self._tell = tell
        self._memory = FileMemory()
        self._round = RoundLooks()
        self._ways: Memo[str, str] = Memo(WAYS_BYTES)
        """Where the paths that are kept led when that was last looked at."""

    def forget_proofs(self) -> None:
        """What could be looked at without waiting may be elsewhere by now."""
        self._memory.proofs.clear()

    def note(self, found: hashing.FileContent) -> None:
        """A file was hashed, and this is what it held."""
        self._memory.note(found)

    def accuse(self, location: Location, way: str, identity: str | None) -> None:
        """A file turned out to hold something else, though it looks as it did when it was hashed.
        It must be hashed right again before it is believed."""
        self._memory.note_wrong(way, identity)
        self._tell(location, RefStatus.DRIFTED, None)

    def learn(self, path: str, found: hashing.FileContent) -> None:
        """A path that is kept was followed just now, and this is what it led to."""
        self._ways.keep(path, found.path)
        self._memory.note(found)

    def is_there(self, location: Location, path: str) -> bool:
        """Whether a local file is known to hold the located content, by a look at it in this
        round of the event loop."""
        way = self._ways.get(path)
        look = self._places.find_status
        if way is None or look is None:
            return False
        proof = self._memory.proofs.get(way)
        try:
            if proof is None:
                return False
            return proof == proof_of(location.checksum, self._round.find_status(way, look))
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

    async def find_way(self, location: Location, path: str) -> str | None:
        """Where the path of a holder leads to the located content, or None: it does not.

        It is followed anew when what it led to before is not right any more (S13). What is not
        known is hashed.
        """
        before = self._ways.get(path)
        if before is not None and (
            self.is_there(location, path) or await self._is_known(location, before)
        ):
            return before
        way = await self._follow(path)
        if way is not None and way != before and await self._is_known(location, way):
            self._ways.keep(path, way)
            return way
        return await self.hashed(location, path, way, before)

    async def _follow(self, path: str) -> str | None:
        """Where a path leads now; None: to nothing that may be held in place."""
        try:
            [walk] = await self._places.resolve([path])
        except (FileUnreadable, PathNotAllowed):
            return None
        return walk.at

    async def _is_known(self, location: Location, way: str) -> bool:
        """Whether a file is known to hold the located content, without a look at what is in it."""
        status = await self._places.run(way, hashing.find_status, way)
        if status is None or not self._has(location, way, hashing.identity_of(status)):
            return False
        if self._places.is_local(way):
            self._memory.prove(way, location.checksum, status)
        return True

    async def hashed(self, location: Location, path: str, *ways: str | None) -> str | None:
        """Where a path leads, or led, if the located content is there now; once for all who ask."""
        name = f"hash {location.checksum} {path}"
        return await self._flights.alone(name, lambda: self._hash_and_tell(location, path, ways))

    async def _hash_and_tell(
        self, location: Location, path: str, ways: Iterable[str | None]
    ) -> str | None:
        way, found = await self._find(location, path, ways)
        if found is None:
            return None
        self._tell(location, found.status, found.file_identity)
        return way if found.status is RefStatus.OK else None

    async def _find(
        self, location: Location, path: str, ways: Iterable[str | None]
    ) -> tuple[str | None, Observation | None]:
        """The first of the ways at whose end the located content is, or just the first of them,
        and what is to be said of it.

        Where a path leads out of the roots now, or to nothing, what it led to may still be there.
        """
        first: tuple[str | None, Observation | None] | None = None
        known: list[str | None] = [way for way in dict.fromkeys(ways) if way is not None]
        for way in known or [None]:
            found = await self._look_at(location, path, way)
            if found is not None and found.status is RefStatus.OK:
                return way, found
            first = first or (way, found)
        return first or (None, None)

    async def _look_at(self, location: Location, path: str, way: str | None) -> Observation | None:
        """Hash what a path leads to, unless it was found wrong just now. None: it lies below none
        of our roots, so that it is not for us to say anything of it."""
        if way is None:
            if not self._places.roots.allow(path):
                return None
            return await self._without_content(location, path)
        status = await self._places.run(way, hashing.find_status, way)
        if status is not None:
            identity = hashing.identity_of(status)
            if self._memory.is_wrong(way, identity, location.checksum):
                return observation(location, RefStatus.DRIFTED)
        hasher = BlockHasher() if location.size > LARGE_BYTES else None
        try:
            found = await self._places.run(way, _hash, way, location, hasher)
        except (FileUnreadable, TooLarge) as error:
            without = await self._without_content(location, way)
            if hashing.was_absent(error) and without.status is not RefStatus.MISSING:
                raise hashing.changing(way) from hashing.FileChanges()
            return without
        self.learn(path, found)
        if found.checksum != location.checksum:
            return observation(location, RefStatus.DRIFTED)
        if hasher is not None:
            self._digests.keep(location.checksum, hasher.digests())
        return observation(location, RefStatus.OK, found.identity)

    async def _without_content(self, location: Location, path: str) -> Observation:
        missing = await self._places.run(path, _is_missing, path)
        return observation(location, RefStatus.MISSING if missing else RefStatus.DRIFTED)

    async def look(self, location: Location) -> Observation | None:
        """Hash the located file, whatever is known of it. None: it is not ours to look at.

        Raises:
            Busy: it cannot be looked at now.
        """
        path = location.path
        if path is None:
            return None
        ways = (await self._follow(path), self._ways.get(path))
        for way in ways:
            if way is not None:
                self._memory.forget(way)
        _, found = await self._find(location, path, ways)
        return found

    async def find_ways(self, paths: Iterable[str]) -> dict[str, str]:
        """Where paths lead, as far as that is known or can be found out now."""
        ways = {path: self._ways.get(path) for path in paths}
        unknown = [path for path, way in ways.items() if way is None]
        for start in range(0, len(unknown), FOLLOWED_AT_ONCE):
            # Together: those in places that hang are given up together.
            some = unknown[start : start + FOLLOWED_AT_ONCE]
            ways.update(zip(some, await asyncio.gather(*map(self._try, some)), strict=True))
        return {path: way for path, way in ways.items() if way is not None}

    async def _try(self, path: str) -> str | None:
        """Where a path leads now; None also where that cannot be found out now."""
        try:
            return await self._follow(path)
        except Busy:
            return None


def _is_missing(path: str) -> bool:
    # Where a directory of the path became a link, something may well be there.
    return hashing.find_status(path) is None and not no_links.is_on_the_way(path)


def _hash(path: str, location: Location, hasher: BlockHasher | None) -> hashing.FileContent:
    return hashing.hash_file(
        path, max_bytes=location.size, hasher=hasher, expected=location.checksum
    )


def observation(location: Location, status: RefStatus, identity: str | None = None) -> Observation:
    return Observation(
        location.owner_id,
        location.entry_id,
        location.path,
        location.checksum,
        status,
        identity,
    )
