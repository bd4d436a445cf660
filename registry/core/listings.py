"""What looking finds: entries, what an owner holds, owners, models."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.records import ArtifactKey, Lease, Owner, OwnerState


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry with its content and how many owners hold it."""

    id: int
    key: ArtifactKey
    checksum: str
    size: int
    generation: int
    created_at: int
    updated_at: int
    holders: int


@dataclass(frozen=True, slots=True)
class HeldEntry:
    """An entry in the list of what an owner holds."""

    key: ArtifactKey
    checksum: str
    size: int


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """An owner as the registry knows it. `refs` counts what it holds."""

    owner: Owner
    state: OwnerState
    worker_name: str | None
    lease: Lease | None
    registered_at: int
    renewed_at: int
    drain_deadline_at: int | None
    ended_at: int | None
    end_reason: str | None
    refs: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model (slug, suffix) with its entries together.

    `holders` counts owners of any of them. It is serveable when every entry has a holder whose
    bytes were right at the last look.
    """

    slug: str
    suffix: str
    files: int
    bytes: int
    holders: int
    serveable: bool
