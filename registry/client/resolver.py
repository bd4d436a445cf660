"""Fetch a model's files: every one of them verified, or nothing in the directory changes.

    what is wanted    a registry's list of the model, or a model card
    what is there     the cache, hashed again
    what is missing   downloaded, from one source after the other until one has the right bytes
    at the end        linked into the directory, if one is given

The whole of it is bounded: in bytes, in files, and in time, however slowly a server answers.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from registry.client.async_client import AsyncRegistryClient
from registry.client.cache import BlobCache
from registry.client.cache_directory import default_directory
from registry.client.endpoint import Endpoint
from registry.client.fetch import Fetch
from registry.client.fetch import FetchedFile as FetchedFile
from registry.client.fetch_limits import FetchLimits as FetchLimits
from registry.client.fetch_plan import check_limits
from registry.client.file_sources import FileSources
from registry.client.install import Placed, place
from registry.client.retries import RetryPolicy
from registry.client.transport import cookies, headers_with, service_at, timeout_of
from registry.client.wanted_files import Wanted, files_of
from registry.core.checks import BASE_SUFFIX, check_slug, check_suffix
from registry.core.progress import OnProgress
from registry.core.text import shown
from registry.discovery.cards import Card
from registry.errors import ServiceUnreachable
from registry.network.transports import AsyncTransport

T = TypeVar("T")

REDIRECTS_MAX = 5
SILENCE_MAX_S = 30.0


class Resolver:
    """Fetches models into a cache and from there into directories.

    May be used by several threads, and several processes may share a cache.

    Args:
        services: URLs of registries that hold the same, tried in this order. May be empty if only
            cards are fetched.
        token: sent to the registries, and to nobody else.
        cache: where content is kept; by default in the user's cache directory.
        ca_file: authorities whose certificates are believed, instead of the system's.

    Raises:
        SettingsError: a URL is none of a service, or the token cannot be one.
    """

    def __init__(
        self,
        services: str | Sequence[str] = (),
        *,
        token: str | None = None,
        cache: BlobCache | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        limits: FetchLimits | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._services = [services] if isinstance(services, str) else list(services)
        self._token = token
        for url in self._services:
            service_at(url, token)
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        self._cache = cache or BlobCache(default_directory())
        self._limits = limits or FetchLimits()
        self._retries = retries or RetryPolicy()
        self._transport = transport

    def fetch(
        self,
        slug: str,
        suffix: str = BASE_SUFFIX,
        *,
        to: str | os.PathLike[str] | None = None,
        endpoint: Endpoint | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[FetchedFile]:
        """Every file of a model, verified: in the cache, and with `to` in that directory.

        With an endpoint, only what its owners hold.

        Raises:
            Invalid: slug or suffix is not well-formed.
            NotRegistered: there is no such file.
            TooLarge: more is advertised than the limits allow.
            ChecksumMismatch: other bytes came than were advertised; nothing was placed.
            Unserveable: a file is held, but no holder's bytes are right; nothing was placed.
            ServiceUnreachable: no source answered, or not all came in time; nothing was placed.
            DirectoryUnusable: the cache or the directory cannot be used; nothing was placed.
        """
        return _run(
            self.fetch_async(slug, suffix, to=to, endpoint=endpoint, on_progress=on_progress)
        )

    async def fetch_async(
        self,
        slug: str,
        suffix: str = BASE_SUFFIX,
        *,
        to: str | os.PathLike[str] | None = None,
        endpoint: Endpoint | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[FetchedFile]:
        """As `fetch`, in an event loop."""
        check_slug("slug", slug)
        check_suffix(suffix)
        only = None if endpoint is None else Endpoint.of(endpoint)

        async def list_files(sources: FileSources) -> list[Wanted]:
            return await sources.list_files(slug, suffix, only, self._limits.files_max)

        return await self._fetch(f"{slug}/{suffix}", list_files, to, on_progress)

    def fetch_card(
        self,
        card: Card | Mapping[str, Any],
        *,
        to: str | os.PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[FetchedFile]:
        """Every file of a model card: from the registries, or from where the card says.

        Raises:
            Invalid: the card is not well-formed.
            RegistryError: as `fetch`.
        """
        return _run(self.fetch_card_async(card, to=to, on_progress=on_progress))

    async def fetch_card_async(
        self,
        card: Card | Mapping[str, Any],
        *,
        to: str | os.PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[FetchedFile]:
        """As `fetch_card`, in an event loop."""
        card = card if isinstance(card, Card) else Card(card)
        wanted = files_of(card)

        async def list_files(sources: FileSources) -> list[Wanted]:
            return wanted

        return await self._fetch(f"the card of {shown(card.name)}", list_files, to, on_progress)

    async def _fetch(
        self,
        name: str,
        list_files: Callable[[FileSources], Awaitable[list[Wanted]]],
        to: str | os.PathLike[str] | None,
        on_progress: OnProgress | None,
    ) -> list[FetchedFile]:
        deadline_s = self._limits.deadline_s
        deadline = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s), AsyncExitStack() as stack:
                sources = await self._open(stack, deadline)
                wanted = await list_files(sources)
                check_limits(name, wanted, self._limits)
                fetched = await Fetch(self._cache, self._limits, sources).all(wanted, on_progress)
        except (TimeoutError, ServiceUnreachable):
            if time.monotonic() < deadline:
                raise
            raise ServiceUnreachable(
                f"The files of {name} did not arrive within {deadline_s:g} s. What came is kept; "
                "fetch again to go on."
            ) from None
        directory = None if to is None else Path(to)
        if directory is not None:
            placed = [Placed(f.filename, f.checksum, f.size, f.path) for f in fetched]
            await asyncio.to_thread(place, placed, directory)
        if any(file.downloaded for file in fetched):
            await asyncio.to_thread(self._cache.collect)
        if directory is None:
            return fetched
        return [replace(file, path=directory / file.filename) for file in fetched]

    async def _open(self, stack: AsyncExitStack, deadline: float) -> FileSources:
        registries = [
            await stack.enter_async_context(
                AsyncRegistryClient(
                    url,
                    token=self._token,
                    timeout_s=SILENCE_MAX_S,
                    ca_file=self._ca_file,
                    retries=self._retries,
                    transport=self._transport,
                )
            )
            for url in self._services
        ]
        elsewhere = httpx2.AsyncClient(
            headers=headers_with(None),
            timeout=timeout_of(SILENCE_MAX_S),
            cookies=cookies(),
            follow_redirects=True,
            max_redirects=REDIRECTS_MAX,
            transport=self._transport or AsyncTransport(self._ca_file),
            trust_env=False,
        )
        await stack.enter_async_context(elsewhere)
        return FileSources(registries, elsewhere, self._retries, deadline)


def _run(coroutine: Coroutine[object, object, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise RuntimeError("This thread runs an event loop: await fetch_async or fetch_card_async.")
