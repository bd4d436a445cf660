"""What somebody wants to look at: lists, the journal, explanations, an audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from registry.core.events import EventFilter, EventOrder, EventPage
from registry.core.findings import AuditReport, Explanation
from registry.core.listings import Entry, Model, OwnerRecord
from registry.core.records import ArtifactKey, Owner
from registry.core.sweeping import Swept
from registry.errors import UnknownOwner
from registry.service.lanes import Lane
from registry.store.engine import Connection, Engine
from registry.store.ops.expire import rehearse
from registry.store.reads import events, queries
from registry.store.reads.audit import audit, check_classes

T = TypeVar("T")

THREADS = 4
WAITING_MAX = 256
PATIENCE_S = 10.0

FindWays = Callable[[Iterable[str]], Awaitable[Mapping[str, str]]]


class Lookups:
    """Queries that may take long, in threads that only such queries take.

    Each raises Busy when too many others look for something. `find_ways` tells of paths how they
    lead to files now.
    """

    def __init__(self, database: Engine, find_ways: FindWays) -> None:
        self._database = database
        self._find_ways = find_ways
        self._lane = Lane("costly", threads=THREADS, waiting_max=WAITING_MAX, patience_s=PATIENCE_S)

    def start(self) -> None:
        """Start the threads.

        Raises:
            StorageUnavailable: there are none to be had.
        """
        self._lane.start()

    def close(self) -> None:
        """Wait for what was begun."""
        self._lane.close()

    @property
    def must_wait(self) -> bool:
        """Whether who looks for something now has to wait for others."""
        return self._lane.is_full

    async def audit(self, classes: Iterable[str] = ()) -> AuditReport:
        """What is wrong, by the `leaks` view, and a summary of how the registry is.

        Raises:
            Invalid: there is no such class of finding.
        """
        check_classes(classes)
        return await self._run(audit, classes)

    async def owner(self, owner: Owner) -> tuple[OwnerRecord, list[Entry]]:
        """An owner with the entries that it holds.

        Raises:
            UnknownOwner: it never was, or its tombstone is gone.
        """
        found = await self._run(queries.find_owner, owner)
        if found is None:
            raise UnknownOwner(f"No owner {owner} is known, and no tombstone of one is left.")
        return found

    async def owners(self, after: Owner | None, limit: int) -> list[OwnerRecord]:
        """A page of owners in the order of their identity."""
        return await self._run(_list_owners, after, limit)

    async def artifacts(self, after: int, limit: int, filters: Mapping[str, str]) -> list[Entry]:
        """A page of entries in the order of their ids."""
        return await self._run(_list_entries, after, limit, filters)

    async def models(
        self, after: tuple[str, str], limit: int
    ) -> tuple[list[Model], tuple[str, str] | None]:
        """A page of models in the order of (slug, suffix), and where the next page begins."""
        return await self._run(queries.list_models, after, limit)

    async def events(
        self, wanted: EventFilter, order: EventOrder, after: int | None, limit: int
    ) -> EventPage:
        """A page of the journal in an order of ids; `after` None begins at its start."""
        return await self._run(events.list_events, wanted, order, after, limit)

    async def explain(self, key: ArtifactKey) -> Explanation:
        """An entry with its holders and its last events."""
        explained = await self._run(queries.explain, key)
        paths = {holder.path for holder in explained.holders if holder.path is not None}
        return queries.with_ways(explained, await self._find_ways(paths))

    async def rehearse_sweep(self, *, release_brake: bool = False) -> Swept:
        """Whom a sweep would end now. Nothing is changed."""
        return await self._run(rehearse, release_brake)

    async def look(self, query: Callable[..., T], *arguments: Any) -> T:
        """What a query of store/reads answers."""
        return await self._run(query, *arguments)

    async def find_ways(self, paths: Iterable[str]) -> Mapping[str, str]:
        """How the paths of holders lead to files now, as far as that is known."""
        return await self._find_ways(paths)

    async def _run(self, query: Callable[..., T], *arguments: Any) -> T:
        return await self._lane.run(self._query, query, *arguments)

    def _query(self, query: Callable[..., T], *arguments: Any) -> T:
        with self._database.read() as conn:
            return query(conn, *arguments)


def _list_owners(conn: Connection, after: Owner | None, limit: int) -> list[OwnerRecord]:
    return queries.list_owners(conn, after=after, limit=limit)


def _list_entries(
    conn: Connection, after: int, limit: int, filters: Mapping[str, str]
) -> list[Entry]:
    return queries.list_entries(conn, after=after, limit=limit, filters=filters)
