"""What the registry does. Read this file first.

    GET a file          find -> ready | open            service/key_lookups.py, content/sources.py
    register, upload    prepare -> writer -> register   content/manifest.py, store/ops/register.py
    unregister, remove  writer -> release               store/ops/release.py
    look                lookups -> queries              service/lookups.py, store/reads/
    is it well          health                          service/health.py

One `Registry` serves one event loop. Reads of keys run inline on a held connection, or wait for
the server of the database together; everything that may block for longer runs in a few threads; all
writes go through one group-committing writer. An answer is given after its commit reached the disk
(S16).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
from registry.core.identity import Identity
from registry.core.model_revisions import OnConflict
from registry.core.records import (
    Artifact,
    Drained,
    Offer,
    Owner,
    Receipt,
    Registered,
    Registration,
    Removal,
    Unregistration,
)
from registry.errors import (
    Busy,
    NotRegistered,
    RegistryError,
    TooLarge,
    Unserveable,
)
from registry.service.content_store import ContentStore
from registry.service.health import Health
from registry.service.key_lookups import KeyLookups
from registry.service.lanes import start_threads
from registry.service.lookups import Lookups
from registry.service.observations import Observations
from registry.service.pending_uploads import PendingUploads
from registry.service.root_checks import RootChecks
from registry.store.engine import Connection, Engine
from registry.store.group_commit import Batch, Writer
from registry.store.ops import blobs, leases, unregister
from registry.store.ops import register as register_ops
from registry.store.ops.file_status import observe
from registry.store.reads.lookup import Location, locations_of

T = TypeVar("T")

THREADS = 8
HOLDERS_TRIED = 1000
WATCH_S = 1.0
"""How often an idle service looks whether the files of its database are still there."""
OPENED_WITHIN_S = 5.0
"""How long a start waits for others that have removed files of the database open."""


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
        self.health = Health(settings, database, self.writer)
        self.observations = Observations(self.writer)
        # Nothing of holders' files is looked at here: a file system that hangs would take them all.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry")
        self._places = Places(settings.artifact_roots, settings.file_timeout_s)
        self.keys = KeyLookups(database)
        self._cache = ContentCache(settings.content_cache_bytes)
        self._holdings = Holdings(
            database, self._places, self._cache, self._run, self.observations.note
        )
        self._renewing = leases.RenewOperation()
        self.lookups = Lookups(database, self._holdings.looks.find_ways)
        self._pending = PendingUploads(
            settings.pending_upload_bytes, partial(self.read, blobs.pending_bytes)
        )
        self.roots = RootChecks(self._places, self.writer, self.read, self.scrub)
        self._uploads = Uploads(
            max_blob_bytes=settings.max_blob_bytes,
            max_bytes=settings.pending_upload_bytes,
            directory=spool_directory(database.directory),
        )
        self._contents = ContentStore(database, self.writer, self._run)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take hold of the database and begin to take writes.

        Raises:
            RegistryError: the database cannot be used.
        """
        self._places.start(partial(self._forget_proofs, asyncio.get_running_loop()))
        start_threads(self._threads, THREADS)
        self.health.start()
        self.lookups.start()
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
        self.roots.start()

    async def close(self) -> None:
        """Write what was accepted, then let go of the database."""
        if self._watching is not None:
            self._watching.cancel()
        self.roots.close()
        await self._run(self.writer.close)
        self.keys.close()
        self.lookups.close()
        self.health.close()
        self._threads.shutdown(wait=True)
        self._places.close()
        self.database.close()

    # Serving

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
                        self.keys.prefer(key, location, other)
                    return opened
            holders = await self.read(
                locations_of, location.entry_id, location.checksum, HOLDERS_TRIED
            )
            others = [each for each in holders if (each.owner_id, each.path) not in tried]
            tried.update((each.owner_id, each.path) for each in others)
        if not holders:
            if await self.keys.find(key) is None:
                raise NotRegistered(f"{'/'.join(key)} is not registered any more.")
            return None
        if trouble is not None:
            raise trouble
        raise Unserveable(
            f"{'/'.join(key)} is registered, but none of its {len(holders)} holders has bytes with "
            f"{location.checksum}. {self.roots.advice(holders)}"
        )

    # Writing

    async def register(
        self,
        owner: Owner,
        offers: Sequence[Offer],
        *,
        lease_ttl_ms: int | None,
        worker_name: str | None = None,
        on_conflict: OnConflict = OnConflict.REFUSE,
        as_revision: bool = False,
        request_id: str | None = None,
        actor: str | None = None,
    ) -> Registered:
        """Register a manifest for an owner: all of it or nothing (S1-S4, S17).

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
        terms = (lease_ttl_ms, worker_name, request_id, actor, on_conflict, as_revision)
        registration = Registration(owner, artifacts, *terms)
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

    async def upload(
        self, checksum: str, parts: AsyncIterator[bytes], request_id: str | None, actor: str | None
    ) -> tuple[int, bool]:
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
            await self._pending.add(spool.size)
            item = blobs.Upload(checksum, spool.size, spool.content, actor, request_id)
            is_new = await asyncio.shield(self._contents.store(item))
            self._holdings.forget_copy(checksum)
            return spool.size, is_new

    async def renew(self, owner: Identity) -> leases.Renewal:
        """Renew an owner's lease (S9).

        Raises:
            LeaseGone: it was ended, or never registered.
            Superseded: a newer instance has taken its place (S11).
            Busy, StorageUnavailable: nothing was changed.
        """
        return await self.writer.submit(self._renewing.renew, owner)

    async def renew_many(self, owners: Sequence[Identity]) -> list[leases.Renewal | RegistryError]:
        """Renew many leases in one write: for each, what `renew` would answer or raise.

        Raises:
            Busy, StorageUnavailable: nothing was changed.
        """
        return await self.writer.submit(self._renewing.renew_many, owners, rows=len(owners))

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

    async def has_blob(self, checksum: str) -> int | None:
        """The size of copied content, or None: it is not here.

        Raises:
            Invalid: the checksum is none.
        """
        check_checksum(checksum)
        return (await self.read(blobs.sizes_of, [checksum])).get(checksum)

    # Threads and what goes on behind

    async def read_at(self, query: Callable[[Connection, int], T]) -> T:
        """A query that goes by the time, in a thread, on a snapshot of its own."""
        return await self.read(lambda conn: query(conn, conn.now))

    async def read(self, query: Callable[..., T], *arguments: Any) -> T:
        """A short query of store/reads, in a thread, on a snapshot of its own."""
        return await self._run(self._query, query, *arguments)

    def _query(self, query: Callable[..., T], *arguments: Any) -> T:
        with self.database.read() as conn:
            return query(conn, *arguments)

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
