"""Where the bytes of a key are: at once, or as soon as the server of the database has answered."""

from __future__ import annotations

from registry.store.engine import Engine
from registry.store.reads.lookup import GroupLocator, Location, Locator


class KeyLookups:
    """The look-ups of one event loop. `key` is (slug, suffix, filename), or the same behind
    (namespace, component, endpoint) for entries that an owner of that endpoint holds.

    `at_once` is there where the database is a file: it does not wait. `together` is there where
    it is a server.

    Every look-up raises StorageUnavailable where the database cannot be read, and Busy while it is
    being replaced.
    """

    def __init__(self, database: Engine) -> None:
        self.at_once = Locator(database) if database.reads_at_once else None
        self.together = None if database.reads_at_once else GroupLocator(database)

    async def find(self, key: tuple[str, ...]) -> Location | None:
        """Where the bytes of a key are, or None: nobody holds it."""
        if self.together is not None:
            return await self.together.find(key)
        return None if self.at_once is None else self.at_once.find(key)

    def prefer(self, key: tuple[str, ...], found: Location, location: Location) -> None:
        """Remember the holder that turned out to have the bytes instead of the one that was found,
        where anything is remembered."""
        if self.at_once is not None:
            self.at_once.prefer(key, found, location)

    def close(self) -> None:
        """Let go of the connections; the next look-up opens others."""
        for each in (self.at_once, self.together):
            if each is not None:
                each.close()
