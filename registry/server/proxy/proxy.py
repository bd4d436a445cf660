"""Requests for whole URLs of others: the files of live cards, and nothing else.

A frontend whose `HTTP_PROXY` is this service asks it for the URLs in the cards of its workers. What
is held here is served from here, whatever key it has; the rest comes from where the card says.
Neither the request's headers nor anything else of it goes there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Scope

from registry.content.cache import Body
from registry.core.records import RefStatus
from registry.core.text import shown_url
from registry.discovery import open_discovery
from registry.errors import Forbidden, NotRegistered
from registry.server.auth import Access
from registry.server.file_keys import Key, Path, path_of
from registry.server.proxy.advertised import AdvertisedFile, AdvertisedFiles, address_of
from registry.server.proxy.follower import CardFollower
from registry.server.proxy.origin_files import OriginFiles
from registry.server.proxy.refusals import check_is_read, target_of
from registry.store.reads.lookup import Location

if TYPE_CHECKING:
    from registry.service.registry import Registry

KEYS_MAX = 10
"""How many keys with the wanted content are tried."""


class FileProxy:
    """What a service with `--proxy-for` serves beside its own files, for one event loop.

    Args:
        url: the discovery store whose cards say what there is.
        max_bytes: the largest file that is fetched.
    """

    def __init__(self, url: str, access: Access, max_bytes: int) -> None:
        self._access = access
        self._files = AdvertisedFiles()
        self._follower = CardFollower(open_discovery(url), self._files, shown_url(url))
        self._origins = OriginFiles(max_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the cards until the block ends."""
        self._follower.start()
        try:
            yield
        finally:
            await self._follower.close()
            await self._origins.close()

    def admit(self, scope: Scope) -> AdvertisedFile:
        """The file that a request is for.

        Raises:
            Forbidden: it is for something else than a metadata file of a worker with a live card.
            Unauthenticated: it has no token, and reads need one.
            NotRegistered: no live card names it.
        """
        check_is_read(scope)
        self._access.admit_proxied(scope)
        address = address_of(scope["foreign_url"])
        if address is None or not self._files.knows(address.authority):
            raise Forbidden(
                f"No live card names a file at {target_of(scope)}. This proxy leads to workers "
                "that the discovery store names, and to nobody else."
            )
        file = self._files.find(address)
        if file is None:
            raise NotRegistered(f"No live card names {target_of(scope)} (any more).")
        return file

    async def find(
        self, file: AdvertisedFile, scope: Scope, registry: Registry
    ) -> tuple[Path, Location, Body | None]:
        """Where the content is, under whatever key, and itself if it takes no waiting."""
        path = path_of(scope["raw_path"])
        location = await _find_held(registry, path[0], file.checksum)
        if location is not None:
            return path, location, registry.ready(location)
        return await self.fetch(file, path)

    async def fetch(self, file: AdvertisedFile, path: Path) -> tuple[Path, Location, Body]:
        """The content from where the card says."""
        body = await self._origins.fetch(file)
        return path, Location(0, file.checksum, body.size, 0, None, None, RefStatus.OK), body


async def _find_held(registry: Registry, key: Key, checksum: str) -> Location | None:
    """A holder of the content: under the key itself, else under any other."""
    location = registry.find(key)
    if location is not None and location.checksum == checksum:
        return location
    for entry in await registry.lookups.artifacts(0, KEYS_MAX, {"checksum": checksum}):
        location = registry.find((entry.key.slug, entry.key.suffix, entry.key.filename))
        if location is not None and location.checksum == checksum:
            return location
    return None
