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
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from registry.client import aside
from registry.client.async_client import AsyncRegistryClient, receive, repeated
from registry.client.cache import BlobCache, Claim, default_directory, failures_in
from registry.client.download import Receiver
from registry.client.environment import find_user, without_user
from registry.client.install import Placed, place
from registry.client.network import AsyncTransport
from registry.client.protocol import Endpoint, content_path, find_content_path
from registry.client.retries import RetryPolicy
from registry.client.transport import (
    OnBytes,
    basic,
    cookies,
    failures_of,
    headers_with,
    service_at,
    timeout_of,
)
from registry.core.checks import BASE_SUFFIX, check_filename, check_slug, check_suffix
from registry.core.hashing import FileContent
from registry.core.progress import OnProgress, Tallies
from registry.core.text import shown, shown_url
from registry.discovery.cards import Card
from registry.errors import (
    Invalid,
    NotRegistered,
    RegistryError,
    ServiceUnreachable,
    SettingsError,
    TooLarge,
)

T = TypeVar("T")

_Way = tuple[str, Callable[[], Awaitable[T]]]
"""Where something may be had, and what to do for it."""

AT_ONCE = 4
"""How many files of a model are brought in at the same time."""

REDIRECTS_MAX = 5
DEADLINE_MAX_S = 7 * 24 * 3600.0
SILENCE_MAX_S = 30.0
LOCK_LOOKED_AT_EVERY_S = 0.05
CLAIM_PATIENCE_S = 30.0
"""How long another process may download nothing of a file before it is not waited for any more."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What is taken at most, whatever is advertised, and how long it may take."""

    file_max_bytes: int = 512 << 20
    total_max_bytes: int = 4 << 30
    files_max: int = 10_000
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s <= DEADLINE_MAX_S:
            raise Invalid(
                f"The deadline is {self.deadline_s!r} s; it must be more than 0 and at most "
                f"{DEADLINE_MAX_S:g} s."
            )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: its name, its content, and where it may be had.

    `path` is where registries serve it, `urls` are other places.
    """

    filename: str
    checksum: str
    size: int
    path: str | None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """The cache has the content."""

    path: Path


@dataclass(frozen=True, slots=True)
class Download:
    """The content must be downloaded."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The content is not taken."""

    reason: str


