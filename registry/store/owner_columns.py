"""An owner as its columns spell it, and back."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import ColumnElement, FromClause, and_, bindparam, func, select

from registry.core.identity import Identity
from registry.core.records import Lease, Owner
from registry.store.tables import owner_refs, owners

OWNER_NAMES = ("namespace", "component", "endpoint", "instance_id", "lora_slug")
"""The columns that name an owner, in the table of owners and in the journal."""

OWNER_COLUMNS = tuple(owners.c[name] for name in OWNER_NAMES)

REF_COUNT = (
    select(func.count())
    .where(owner_refs.c.owner_id == owners.c.id)
    .correlate(owners)
    .scalar_subquery()
    .label("refs")
)
"""How many refs an owner holds, as a column of its row."""


class NamesOwner(Protocol):
    """A row with the columns of an owner among others."""

    @property
    def namespace(self) -> str: ...
    @property
    def component(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def lora_slug(self) -> str: ...


def identity(owner: Owner) -> Identity:
    """An owner as its columns spell it."""
    return Identity(
        owner.namespace,
        owner.component,
        owner.endpoint,
        str(owner.instance_id),
        owner.lora_slug or "",
    )


def identity_of(row: NamesOwner) -> Identity:
    """The owner that a row names, as its columns spell it."""
    return Identity(row.namespace, row.component, row.endpoint, row.instance_id, row.lora_slug)


def owner_of(row: NamesOwner) -> Owner:
    """The owner that a row names."""
    instance_id, lora_slug = int(row.instance_id), row.lora_slug or None
    return Owner(row.namespace, row.component, row.endpoint, instance_id, lora_slug)


def lease_of(ttl_ms: int | None, expires_at: int | None) -> Lease | None:
    """The lease in an owner's row, if it has one; a constraint keeps the two columns alike."""
    return None if ttl_ms is None or expires_at is None else Lease(ttl_ms, expires_at)


def parameters_of(owner: Owner) -> dict[str, str]:
    """The parameters of `names_owner`."""
    return identity(owner)._asdict()


def names_owner(table: FromClause) -> ColumnElement[bool]:
    """Rows of a table that name the owner in the parameters."""
    return and_(*(table.c[name] == bindparam(name) for name in OWNER_NAMES))


def same_owner(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Rows of two tables that name the same owner."""
    return and_(*(one.c[name] == other.c[name] for name in OWNER_NAMES))
