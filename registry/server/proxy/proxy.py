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
from registry.content.streams import Stream
from registry.core.records import RefStatus
from registry.core.text import shown_url
from registry.discovery import open_discovery
from registry.errors import (
    Busy,
    Forbidden,
    NotRegistered,
    OriginUnavailable,
    StorageUnavailable,
    Unserveable,
)
from registry.server.auth import Access
from registry.server.file_keys import Key
from registry.server.proxy.advertised import Address, AdvertisedFiles, address_of
from registry.server.proxy.follower import CardFollower
from registry.server.proxy.origin_files import OriginFiles
from registry.server.proxy.refusals import check_is_read, target_of
from registry.store.reads.lookup import Location

if TYPE_CHECKING:
    from registry.service.registry import Registry

KEYS_MAX = 10
"""How many keys with the wanted content are tried."""

Found = tuple[Location, Body | Stream]


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
        self._origin_files = OriginFiles(max_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the cards until the block ends."""
        self._follower.start()
        try:
            yield
        finally:
            await self._follower.close()
            await self._origin_files.close()

    def admit(self, scope: Scope) -> Address:
        """Where the file is that a request is for.

        Raises:
            Forbidden: it is for something else than a metadata file of a worker with a live card.
            ProxyUnauthenticated: it has no token, and reads need one.
            NotRegistered: no live card names it.
            Busy: the cards are not known yet.
        """
        check_is_read(scope)
        self._access.admit_proxied(scope)
        address = address_of(scope["foreign_url"])
        if address is not None and self._files.find(address):
            return address
        if not self._files.is_known:
            raise Busy("The live cards are not known yet: the discovery store was not read so far.")
        if address is None or not self._files.knows(address.authority):
            raise Forbidden(
                f"No live card names a file at {target_of(scope)}. This proxy leads to workers "
                "that the discovery store names, and to nobody else."
            )
        raise NotRegistered(f"No live card names {target_of(scope)} (any more).")

    async def find(self, address: Address, key: Key, registry: Registry) -> Found:
        """The content that live cards name at an address: held here under its key, or any other, or
        else from there.

        Raises:
            OriginUnavailable, Busy: it cannot be had.
        """
        trouble: OriginUnavailable | Busy | None = None
        for file in self._files.find(address):
            held = await _find_held(registry, key, file.checksum)
            if held is not None:
                return held
            try:
                body = await self._origin_files.fetch(file, address.authority)
            except (OriginUnavailable, Busy) as error:
                trouble = trouble or error
                continue
            location = Location(0, file.checksum, body.size, 0, None, None, RefStatus.OK)
            return location, body
        raise trouble or NotRegistered(f"No live card names {'/'.join(key)} any more.")


async def _find_held(registry: Registry, key: Key, checksum: str) -> Found | None:
    """The content from a holder that has it. What cannot be looked at here is not held here."""
    try:
        found = await _open(registry, key, checksum)
        if found is None:
            filters = {"checksum": checksum}
            for entry in await registry.lookups.artifacts(0, KEYS_MAX, filters):
                other = (entry.key.slug, entry.key.suffix, entry.key.filename)
                found = found or await _open(registry, other, checksum)
        return found
    except (Busy, StorageUnavailable):
        return None


async def _open(registry: Registry, key: Key, checksum: str) -> Found | None:
    location = await registry.keys.find(key)
    if location is None or location.checksum != checksum:
        return None
    try:
        source = registry.ready(location) or await registry.open(key, location)
    except (Unserveable, NotRegistered, Busy):
        return None
    return None if source is None else (location, source)
