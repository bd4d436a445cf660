"""The service's own look at discovery, again and again, so that whoever asks is answered at once.

It has a task of its own, and what may hang is done in a thread that nobody waits for: discovery
that is away, or hangs, holds up nothing else. The log says so once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from registry.config import Settings
from registry.core import background
from registry.core.findings import DiscoveryReport
from registry.core.public_urls import PublicUrls
from registry.core.text import shown_url
from registry.discovery import Discovery, open_discovery
from registry.errors import DiscoveryUnavailable, RegistryError
from registry.service.advertised_cards import liveness_of, look_at_discovery
from registry.service.discovery_audit import Looked, Suspicions, compare
from registry.store.reads.advertised import FileKey, look_at_registry
from registry.store.reads.audit import report_of

T = TypeVar("T")

LOOK_EVERY_S = 10.0
PART_OF_TIME = 20
PAUSE_MAX_S = 60.0
"""A comparison is made in at most this part of the time, unless the pause would be too long."""

ANSWER_MAX_S = 60.0
"""After so long a look at discovery is given up. Stores give up earlier."""

STALE_S = 180.0
"""What is older is told to nobody as what is so now."""

LEADS_EVERY_S = 1.0
"""How often a process that does not look asks whether it is its turn."""

log = logging.getLogger("registry")


@dataclass(frozen=True, slots=True)
class DiscoveryNews:
    """The last report, if there is one yet, and why there is no newer one, if there should be."""

    report: DiscoveryReport | None = None
    problem: str | None = None


_decode = msgspec.json.Decoder(DiscoveryNews).decode


class DiscoveryWatch:
    """Compares the registry of one service with discovery.

    Of several processes one looks, and tells the others what it found.

    Args:
        settings: has the URL of a store, and the public URLs of this service.
        read: runs a query on the registry, elsewhere than in the event loop.
        leads: whether this process is the one.
        tell: is given what is new, for the others to `hear`.

    Raises:
        SettingsError: a URL is none.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[..., Awaitable[Any]],
        *,
        leads: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url = settings.discovery or ""
        self._store: Discovery = open_discovery(self._url)
        self._liveness_s = liveness_of(self._store)
        self._public = PublicUrls(settings.public_urls)
        self._namespaces = frozenset(settings.discovery_namespaces)
        self._read = read
        self._leads = leads
        self._tell = tell
        self._suspicions = Suspicions()
        self._keys: list[FileKey] = []
        self._hanging: Future[Any] | None = None
        self.news = DiscoveryNews()
        """What is known now. In a process that does not look, what it was told."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks while the block runs. A look that hangs is not waited for."""
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            with suppress(background.NoThread):
                background.begin(self._store.close)

    def hear(self, news: str) -> None:
        """Take in what the process that looks has told. For any thread."""
        self.news = _decode(news)

    def report(self, now: int) -> DiscoveryReport:
        """The last report.

        Raises:
            DiscoveryUnavailable: there is none yet, or it is too old to say what is so now.
        """
        found, problem = self.news.report, self.news.problem
        if found is not None and now - found.looked_at <= STALE_S * 1000:
            return found
        if problem is not None:
            raise DiscoveryUnavailable(problem)
        raise DiscoveryUnavailable(
            "The registry has not been compared with discovery yet: what does not fit is looked at "
            f"again after {self._liveness_s:g} s. Ask again then."
        )

    async def _work(self) -> None:
        while True:
            if not self._leads():
                self._suspicions, self._keys = Suspicions(), []
                await asyncio.sleep(LEADS_EVERY_S)
                continue
            began_s = time.monotonic()
            await self._look_and_tell()
            taken_s = time.monotonic() - began_s
            pause_s = min(PAUSE_MAX_S, max(LOOK_EVERY_S, PART_OF_TIME * taken_s) - taken_s)
            await asyncio.sleep(pause_s)

    async def _look_and_tell(self) -> None:
        before, problem = self.news, None
        report = before.report
        try:
            report = await self._look() or report
        except RegistryError as error:
            problem = f"{shown_url(self._url)} cannot be compared with: {error.detail}"
        except Exception as error:
            problem = f"{shown_url(self._url)} cannot be compared with: {error!r}"
            if before.problem is None:
                log.exception("the comparison with discovery failed")
        if problem is not None and before.problem is None:
            log.warning("%s; retrying", problem)
        elif problem is None and before.problem is not None:
            log.info("%s can be compared with again", shown_url(self._url))
        self.news = DiscoveryNews(report, problem)
        self._tell(msgspec.json.encode(self.news).decode())

    async def _look(self) -> DiscoveryReport | None:
        """Look once. None: what did not fit at the first look has to be looked at again yet.

        Raises:
            DiscoveryUnavailable, Busy, StorageUnavailable: one of the two cannot be read.
        """
        began_s = time.monotonic()
        before = await self._read(look_at_registry, self._keys)
        discovery = await self._apart(
            partial(look_at_discovery, self._store, self._public, self._namespaces)
        )
        self._keys = discovery.keys
        after = await self._read(look_at_registry, self._keys)
        suspects = await self._apart(
            partial(
                compare,
                before,
                discovery,
                after,
                liveness_s=self._liveness_s,
                namespaces=self._namespaces,
            )
        )
        looked = Looked(began_s, time.monotonic(), after.now)
        findings = self._suspicions.note(suspects, looked)
        if not self._suspicions.is_decided:
            return None
        audit = report_of(findings, None)
        return DiscoveryReport(after.now, len(discovery.listed), discovery.unreadable, audit)

    async def _apart(self, work: Callable[[], T]) -> T:
        """What work comes to, in a thread that is left alone when it hangs."""
        if self._hanging is not None and not self._hanging.done():
            raise DiscoveryUnavailable("It still does not answer what it was asked before.")
        loop, is_done = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[T]) -> None:
            with suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(is_done.set)

        try:
            future = background.begin(work, "registry-discovery-look")
        except background.NoThread as error:
            raise DiscoveryUnavailable(f"It was not asked: {error}.") from None
        future.add_done_callback(wake)
        try:
            await asyncio.wait_for(is_done.wait(), ANSWER_MAX_S)
        except TimeoutError:
            self._hanging = future
            raise DiscoveryUnavailable(f"It does not answer within {ANSWER_MAX_S:g} s.") from None
        return future.result()
