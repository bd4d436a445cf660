"""What writes answer. Readers ignore fields that they do not know, so that an older client can
talk to a newer service."""

from __future__ import annotations

import msgspec

from registry.core.records import (
    ArtifactKey,
    Drained,
    Kept,
    Lease,
    Outcome,
    OwnerState,
    Receipt,
    Registered,
    RegisteredArtifact,
    Renewed,
)
from registry.core.times import format_time, parse_time, seconds_of
from registry.errors import Invalid, RegistryError, error_classes
from registry.wire import types
from registry.wire.paths import metadata_path
from registry.wire.requests import OwnerIdentity, owner_or_none


class LeaseResponse(msgspec.Struct):
    ttl_s: types.Seconds
    expires_at: types.Time

    @classmethod
    def of(cls, lease: Lease | None) -> LeaseResponse | None:
        return (
            None if lease is None else cls(seconds_of(lease.ttl_ms), format_time(lease.expires_at))
        )

    def record(self) -> Lease:
        return Lease(round(self.ttl_s * 1000), parse_time(self.expires_at))


class KeyResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename

    @classmethod
    def of(cls, key: ArtifactKey) -> KeyResponse:
        return cls(key.slug, key.suffix, key.filename)

    def record(self) -> ArtifactKey:
        return ArtifactKey(self.slug, self.suffix, self.filename)


class RegisteredArtifactResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    checksum: types.Checksum
    size: types.Size
    url: str
    outcome: Outcome

    @classmethod
    def of(cls, artifact: RegisteredArtifact) -> RegisteredArtifactResponse:
        key = artifact.key
        return cls(
            key.slug,
            key.suffix,
            key.filename,
            artifact.checksum,
            artifact.size,
            metadata_path(key),
            artifact.outcome,
        )

    def record(self) -> RegisteredArtifact:
        key = ArtifactKey(self.slug, self.suffix, self.filename)
        return RegisteredArtifact(key, self.checksum, self.size, self.outcome)


class RegisteredResponse(msgspec.Struct):
    owner: OwnerIdentity
    lease: LeaseResponse | None
    artifacts: list[RegisteredArtifactResponse]

    @classmethod
    def of(cls, registered: Registered) -> RegisteredResponse:
        return cls(
            OwnerIdentity.of(registered.owner),
            LeaseResponse.of(registered.lease),
            [RegisteredArtifactResponse.of(artifact) for artifact in registered.artifacts],
        )

    def record(self) -> Registered:
        return Registered(
            self.owner.record(),
            None if self.lease is None else self.lease.record(),
            tuple(artifact.record() for artifact in self.artifacts),
        )


class RenewedResponse(msgspec.Struct):
    """A renewed lease. `refs` counts what the owner holds, for the worker to compare, and
    `unserveable` what of it had not the right bytes at the last look."""

    owner: OwnerIdentity
    lease: LeaseResponse | None
    refs: types.Count
    unserveable: types.Count = 0

    @classmethod
    def of(cls, renewed: Renewed) -> RenewedResponse:
        return cls(
            OwnerIdentity.of(renewed.owner),
            LeaseResponse.of(renewed.lease),
            renewed.refs,
            renewed.unserveable,
        )

    def record(self) -> Renewed:
        lease = None if self.lease is None else self.lease.record()
        return Renewed(self.owner.record(), lease, self.refs, self.unserveable)


class RenewalErrorResponse(msgspec.Struct):
    """Why one of several leases was not renewed."""

    code: str
    detail: str


class RenewalResponse(msgspec.Struct, omit_defaults=True):
    """One of several renewals: what a renewal alone answers, or why it is refused."""

    owner: OwnerIdentity
    lease: LeaseResponse | msgspec.UnsetType | None = msgspec.UNSET
    refs: types.Count | msgspec.UnsetType = msgspec.UNSET
    unserveable: types.Count | msgspec.UnsetType = msgspec.UNSET
    error: RenewalErrorResponse | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def refused(cls, owner: OwnerIdentity, error: RegistryError) -> RenewalResponse:
        return cls(owner, error=RenewalErrorResponse(error.code, error.detail))

    def record(self) -> Renewed | RegistryError:
        """Raises: Invalid: it says neither that it is renewed nor why not."""
        if isinstance(self.error, RenewalErrorResponse):
            return error_classes().get(self.error.code, RegistryError)(self.error.detail)
        if isinstance(self.lease, msgspec.UnsetType) or isinstance(self.refs, msgspec.UnsetType):
            raise Invalid("A renewal has neither a lease nor an error.")
        lease = None if self.lease is None else self.lease.record()
        unserveable = 0 if isinstance(self.unserveable, msgspec.UnsetType) else self.unserveable
        return Renewed(self.owner.record(), lease, self.refs, unserveable)


class RenewalsResponse(msgspec.Struct):
    """One for each owner, in the order of the request."""

    renewals: list[RenewalResponse]


class DrainedResponse(msgspec.Struct):
    owner: OwnerIdentity
    state: OwnerState
    drain_deadline_at: types.Time

    @classmethod
    def of(cls, drained: Drained) -> DrainedResponse:
        return cls(
            OwnerIdentity.of(drained.owner), OwnerState.DRAINING, format_time(drained.deadline_at)
        )

    def record(self) -> Drained:
        return Drained(self.owner.record(), parse_time(self.drain_deadline_at))


class BlobResponse(msgspec.Struct):
    """Content that is now here."""

    checksum: types.Checksum
    size: types.Size


class KeptResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    holders: types.Count

    @classmethod
    def of(cls, kept: Kept) -> KeptResponse:
        return cls(kept.key.slug, kept.key.suffix, kept.key.filename, kept.holders)

    def record(self) -> Kept:
        return Kept(ArtifactKey(self.slug, self.suffix, self.filename), self.holders)


class ReceiptResponse(msgspec.Struct):
    owner: OwnerIdentity | None
    released: types.Count
    removed: list[KeyResponse]
    kept: list[KeptResponse]

    @classmethod
    def of(cls, receipt: Receipt) -> ReceiptResponse:
        return cls(
            owner_or_none(receipt.owner),
            receipt.released,
            [KeyResponse.of(key) for key in receipt.removed],
            [KeptResponse.of(kept) for kept in receipt.kept],
        )

    def record(self) -> Receipt:
        return Receipt(
            None if self.owner is None else self.owner.record(),
            self.released,
            tuple(key.record() for key in self.removed),
            tuple(kept.record() for kept in self.kept),
        )
