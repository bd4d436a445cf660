"""What the registry does. Read this file first.

    GET a file          find -> ready | open            store/reads/lookup.py, content/sources.py
    register, upload    prepare -> writer -> register   content/manifest.py, store/ops/register.py
    unregister, remove  writer -> release               store/ops/release.py
    look                read -> queries                 store/reads/queries.py

One `Registry` serves one event loop. Reads of keys run inline on a held connection; everything
that may block for longer runs in a few threads; all writes go through one group-committing
writer. An answer is given after its commit reached the disk (S16).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from registry.config import Settings
from registry.content.cache import Body, ContentCache
from registry.content.manifest import check_manifest_bytes, prepare_in
from registry.content.places import Places
from registry.content.sources import Holdings
from registry.content.streams import Stream
from registry.content.uploads import Uploads, spool_directory
from registry.core.checks import check_checksum, check_distinct, check_drain, check_lease
from registry.core.events import EventFilter, EventOrder, EventPage
from registry.core.findings import AuditReport, Explanation
from registry.core.listings import Entry, Model, OwnerRecord
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Drained,
    Offer,
    Owner,
    Receipt,
    Registered,
    Registration,
    Removal,
    Renewed,
    Unregistration,
)
from registry.core.times import format_time
from registry.errors import (
    Busy,
    NotRegistered,
    RegistryError,
    TooLarge,
    UnknownOwner,
    Unserveable,
    UploadsPending,
)
from registry.service.lanes import Lane, start_threads
from registry.store.engine import Connection, Engine
from registry.store.group_commit import Batch, Writer
from registry.store.opening import find_problem
from registry.store.ops import blobs, leases, unregister
from registry.store.ops import register as register_ops
from registry.store.ops.file_status import Observation, observe
from registry.store.ops.settings_table import policy_of, read_variables, write_variables
from registry.store.reads import events, queries
from registry.store.reads.audit import audit, check_classes
from registry.store.reads.lookup import Location, Locator, locations_of

T = TypeVar("T")

THREADS = 8
COSTLY_THREADS = 4
COSTLY_WAITING_MAX = 256
COSTLY_PATIENCE_S = 10.0
PROBE_THREADS = 2
PENDING_COUNT_MAX_AGE_S = 10.0
HOLDERS_TRIED = 1000
OBSERVATIONS_MAX = 1000
SWEEP_TOLERANCE_MS = 10_000
PROBE_MS = 1000
HEALTH_PATIENCE_S = 5.0
WATCH_S = 1.0
"""How often an idle service looks whether the files of its database are still there."""
OPENED_WITHIN_S = 5.0
"""How long a start waits for others that have removed files of the database open."""
OK = "ok"

log = logging.getLogger("registry")


class Registry:
    """The registry over a migrated database. Use it between `start` and `close`.

    `on_batch` is told of every transaction of writes, in the writer's thread.
    """

    def __init__(
        self,
        settings: Settings,
        database: Engine,
        *,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.writer = Writer(database, queue_max=settings.write_queue_max, on_batch=on_batch)
        # Nothing of holders' files is looked at here: a file system that hangs would take them all.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry")
        self._costly = Lane(
            "costly",
            threads=COSTLY_THREADS,
            waiting_max=COSTLY_WAITING_MAX,
            patience_s=COSTLY_PATIENCE_S,
        )
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="registry-probes")
        self._places = Places(settings.artifact_roots, settings.file_timeout_s)
        self._locator = Locator(database)
        self._cache = ContentCache(settings.content_cache_bytes)
        self._holdings = Holdings(database, self._places, self._cache, self._run, self._note)
        self._observing: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._latest: dict[tuple[int, int], Observation] = {}
        """What was observed of a ref while an observation of it was on its way."""
        self._pending = _PendingUploads()
        self._uploads = Uploads(
            max_blob_bytes=settings.max_blob_bytes,
            max_bytes=settings.pending_upload_bytes,
            directory=spool_directory(database.directory),
        )
        self._started_at = database.clock()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take hold of the database and begin to take writes.

        Raises:
            RegistryError: the database cannot be used.
        """
        self._places.start(partial(self._forget_proofs, asyncio.get_running_loop()))
        start_threads(self._threads, THREADS)
        start_threads(self._probes, PROBE_THREADS)
        self._costly.start()
        deadline = time.monotonic() + OPENED_WITHIN_S
        while True:
            try:
                await self._run(self.database.ensure_current)
                break
            except Busy:  # Others may just be letting go of it.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(WATCH_S / 10)
        self.writer.start()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Write what was accepted, then let go of the database."""
        if self._watching is not None:
            self._watching.cancel()
        await self._run(self.writer.close)
        self._locator.close()
        self._costly.close()
        self._probes.shutdown(wait=True)
        self._threads.shutdown(wait=True)
        self._places.close()
        self.database.close()

    # Serving

    def find(self, key: tuple[str, ...]) -> Location | None:
        """Where the bytes of (slug, suffix, filename) are, or of the same behind
        (namespace, component, endpoint) if an owner of that endpoint holds it. None: nobody does.
        """
        return self._locator.find(key)

    @property
    def cached_bytes(self) -> int:
        """Memory in use for content."""
        return self._cache.used_bytes

    def ready(self, location: Location) -> Body | None:
        """The located content if it can be had without waiting."""
        return self._holdings.ready(location)

    async def open(
        self, key: tuple[str, ...], location: Location, start: int = 0
    ) -> Body | Stream | None:
        """The bytes of an entry: the located holder's, or those of another that has them (S5).

        What is streamed was found right where it begins to be sent, at `start`. None: the key
        stands for something else by now.

        Raises:
            NotRegistered: the entry went meanwhile.
            Unserveable: no holder has bytes that match the checksum (S12).
            Busy: nobody has them who could be looked at, and somebody could not be.
        """
        trouble: Busy | None = None
        tried = {(location.owner_id, location.path)}
        others = holders = [location]
        while others:
            for other in others:
                try:
                    opened = await self._holdings.open(other, start)
                except Busy as error:
                    trouble = error
                    continue
                if opened is not None:
                    if other is not location and trouble is None:
                        self._locator.prefer(key, location, other)
                    return opened
            holders = await self.read(
                locations_of, location.entry_id, location.checksum, HOLDERS_TRIED
            )
            others = [each for each in holders if (each.owner_id, each.path) not in tried]
            tried.update((each.owner_id, each.path) for each in others)
        if not holders:
            if self.find(key) is None:
                raise NotRegistered(f"{'/'.join(key)} is not registered any more.")
            return None
        if trouble is not None:
            raise trouble
        raise Unserveable(
            f"{'/'.join(key)} is registered, but none of its {len(holders)} holders has bytes with "
            f"{location.checksum}. They must put the file back, or register it again."
        )

    # Writing

    async def register(
        self,
        owner: Owner,
        offers: Sequence[Offer],
        *,
        lease_ttl_ms: int | None,
        worker_name: str | None = None,
        request_id: str | None = None,
        actor: str | None = None,
    ) -> Registered:
        """Register a manifest for an owner: all of it or nothing (S1-S4).

        Raises:
            Invalid, PathNotAllowed, FileUnreadable, ChecksumMismatch, TooLarge: the manifest.
            Conflict, ContentMissing, Superseded: the state of the registry.
            Busy, StorageUnavailable: the service.
        """
        check_lease(lease_ttl_ms)
        if len(offers) > self.settings.max_artifacts:
            raise TooLarge(
                f"The manifest names {len(offers)} artifacts; at most "
                f"{self.settings.max_artifacts} are taken (max_artifacts). Register in parts."
            )
        artifacts = await self._prepare(offers)
        registration = Registration(owner, artifacts, lease_ttl_ms, worker_name, request_id, actor)
        return await self.writer.submit(
            register_ops.register, registration, rows=1 + len(artifacts)
        )

    async def _prepare(self, offers: Sequence[Offer]) -> tuple[Artifact, ...]:
        limits = self.settings
        if any(offer.path is not None for offer in offers):
            check_distinct([offer.key for offer in offers])
            artifacts = await prepare_in(
                self._places,
                offers,
                self._holdings.looks.learn,
                max_blob_bytes=limits.max_blob_bytes,
                max_manifest_bytes=limits.max_manifest_bytes,
            )
        else:
            artifacts = tuple(
                Artifact(offer.key, offer.checksum or "", offer.size) for offer in offers
            )
        if len(artifacts) * limits.max_blob_bytes > limits.max_manifest_bytes:
            # A size that was given and is wrong is refused by the store.
            unsized = [artifact.checksum for artifact in artifacts if artifact.size is None]
            sizes = await self.read(blobs.sizes_of, unsized) if unsized else {}
            check_manifest_bytes(
                (sizes.get(each.checksum, each.size or 0) for each in artifacts),
                limits.max_manifest_bytes,
            )
        return artifacts

    async def unregister_for_owner(
        self, owner: Owner, *, request_id: str | None = None, actor: str | None = None
    ) -> Receipt:
        """Release all that an owner holds and end it, in one transaction (S7).

        Raises:
            Busy, StorageUnavailable: nothing was changed.
        """
        item = Unregistration(owner, request_id, actor)
        return await self.writer.submit(unregister.unregister, item, rows=16)

    async def remove(
        self,
        slug: str,
        suffix: str,
        *,
        request_id: str | None = None,
        actor: str | None = None,
    ) -> Receipt:
        """Drop a model's entries, whoever holds them.

        Raises:
            Invalid: the slug or the suffix is none.
            Busy, StorageUnavailable: nothing was changed.
        """
        item = Removal(slug, suffix, request_id, actor)
        return await self.writer.submit(unregister.remove, item, rows=1000)

    async def upload(self, checksum: str, parts: AsyncIterator[bytes]) -> tuple[int, bool]:
        """Take in content; its size, and whether it is new.

        Raises:
            Invalid: the checksum is none.
            ChecksumMismatch: the content is other than its checksum says.
            TooLarge: it has more than `max_blob_bytes`.
            UploadsPending: too much is uploaded and not registered.
            Busy, StorageUnavailable: the service.
        """
        check_checksum(checksum)
        async with self._uploads.taken_in(checksum, parts) as spool:
            await self._check_pending(spool.size)
            item = blobs.Upload(checksum, spool.size, spool.content)
            is_new = await asyncio.shield(
                self.writer.submit(blobs.store_blobs, item, size=spool.size)
            )
            self._holdings.forget_copy(checksum)
            return spool.size, is_new

    async def _check_pending(self, size: int) -> None:
        limit = self.settings.pending_upload_bytes
        if not self._pending.fits(size, limit):
            self._pending.count(await self.read(blobs.pending_bytes))
            if not self._pending.fits(size, limit):
                raise UploadsPending(
                    f"{self._pending.bytes} bytes are uploaded and not registered; at most {limit} "
                    "may be (pending_upload_bytes). Register them, or wait until their grace "
                    "period ends."
                )
        self._pending.add(size)

    async def renew(self, owner: Owner) -> Renewed:
        """Renew an owner's lease (S9).

        Raises:
            LeaseGone: it was ended, or never registered.
            Superseded: a newer instance has taken its place (S11).
            Busy, StorageUnavailable: nothing was changed.
        """
        return await self.writer.submit(leases.renew, owner)

    async def drain(
        self,
        owner: Owner,
        deadline_ms: int,
        *,
        request_id: str | None = None,
        actor: str | None = None,
    ) -> Drained:
        """Announce a detach: the owner is served until it unregisters, or until the deadline.

        Raises:
            Invalid: the deadline is not 1 s to 7 days away.
            LeaseGone, Superseded: as `renew`.
            Busy, StorageUnavailable: nothing was changed.
        """
        check_drain(deadline_ms)
        item = leases.Drain(owner, deadline_ms, request_id, actor)
        return await self.writer.submit(leases.drain, item)

    async def scrub(self, location: Location) -> None:
        """Hash an in-place file again and note what was found, as long as it is below a root."""
        observation = await self._holdings.looks.look(location)
        if observation is not None:
            await self.writer.submit(observe, observation)

    # Looking

    @property
    def must_wait(self) -> bool:
        """Whether who looks for something now has to wait for others."""
        return self._costly.is_full

    async def audit(self, classes: Iterable[str] = ()) -> AuditReport:
        """What is wrong, by the `leaks` view, and a summary of how the registry is.

        Raises:
            Invalid: there is no such class of finding.
        """
        check_classes(classes)
        return await self._look(audit, classes)

    async def has_blob(self, checksum: str) -> int | None:
        """The size of copied content, or None: it is not here.

        Raises:
            Invalid: the checksum is none.
        """
        check_checksum(checksum)
        sizes = await self.read(blobs.sizes_of, [checksum])
        return sizes.get(checksum)

    async def owner(self, owner: Owner) -> tuple[OwnerRecord, list[Entry]]:
        """An owner with the entries that it holds.

        Raises:
            UnknownOwner: it never was, or its tombstone is gone.
        """
        found = await self._look(queries.find_owner, owner)
        if found is None:
            raise UnknownOwner(f"No owner {owner} is known, and no tombstone of one is left.")
        return found

    async def owners(self, after: Owner | None, limit: int) -> list[OwnerRecord]:
        """A page of owners in the order of their identity."""
        return await self._look(_list_owners, after, limit)

    async def artifacts(self, after: int, limit: int, filters: Mapping[str, str]) -> list[Entry]:
        """A page of entries in the order of their ids."""
        return await self._look(_list_entries, after, limit, filters)

    async def models(
        self, after: tuple[str, str], limit: int
    ) -> tuple[list[Model], tuple[str, str] | None]:
        """A page of models in the order of (slug, suffix), and where the next page begins."""
        return await self._look(queries.list_models, after, limit)

    async def events(
        self, wanted: EventFilter, order: EventOrder, after: int | None, limit: int
    ) -> EventPage:
        """A page of the journal in an order of ids; `after` None begins at its start."""
        return await self._look(events.list_events, wanted, order, after, limit)

    async def explain(self, key: ArtifactKey) -> Explanation:
        """An entry with its holders and its last events."""
        explained = await self._look(queries.explain, key)
        paths = {holder.path for holder in explained.holders if holder.path is not None}
        return queries.with_ways(explained, await self._holdings.looks.find_ways(paths))

    async def health(self) -> dict[str, str]:
        """Each check with `ok`, or what is wrong and what to do. It answers in time, whatever
        hangs: the database's patience and 5 s are the bound."""
        checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": self._check_database,
            "schema": self._check_schema,
            "writer": self._check_writer,
            "disk": self._check_disk,
        }
        within_s = self.settings.busy_timeout_s + HEALTH_PATIENCE_S
        found = await asyncio.gather(*(_within(within_s, check()) for check in checks.values()))
        return dict(zip(checks, found, strict=True))

    async def _check_database(self) -> str:
        if not self.writer.alive:
            return "it cannot be written, because the writer does not run; restart the service"
        try:
            await self.writer.submit(_probe, None)
        except RegistryError as error:
            return error.detail
        return OK

    async def _check_schema(self) -> str:
        return await self._probe(self._find_problem) or OK

    def _find_problem(self) -> str | None:
        try:
            # First, as it parts a database that was replaced from what is left of the one before.
            self.database.ensure_current()
        except RegistryError as error:
            return error.detail
        return find_problem(self.settings.database_url)

    async def _check_writer(self) -> str:
        return OK if self.writer.alive else "the writer thread does not run; restart the service"

    async def _check_disk(self) -> str:
        disk, bound = await self._probe(self.database.disk_use), self.settings.min_free_bytes
        free = disk.free_bytes
        if free is None or free >= bound:
            return OK
        return (
            f"{free} bytes are free on the disk of {self.database.name}, less than {bound} "
            "(min_free_bytes). Free some space: when the disk is full, nothing can be registered"
        )

    async def sweep_health(self) -> tuple[str, dict[str, str]]:
        """Whether the sweeper does its work, `ok` or what is wrong, and what to look at.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        variables = await self._probe(self._query, read_variables)
        now = self.database.clock()
        overdue_ms = 3 * policy_of(variables).sweep_interval_ms + SWEEP_TOLERANCE_MS
        last = int(variables.get("last_sweep_at", self._started_at))
        check = "ok"
        if now - last > overdue_ms:
            check = f"nobody has swept for {(now - last) // 1000} s; see the log for the cause"
        warnings = {}
        if "brake_engaged_at" in variables:
            warnings["brake"] = (
                f"expiry is paused since {format_time(int(variables['brake_engaged_at']))}: "
                "many leased owners lapsed together. Find out why; to let them expire at once, "
                "run `metadata-registry sweep --release-brake`"
            )
        return check, warnings

    # Threads and what goes on behind

    async def read_at(self, query: Callable[[Connection, int], T]) -> T:
        """A query that goes by the time, in a thread, on a snapshot of its own."""
        return await self.read(lambda conn: query(conn, conn.now))

    async def read(self, query: Callable[..., T], *arguments: Any) -> T:
        """A short query of store/reads, in a thread, on a snapshot of its own."""
        return await self._run(self._query, query, *arguments)

    async def _look(self, query: Callable[..., T], *arguments: Any) -> T:
        """A query that may take long, in a thread of those that only such queries take.

        Raises:
            Busy: too many others look for something.
        """
        return await self._costly.run(self._query, query, *arguments)

    def _query(self, query: Callable[..., T], *arguments: Any) -> T:
        with self.database.read() as conn:
            return query(conn, *arguments)

    async def _probe(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._probes, work, *arguments)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def _watch(self) -> None:
        """Notice that files of the database were removed although nobody asks for anything: as
        long as they are open, what was acknowledged can be saved."""
        while True:
            await asyncio.sleep(WATCH_S)
            with suppress(RegistryError):
                await self._run(self.database.ensure_current)

    def _forget_proofs(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, when mounts have come or gone."""
        with suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(self._holdings.looks.forget_proofs)

    def _note(self, observation: Observation) -> None:
        """Put down what a look at a file found, behind the answer that it was made for."""
        name = (observation.owner_id, observation.entry_id)
        if name in self._observing:
            self._latest[name] = observation
        elif len(self._observing) < OBSERVATIONS_MAX:
            self._observing[name] = asyncio.create_task(self._write_down(name, observation))

    async def _write_down(self, name: tuple[int, int], observation: Observation) -> None:
        """Write down an observation, and then the last of those that came meanwhile, as long as
        it says something else."""
        written: Observation | None = None
        try:
            while observation != written:
                await self._submit_observation(observation)
                written, observation = observation, self._latest.pop(name, observation)
        finally:
            # Not in a callback of the task: what came before that was called would be lost.
            self._latest.pop(name, None)
            del self._observing[name]

    async def _submit_observation(self, observation: Observation) -> None:
        try:
            await self.writer.submit(observe, observation)
        except RegistryError as error:
            what = observation.path or f"the copy of {observation.checksum}"
            log.warning("could not note that %s is %s: %s", what, observation.status, error)


