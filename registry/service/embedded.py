"""The registry in-process: the same store, called from Python without a service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from registry.config import Settings
from registry.content.manifest import prepare
from registry.content.roots import ArtifactRoots
from registry.core.checks import milliseconds
from registry.core.findings import Explanation
from registry.core.forks import check_file
from registry.core.hashing import checksum_of, hash_file
from registry.core.records import (
    ArtifactKey,
    Offer,
    Outcome,
    Owner,
    Receipt,
    Registration,
    Removal,
    Unregistration,
)
from registry.errors import (
    Busy,
    FileUnreadable,
    NotRegistered,
    PathNotAllowed,
    RegistryError,
    TooLarge,
    Unserveable,
)
from registry.store import opening
from registry.store.group_commit import Operation
from registry.store.ops import register as register_ops
from registry.store.ops import unregister
from registry.store.ops.blobs import find_content
from registry.store.reads import queries
from registry.store.reads.lookup import Location, find_locations

Item = TypeVar("Item")
Out = TypeVar("Out")

_DEFAULTS = Settings()
ACTOR = "in-process"


class MetadataArtifactRegistry:
    """The registry of one SQLite file, for use from any thread and by several processes at once.

    The caller is trusted: with `artifact_roots=None` any file may be registered in place. A
    service on the same file serves in-place files only from its own roots.

    It belongs to the process that made it. In a forked child every call raises WrongProcess, and
    so does opening the same file; `close`, leaving the block and the child's end do nothing.

    Raises:
        DatabaseRefused: the file is not a registry's, or needs a newer program.
        SettingsError: an artifact root is not a directory.
        WrongProcess: this process was forked of one that has the file open.
    """

    def __init__(
        self,
        database_url: str = "sqlite:///registry.db",
        artifact_roots: Sequence[str | os.PathLike[str]] | None = None,
        *,
        busy_timeout_s: float = _DEFAULTS.busy_timeout_s,
    ) -> None:
        check_file(opening.place_of(database_url))
        self._roots = ArtifactRoots(artifact_roots)
        opening.prepare(database_url)
        self._database = opening.open_database(database_url, busy_timeout_s=busy_timeout_s)

    def register(
        self,
        owner: Owner | str,
        slug: str,
        suffix: str,
        filename: str,
        path: str | os.PathLike[str],
        *,
        lease_ttl_s: float | None = None,
    ) -> Outcome:
        """Register a file in place for an owner; what that did to the entry.

        Without `lease_ttl_s` the owner holds it until it is unregistered.

        Raises:
            Invalid, PathNotAllowed, FileUnreadable, TooLarge: the file.
            Conflict: another owner holds the key with other content (S2).
            Superseded: a newer instance of the worker has taken the owner's place.
            Busy, StorageUnavailable: the database.
        """
        key = ArtifactKey(slug, suffix, filename)
        artifacts = prepare(
            [Offer(key, path=os.path.join(os.getcwd(), path))],
            self._roots,
            max_blob_bytes=_DEFAULTS.max_blob_bytes,
            max_manifest_bytes=_DEFAULTS.max_manifest_bytes,
        )
        lease_ttl_ms = None if lease_ttl_s is None else milliseconds("lease_ttl_s", lease_ttl_s)
        registration = Registration(Owner.of(owner), artifacts, lease_ttl_ms, actor=ACTOR)
        return self._write(register_ops.register, registration).artifacts[0].outcome

    def get(self, slug: str, suffix: str, filename: str) -> Path | None:
        """The resolved path of a holder's file, or None: nobody holds the key in place.

        The file is not read; use `read` for bytes that are checked.
        """
        for location in self._locations(ArtifactKey(slug, suffix, filename)):
            if location.path is not None:
                return Path(os.path.realpath(location.path))
        return None

    def read(self, slug: str, suffix: str, filename: str) -> bytes:
        """The bytes of an entry, checked, from whichever holder has them (S12).

        Raises:
            NotRegistered: nobody holds the key.
            Unserveable: no holder has bytes that match the checksum.
        """
        key = ArtifactKey(slug, suffix, filename)
        locations = self._locations(key)
        while locations:
            shortage: Busy | None = None
            for location in locations:
                try:
                    content = self._content(location)
                except Busy as error:
                    shortage = error
                    continue
                if content is not None:
                    return content
            if shortage is not None:
                raise shortage
            tried, locations = locations, self._locations(key)
            if locations == tried:
                raise Unserveable(
                    f"{key} is registered, but none of its {len(tried)} holders has bytes with "
                    f"{tried[0].checksum}."
                )
        raise NotRegistered(f"{key} is not registered.")

    def explain(self, slug: str, suffix: str, filename: str) -> Explanation:
        """An entry with its holders and its last events."""
        key = ArtifactKey(slug, suffix, filename)
        with self._database.read() as conn:
            explained = queries.explain(conn, key)
        paths = {holder.path for holder in explained.holders if holder.path is not None}
        return queries.with_ways(explained, {path: os.path.realpath(path) for path in paths})

    def unregister(self, slug: str, suffix: str) -> Receipt:
        """Drop the entries of a model, whoever holds them."""
        return self._write(unregister.remove, Removal(slug, suffix, actor=ACTOR))

    def unregister_for_owner(self, owner: Owner | str) -> Receipt:
        """Release all that an owner holds and end it, in one transaction (S7)."""
        return self._write(unregister.unregister, Unregistration(Owner.of(owner), actor=ACTOR))

    def __len__(self) -> int:
        """How many entries there are."""
        with self._database.read() as conn:
            return queries.count_entries(conn)

    def is_empty(self) -> bool:
        """Whether there is no entry."""
        return len(self) == 0

    def __bool__(self) -> bool:
        """True: an empty registry is a registry."""
        return True

    def close(self) -> None:
        """Close the connections. The registry can be opened again at any time."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, operation: Operation[Item, Out], item: Item) -> Out:
        with self._database.write() as conn:
            outcome = operation(conn, conn.now, [item])[0]
        if isinstance(outcome, RegistryError):
            raise outcome
        return outcome

    def _locations(self, key: ArtifactKey) -> list[Location]:
        with self._database.read() as conn:
            return find_locations(conn, key)

    def _content(self, location: Location) -> bytes | None:
        if location.path is None:
            with self._database.read() as conn:
                content = find_content(conn, location.checksum)
            return content if _matches(content, location.checksum) else None
        try:
            path = self._roots.resolve(location.path)
            found = hash_file(path, max_bytes=location.size, keep=True, expected=location.checksum)
        except (FileUnreadable, PathNotAllowed, TooLarge):
            return None
        if found.content is None or found.checksum != location.checksum:
            return None
        return bytes(found.content)


def _matches(content: bytes | None, checksum: str) -> bool:
    return content is not None and checksum_of(content) == checksum
