"""Errors as problem documents (RFC 9457), and back into the errors that they were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from registry import errors
from registry.core.checks import parse_instance_id
from registry.core.events import Event
from registry.core.records import (
    ArtifactKey,
    ConflictingKey,
    Holder,
    Owner,
    OwnerState,
    RefStatus,
    Source,
)
from registry.core.times import format_time, parse_time, parse_time_or_none, time_or_none
from registry.wire import types
from registry.wire.listings import EventResponse


class ConflictHolderResponse(msgspec.Struct):
    """The owner who holds a key, with its state and lease end: can it be waited for?"""

    namespace: types.Name
    component: types.Name
    endpoint: types.Name
    instance_id: types.InstanceId
    lora_slug: types.Slug | None
    state: OwnerState
    lease_expires_at: types.Time | None
    source: Source
    since: types.Time

    @classmethod
    def of(cls, holder: Holder) -> ConflictHolderResponse:
        owner = holder.owner
        return cls(
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug,
            holder.state,
            time_or_none(holder.lease_expires_at),
            holder.source,
            format_time(holder.since),
        )

    def record(self) -> Holder:
        number = parse_instance_id(self.instance_id)
        return Holder(
            Owner(self.namespace, self.component, self.endpoint, number, self.lora_slug),
            self.state,
            parse_time_or_none(self.lease_expires_at),
            self.source,
            None,
            RefStatus.OK,
            parse_time(self.since),
        )


class ConflictResponse(msgspec.Struct):
    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    registered: types.Checksum
    offered: types.Checksum
    holders: list[ConflictHolderResponse]

    @classmethod
    def of(cls, conflict: ConflictingKey) -> ConflictResponse:
        return cls(
            conflict.key.slug,
            conflict.key.suffix,
            conflict.key.filename,
            conflict.registered,
            conflict.offered,
            [ConflictHolderResponse.of(holder) for holder in conflict.holders],
        )

    def record(self) -> ConflictingKey:
        return ConflictingKey(
            ArtifactKey(self.slug, self.suffix, self.filename),
            self.registered,
            self.offered,
            tuple(holder.record() for holder in self.holders),
        )


class Problem(msgspec.Struct, omit_defaults=True):
    """An error answer. `code` is stable; `detail` says what to do about it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    conflicts: list[ConflictResponse] | None = None
    missing: list[str] | None = None
    retry_after_s: int | None = None
    max_bytes: int | None = None
    events: list[EventResponse] | None = None


def problem_of(
    error: errors.RegistryError,
    status: int,
    request_id: str | None = None,
    events: Sequence[Event] | None = None,
) -> Problem:
    """An error as the body of its answer."""
    answer = Problem(
        type=f"urn:metadata-registry:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
    )
    if isinstance(error, errors.Conflict):
        answer.conflicts = [ConflictResponse.of(conflict) for conflict in error.conflicts]
    elif isinstance(error, errors.ContentMissing):
        answer.missing = list(error.missing)
    elif isinstance(error, errors.Busy):
        answer.retry_after_s = error.retry_after_s
    elif isinstance(error, errors.TooLarge):
        answer.max_bytes = error.max_bytes
    if events is not None:
        answer.events = [EventResponse.of(event) for event in events]
    return answer


def read_problem(body: bytes, status: int) -> errors.RegistryError:
    """The error that an error answer stands for: the same class as in the service.

    A body that is no problem of this service (a proxy's, say) becomes a plain RegistryError that
    quotes its beginning.
    """
    try:
        answer = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return errors.RegistryError(f"The service answered {status}: {text or 'nothing'}")
    cls = errors.error_classes().get(answer.code, errors.RegistryError)
    if issubclass(cls, errors.Conflict):
        conflicts = [conflict.record() for conflict in answer.conflicts or ()]
        return cls(answer.detail, conflicts=conflicts)
    if issubclass(cls, errors.ContentMissing):
        return cls(answer.detail, missing=answer.missing or ())
    if issubclass(cls, errors.Busy):
        return cls(answer.detail, retry_after_s=answer.retry_after_s or 1)
    if issubclass(cls, errors.TooLarge):
        return cls(answer.detail, max_bytes=answer.max_bytes)
    return cls(answer.detail)