class _PendingUploads:
    """An upper bound of the bytes uploaded and not registered: counted, then added to.

    With several processes the bound may be exceeded by what the others take in within 10 s.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._counted_at = float("-inf")

    def fits(self, size: int, limit: int) -> bool:
        fresh = time.monotonic() - self._counted_at < PENDING_COUNT_MAX_AGE_S
        return fresh and self.bytes + size <= limit

    def count(self, counted: int) -> None:
        self.bytes = counted
        self._counted_at = time.monotonic()

    def add(self, size: int) -> None:
        self.bytes += size


def _list_owners(conn: Connection, after: Owner | None, limit: int) -> list[OwnerRecord]:
    return queries.list_owners(conn, after=after, limit=limit)


def _list_entries(
    conn: Connection, after: int, limit: int, filters: Mapping[str, str]
) -> list[Entry]:
    return queries.list_entries(conn, after=after, limit=limit, filters=filters)


async def _within(seconds: float, check: Awaitable[str]) -> str:
    try:
        return await asyncio.wait_for(check, seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s; if that stays so, restart the service"


def _probe(conn: Connection, now: int, items: Sequence[None]) -> list[None]:
    """A small write, at most one a second: the lock can be had, the disk takes what is written."""
    before = int(read_variables(conn).get("probed_at", 0))
    if not 0 <= now - before < PROBE_MS:
        write_variables(conn, {"probed_at": now})
    return list(items)