def decide(
    wanted: Wanted, cached: FileContent | None, limits: FetchLimits
) -> Use | Download | Refuse:
    """What to do about one file, given what the cache has under its checksum."""
    if wanted.size > limits.file_max_bytes:
        return Refuse(f"it has {wanted.size} bytes; the limit is {limits.file_max_bytes}")
    if cached is None or (cached.checksum, cached.size) != (wanted.checksum, wanted.size):
        return Download()
    return Use(Path(cached.path))


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that was fetched, and where it is now."""

    filename: str
    checksum: str
    size: int
    path: Path
    downloaded: bool


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

        async def list_files(sources: _Sources) -> list[Wanted]:
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

        async def list_files(sources: _Sources) -> list[Wanted]:
            return wanted

        return await self._fetch(f"the card of {shown(card.name)}", list_files, to, on_progress)

    async def _fetch(
        self,
        name: str,
        list_files: Callable[[_Sources], Awaitable[list[Wanted]]],
        to: str | os.PathLike[str] | None,
        on_progress: OnProgress | None,
    ) -> list[FetchedFile]:
        deadline_s = self._limits.deadline_s
        deadline = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s), AsyncExitStack() as stack:
                sources = await self._open(stack, deadline)
                wanted = await list_files(sources)
                _check_limits(name, wanted, self._limits)
                fetched = await _Fetch(self._cache, self._limits, sources).all(wanted, on_progress)
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

    async def _open(self, stack: AsyncExitStack, deadline: float) -> _Sources:
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
        return _Sources(registries, elsewhere, self._retries, deadline)


def files_of(card: Card) -> list[Wanted]:
    """What a card names, and where it may be had.

    Raises:
        Invalid: a file is not well-formed, or two have the same name.
    """
    wanted: dict[str, Wanted] = {}
    for file in card.files:
        path = find_content_path(file.url)
        check_filename(file.filename)
        if file.filename in wanted:
            raise Invalid(f"The card of {shown(card.name)} has two files {shown(file.filename)}.")
        is_url = file.url.startswith(("http://", "https://"))
        wanted[file.filename] = Wanted(
            file.filename,
            file.checksum,
            file.size,
            path=path,
            urls=(file.url,) if is_url else (),
        )
    return list(wanted.values())


def _check_limits(name: str, wanted: Sequence[Wanted], limits: FetchLimits) -> None:
    total = sum(file.size for file in wanted)
    if len(wanted) > limits.files_max:
        raise TooLarge(f"{name} has more than {limits.files_max} files.")
    if total > limits.total_max_bytes:
        raise TooLarge(
            f"The files of {name} have {total} bytes together; the limit is "
            f"{limits.total_max_bytes}."
        )


class _Fetch:
    """One fetch under way: what the cache lacks is brought into it."""

    def __init__(self, cache: BlobCache, limits: FetchLimits, sources: _Sources) -> None:
        self._cache = cache
        self._limits = limits
        self._sources = sources
        self._places = asyncio.Semaphore(AT_ONCE)

    async def all(
        self, wanted: Sequence[Wanted], on_progress: OnProgress | None
    ) -> list[FetchedFile]:
        """Every file in the cache."""
        contents = {file.checksum: file for file in wanted}
        missing = [
            file for file in contents.values() if isinstance(await self._decide(file), Download)
        ]
        tallies = Tallies("Downloading", sum(file.size for file in missing), on_progress)
        came = await _gather(
            [self._bring_in(file, tallies.part(file.checksum)) for file in missing]
        )
        downloaded = {
            file.checksum for file, was_missing in zip(missing, came, strict=True) if was_missing
        }
        return [
            FetchedFile(
                file.filename,
                file.checksum,
                file.size,
                self._cache.path_of(file.checksum),
                file.checksum in downloaded,
            )
            for file in wanted
        ]

    async def _decide(self, wanted: Wanted) -> Use | Download:
        limit = min(self._limits.file_max_bytes, wanted.size)
        cached = await aside.done(lambda: self._cache.find(wanted.checksum, limit))
        what = decide(wanted, cached, self._limits)
        if isinstance(what, Refuse):
            raise TooLarge(f"{wanted.path or wanted.filename} is not fetched: {what.reason}.")
        return what

    async def _bring_in(self, wanted: Wanted, on_bytes: OnBytes) -> bool:
        """Make sure that the cache has some content; whether it had to be downloaded for that."""
        async with self._places:
            claim = await self._claim(wanted)
            try:
                if isinstance(await self._decide(wanted), Use):
                    # Somebody else was faster.
                    on_bytes(wanted.size)
                    return False
                name = wanted.path or wanted.filename
                receiver = Receiver(
                    name, wanted.checksum, wanted.size, claim.file, on_bytes=on_bytes
                )
                with failures_in(self._cache.directory):
                    receiver.resume()
                    await self._sources.receive(wanted, receiver)
                claim.keep()
                return True
            finally:
                claim.close()

    async def _claim(self, wanted: Wanted) -> Claim:
        """The right to download a file, as soon as nobody else is getting on with it."""
        seen, since = -1, time.monotonic()
        while (claim := self._cache.try_claim(wanted.checksum)) is None:
            size = self._cache.partial_size(wanted.checksum)
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > CLAIM_PATIENCE_S:
                return self._cache.claim_beside(wanted.checksum)
            await asyncio.sleep(LOCK_LOOKED_AT_EVERY_S * random.uniform(0.5, 1.5))
        return claim


class _Sources:
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
            return registry.url, lambda: _listed(registry, slug, suffix, endpoint, files_max)

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


async def _listed(
    registry: AsyncRegistryClient,
    slug: str,
    suffix: str,
    endpoint: Endpoint | None,
    files_max: int,
) -> list[Wanted]:
    wanted: dict[str, Wanted] = {}
    async for entry in registry.artifacts(slug=slug, suffix=suffix):
        key = entry.key
        if (key.slug, key.suffix) != (slug, suffix) or key.filename in wanted:
            raise ServiceUnreachable(
                f"What answers at {registry.url} is no metadata registry: asked for the files of "
                f"{slug}/{suffix}, it lists {key}, or that twice."
            )
        if endpoint is None or await registry.is_held(key, endpoint):
            path = content_path(key, endpoint)
            wanted[key.filename] = Wanted(key.filename, entry.checksum, entry.size, path)
        if len(wanted) > files_max:
            break
    if not wanted:
        by_whom = f" by {endpoint}" if endpoint else ""
        raise NotRegistered(f"Nothing is registered{by_whom} under {slug}/{suffix}.")
    return list(wanted.values())


def _summary(errors: Mapping[str, RegistryError]) -> RegistryError:
    """One error for those of several sources: the class of the first, and what all of them say."""
    if not errors:
        return SettingsError("No registry was named to fetch from.")
    first, *others = errors.values()
    if not others and type(first) is not RegistryError:
        return first
    details = [f"{where}: {error.detail}" for where, error in errors.items()]
    return type(first)("No source could be used. " + " ".join(details))


async def _gather(coroutines: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """Do all at once; when one fails, stop the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _run(coroutine: Coroutine[object, object, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise RuntimeError("This thread runs an event loop: await fetch_async or fetch_card_async.")
