"""What looking finds: entries, what an owner holds, owners, models."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.records import ArtifactKey, Lease, Owner, OwnerState


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry with its content and how many owners hold it.

    `base_slug` is the slug of the model that it is a revision of, if it is one (S17).
    """

    id: int
    key: ArtifactKey
    checksum: str
    size: int
    generation: int
    created_at: int
    updated_at: int
    holders: int
    base_slug: str | None = None


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
    bytes were right at the last look. `base_slug` is that of its entries.
    """

    slug: str
    suffix: str
    files: int
    bytes: int
    holders: int
    serveable: bool
    base_slug: str | None = None


@dataclass(frozen=True, slots=True)
class OtherRevision:
    """Another revision of a model, and the files that are other there, or only here or there; at
    most 100 are named."""

    slug: str
    differing: tuple[str, ...]
