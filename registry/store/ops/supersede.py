"""Incarnations: a worker that comes back under its name takes the place of its older self (S11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, exists, literal, literal_column, select, update

from registry.core.records import Owner, OwnerState, Registration
from registry.store.engine import Connection
from registry.store.ops.release import Freed, Release, let_go
from registry.store.sql import Statement, as_rows, json_column, json_rows, one_of
from registry.store.tables import owners

Worker = tuple[str, str, str, str]
"""namespace, component, endpoint, worker name"""

Instance = tuple[str, str, str, str]
"""namespace, component, endpoint, instance id"""


UNREPLACED = ("active", "draining", "detached", "expired")
"""The states of owners that were not superseded."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """An owner that registered under a worker's name, of an instance that was not superseded."""

    owner_id: int
    instance_id: str


_workers = json_rows("rows", namespace=str, component=str, endpoint=str, worker_name=str)
_instances = json_rows("rows", namespace=str, component=str, endpoint=str, instance_id=str)
_replaced = owners.alias("replaced")


class _NamedOwner(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    worker_name: str
    id: int
    instance_id: str


class _SupersededInstance(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str


class _LiveOwner(NamedTuple):
    id: int


_FIND_INCARNATIONS = Statement(
    select(
        owners.c.namespace,
        owners.c.component,
        owners.c.endpoint,
        owners.c.worker_name,
        owners.c.id,
        owners.c.instance_id,
    )
    .join(
        _workers,
        (owners.c.namespace == _workers.c.namespace)
        & (owners.c.component == _workers.c.component)
        & (owners.c.endpoint == _workers.c.endpoint)
        & (owners.c.worker_name == _workers.c.worker_name)
        # A worker that restarts often leaves many tombstones; the index passes over them.
        & one_of(owners.c.state, *UNREPLACED),
    )
    .where(
        ~exists(literal(1))
        .where(
            _replaced.c.namespace == owners.c.namespace,
            _replaced.c.component == owners.c.component,
            _replaced.c.endpoint == owners.c.endpoint,
            _replaced.c.instance_id == owners.c.instance_id,
            _replaced.c.state == literal_column("'superseded'"),
        )
        .correlate(owners)
    )
    .order_by(owners.c.id),
    _NamedOwner,
)
_FIND_SUPERSEDED = Statement(
    select(owners.c.namespace, owners.c.component, owners.c.endpoint, owners.c.instance_id).join(
        _instances,
        (owners.c.namespace == _instances.c.namespace)
        & (owners.c.component == _instances.c.component)
        & (owners.c.endpoint == _instances.c.endpoint)
        & (owners.c.instance_id == _instances.c.instance_id)
        # Spelled out, so that SQLite can use the partial index of superseded owners.
        & (owners.c.state == literal_column("'superseded'")),
    ),
    _SupersededInstance,
)
_FIND_LIVE = Statement(
    select(owners.c.id)
    .join(
        _instances,
        (owners.c.namespace == _instances.c.namespace)
        & (owners.c.component == _instances.c.component)
        & (owners.c.endpoint == _instances.c.endpoint)
        & (owners.c.instance_id == _instances.c.instance_id),
    )
    .where(owners.c.state.in_([literal_column("'active'"), literal_column("'draining'")]))
    .order_by(owners.c.id),
    _LiveOwner,
)
_ids = json_column("rows", "id", int)
_NAME = Statement(
    update(owners)
    .values(worker_name=bindparam("new_worker_name"))
    .where(owners.c.id.in_(select(_ids.c.id)))
)


def worker_of(item: Registration) -> Worker | None:
    """The worker that a registration comes from, if it gave its name."""
    owner = item.owner
    if item.worker_name is None:
        return None
    return (owner.namespace, owner.component, owner.endpoint, item.worker_name)


def instance_of(owner: Owner) -> Instance:
    """The process that an owner belongs to, at one endpoint: its base model and its LoRAs."""
    return (owner.namespace, owner.component, owner.endpoint, str(owner.instance_id))


def find_incarnations(
    conn: Connection, workers: Iterable[Worker]
) -> Callable[[], dict[Worker, list[Incarnation]]]:
    """The owners that registered under each of the names, tombstones included, but for those of
    instances that were superseded."""
    found: dict[Worker, list[Incarnation]] = {worker: [] for worker in workers}
    if not found:
        return dict
    rows = conn.ask(_FIND_INCARNATIONS, rows=as_rows(found))

    def incarnations() -> dict[Worker, list[Incarnation]]:
        for row in rows():
            worker = (row.namespace, row.component, row.endpoint, row.worker_name)
            found[worker].append(Incarnation(row.id, row.instance_id))
        return found

    return incarnations


def find_superseded(conn: Connection, instances: Iterable[Instance]) -> Callable[[], set[Instance]]:
    """Those of the instances that a newer one has replaced."""
    wanted = as_rows([list(instance) for instance in set(instances)])
    rows = conn.ask(_FIND_SUPERSEDED, rows=wanted)
    return lambda: {(row.namespace, row.component, row.endpoint, row.instance_id) for row in rows()}


def older_instances(item: Registration, known: Iterable[Incarnation]) -> dict[str, int]:
    """The instances that a registration supersedes, by their ids, with one owner of each."""
    found = {each.instance_id: each.owner_id for each in known}
    found.pop(str(item.owner.instance_id), None)
    return found


def older_owners(conn: Connection, item: Registration, known: Iterable[Incarnation]) -> list[int]:
    """The owners that a registration supersedes: all that the older instances still hold under,
    or a tombstone of each that holds nothing any more, so that it cannot come back."""
    owner = item.owner
    ids: list[int] = []
    for instance_id, tombstone in older_instances(item, known).items():
        instance = (owner.namespace, owner.component, owner.endpoint, instance_id)
        live = [row.id for row in conn.run(_FIND_LIVE, rows=as_rows([instance]))]
        ids += live or [tombstone]
    return sorted(ids)


def supersede(conn: Connection, now: int, item: Registration, owner_ids: list[int]) -> Freed:
    """End the older owners. The entries and content that they leave are still there, so that
    what the newer instance registers can take them over."""
    reason = f"superseded by {item.owner}"
    releases = [
        Release(
            owner_id,
            ended=OwnerState.SUPERSEDED,
            reason=reason,
            actor=item.actor,
            request_id=item.request_id,
        )
        for owner_id in owner_ids
    ]
    freed = let_go(conn, now, releases)
    conn.run(
        _NAME,
        new_worker_name=item.worker_name,
        rows=as_rows(owner_ids),
    )
    return freed
