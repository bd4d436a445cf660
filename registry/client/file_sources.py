"""Where files may be had: registries and the URLs of a card, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import httpx2

from registry.client.async_client import AsyncRegistryClient, receive, repeated
from registry.client.download import Receiver
from registry.client.endpoint import Endpoint
from registry.client.retries import RetryPolicy
from registry.client.transport import basic, failures_of
from registry.client.wanted_files import Wanted, list_wanted
from registry.core.text import shown, shown_url
from registry.errors import NotRegistered, RegistryError, ServiceUnreachable, SettingsError
from registry.network.environment import find_user, without_user

T = TypeVar("T")

_Way = tuple[str, Callable[[], Awaitable[T]]]
"""Where something may be had, and what to do for it."""


class FileSources:
    """Where files may be had. Each gets a share of the time, so that a slow one leaves some to
    those behind it."""

    def __init__(
        self,
        registries: Sequence[AsyncRegistryClient],
        elsewhere: httpx2.AsyncClient,
        retries: RetryPolicy,
        deadline: float,
    ) -> None:
        self._registries = registries
        self._elsewhere = elsewhere
        self._retries = retries
        self._deadline = deadline

    async def list_files(
        self, slug: str, suffix: str, endpoint: Endpoint | None, files_max: int
    ) -> list[Wanted]:
        """What the first registry that has anything of a model has of it, one too many at most.

        Raises:
            NotRegistered: there is nothing.
        """

        def listing(registry: AsyncRegistryClient) -> _Way[list[Wanted]]:
            return registry.url, lambda: list_wanted(registry, slug, suffix, endpoint, files_max)

        return await self._first([listing(registry) for registry in self._registries])

    async def receive(self, wanted: Wanted, receiver: Receiver) -> None:
        """Bring in what a receiver lacks, from the first source that has the right bytes."""

        def from_registry(registry: AsyncRegistryClient, path: str) -> _Way[None]:
            return registry.url, lambda: registry.receive(path, receiver)

        def from_elsewhere(url: str) -> _Way[None]:
            return shown_url(url), lambda: self._receive_from(url, receiver)

        ways = [
            from_registry(registry, wanted.path)
            for registry in self._registries
            if wanted.path is not None
        ]
        ways += [from_elsewhere(url) for url in wanted.urls]
        if not ways:
            raise NotRegistered(f"Nothing says where {shown(wanted.filename)} can be downloaded.")
        if receiver.received:
            # What an earlier process left may be wrong: that is no fault of the first source.
            ways.insert(0, ways[0])
        await self._first(ways)

    async def _receive_from(self, url: str, receiver: Receiver) -> None:
        # A password in the URL is sent, but the HTTP library must not see it: it logs URLs.
        user, where = find_user(url), without_user(url)
        headers = {} if user is None else {"authorization": basic(user)}

        async def once() -> None:
            with failures_of(where):
                await receive(self._elsewhere, where, receiver, where, headers)

        await repeated(self._retries, once)

    async def _first(self, ways: Sequence[_Way[T]]) -> T:
        """What the first way leads to that leads anywhere."""
        errors: dict[str, RegistryError] = {}
        for number, (where, way) in enumerate(ways):
            share_s = (self._deadline - time.monotonic()) / (len(ways) - number)
            try:
                async with asyncio.timeout(share_s):
                    return await way()
            except RegistryError as error:
                errors[where] = error
            except TimeoutError:
                errors[where] = ServiceUnreachable(f"It was not done after {share_s:.3g} s.")
        raise _summary(errors)


def _summary(errors: Mapping[str, RegistryError]) -> RegistryError:
    """One error for those of several sources: the class of the first, and what all of them say."""
    if not errors:
        return SettingsError("No registry was named to fetch from.")
    first, *others = errors.values()
    if not others and type(first) is not RegistryError:
        return first
    details = [f"{where}: {error.detail}" for where, error in errors.items()]
    return type(first)("No source could be used. " + " ".join(details))
