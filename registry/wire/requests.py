"""What callers send. Unknown fields are refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, TypeVar

import msgspec

from registry import errors
from registry.core.checks import parse_instance_id
from registry.core.identity import Identity
from registry.core.model_revisions import OnConflict
from registry.core.records import ArtifactKey, Offer, Owner
from registry.core.times import milliseconds_of
from registry.wire import types

LEASE_DEFAULT_S = 60
DRAIN_DEFAULT_S = 300
RENEWALS_MAX = 1000
"""How many owners are renewed by one call at most."""

SQL_MAX = 10_000
"""Characters of a statement of SQL."""
SQL_TIMEOUT_MAX_S = 10.0
SQL_ROWS_DEFAULT = 1000
SQL_ROWS_MAX = 10_000

T = TypeVar("T")


class OwnerIdentity(msgspec.Struct, forbid_unknown_fields=True):
    """An owner. `instance_id` is always a string in answers."""

    namespace: types.Name
    component: types.Name
    endpoint: types.Name
    instance_id: types.AnyInstanceId
    lora_slug: types.Slug | None = None

    def record(self) -> Owner:
        """Raises: Invalid."""
        return Owner(
            self.namespace,
            self.component,
            self.endpoint,
            parse_instance_id(self.instance_id),
            self.lora_slug,
        )

    def identity(self) -> Identity:
        """As the tables spell it. Raises: Invalid, as `record`."""
        return Identity.checked(
            self.namespace, self.component, self.endpoint, self.instance_id, self.lora_slug
        )

    @classmethod
    def of(cls, owner: Owner) -> OwnerIdentity:
        return cls(
            owner.namespace,
            owner.component,
            owner.endpoint,
            str(owner.instance_id),
            owner.lora_slug,
        )


def owner_named(who: Identity) -> OwnerIdentity:
    """The owner that its columns name."""
    namespace, component, endpoint, instance_id, lora_slug = who
    return OwnerIdentity(namespace, component, endpoint, instance_id, lora_slug or None)


def owner_or_none(owner: Owner | None) -> OwnerIdentity | None:
    return None if owner is None else OwnerIdentity.of(owner)


class ArtifactOffer(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a manifest: in place with `path`, else a copy that `checksum` names."""

    slug: types.Slug
    suffix: types.Suffix
    filename: types.Filename
    path: types.Path | None = None
    checksum: types.Checksum | None = None
    size: types.Size | None = None

    def record(self) -> Offer:
        """Raises: Invalid."""
        key = ArtifactKey(self.slug, self.suffix, self.filename)
        return Offer(key, self.path, self.checksum, self.size)

    @classmethod
    def of(cls, offer: Offer) -> ArtifactOffer:
        key = offer.key
        return cls(key.slug, key.suffix, key.filename, offer.path, offer.checksum, offer.size)


class RegisterRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A manifest. `lease_ttl_s` left out is 60; null is no lease.

    With `on_conflict` `revision`, a manifest that would be refused because others hold other
    content is registered as a revision of its model, under a slug of its own. `as_revision` asks
    for that slug also where nothing is in the way: for what was registered there and was lost.
    """

    owner: OwnerIdentity
    artifacts: list[ArtifactOffer]
    lease_ttl_s: types.Seconds | None = LEASE_DEFAULT_S
    worker_name: types.Name | None = None
    on_conflict: OnConflict = OnConflict.REFUSE
    as_revision: bool = False

    @property
    def lease_ttl_ms(self) -> int | None:
        return None if self.lease_ttl_s is None else milliseconds_of(self.lease_ttl_s)


class RenewalsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The owners whose leases are renewed together."""

    owners: Annotated[list[OwnerIdentity], msgspec.Meta(max_length=RENEWALS_MAX)]

    def identities(self) -> list[Identity]:
        """Raises: Invalid."""
        return [owner.identity() for owner in self.owners]


class DrainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An announced detach. `deadline_s` is how long it may take, 1 s to 7 days."""

    deadline_s: types.Seconds = DRAIN_DEFAULT_S

    @property
    def deadline_ms(self) -> int:
        return milliseconds_of(self.deadline_s)


class SqlRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One statement that reads; how long it may take, and how many rows are wanted at most."""

    query: Annotated[str, msgspec.Meta(max_length=SQL_MAX)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=SQL_TIMEOUT_MAX_S)] = SQL_TIMEOUT_MAX_S
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=SQL_ROWS_MAX)] = SQL_ROWS_DEFAULT


_drain_decoder = msgspec.json.Decoder(DrainRequest)
_renewals_decoder = msgspec.json.Decoder(RenewalsRequest)
_sql_decoder = msgspec.json.Decoder(SqlRequest)
_register_decoder = msgspec.json.Decoder(RegisterRequest)


def decode_register(body: bytes | bytearray) -> RegisterRequest:
    """The manifest in a request body.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_register_decoder, body)


def decode_renewals(body: bytes | bytearray) -> RenewalsRequest:
    """Raises: Invalid."""
    return _decoded(_renewals_decoder, body)


def decode_sql(body: bytes) -> SqlRequest:
    """Raises: Invalid."""
    return _decoded(_sql_decoder, body)


def decode_drain(body: bytes) -> DrainRequest:
    """The announcement in a request body. An empty body leaves everything at its default.

    Raises:
        Invalid: not JSON, an unknown field, a wrong type.
    """
    return _decoded(_drain_decoder, body) if body else DrainRequest()


_WAS_FLOAT = "got `float`"
_WHOLE_DIGITS = 20


def _whole(text: str) -> int | float:
    """What a number with a point or an exponent is: 7.0 and 7e0 are whole numbers (JSON Schema)."""
    number = Decimal(text)
    is_whole = number.adjusted() <= _WHOLE_DIGITS and number == number.to_integral_value()
    return int(number) if is_whole else float(number)


_whole_decoder = msgspec.json.Decoder(float_hook=_whole)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes | bytearray) -> T:
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if _WAS_FLOAT not in str(error):
                raise
            whole: T = msgspec.convert(_whole_decoder.decode(body), decoder.type)
            return whole
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Invalid(f"The request body is not what this call takes: {error}.") from error
