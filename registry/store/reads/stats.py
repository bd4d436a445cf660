"""How much the database holds, for metrics: counted, so only now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, select

from registry.core.records import OwnerState
from registry.store.engine import Connection
from registry.store.ops.settings_table import read_variables
from registry.store.reads.audit import CLASSES, NOT_IN_THE_VIEW, audit
from registry.store.sql import Statement
from registry.store.tables import blobs, entries, owner_refs, owners

T = TypeVar("T")

SUSPECT = "suspect"
"""The state of an owner that is active, but whose lease has lapsed."""

OWNER_STATES = (*(state.value for state in OwnerState), SUSPECT)


Sizes = dict[str, float | Mapping[str, float]]
"""Rows and bytes by name. `owners` are by state, the ended ones too while they are remembered."""

_lapsed = and_(owners.c.state == "active", owners.c.lease_expires_at <= bindparam("now"))
_state = case((_lapsed, SUSPECT), else_=owners.c.state)
_OWNERS = Statement(select(_state, func.count()).select_from(owners).group_by(_state))
_ENTRIES = Statement(select(func.count()).select_from(entries))
_REFS = Statement(select(func.count()).select_from(owner_refs))
_BLOBS = Statement(
    select(func.count(), cast(func.coalesce(func.sum(blobs.c.size), 0), BigInteger)).select_from(
        blobs
    )
)


class RowCounts(NamedTuple):
    """How many entries, owner refs and copied contents there are, and the bytes of the last."""

    entries: int
    refs: int
    blobs: int
    blob_bytes: int


def count_rows(conn: Connection) -> RowCounts:
    """Count what is held. Takes time in proportion to what there is."""
    ((blob_count, blob_bytes),) = conn.run(_BLOBS)
    ((entry_count,),) = conn.run(_ENTRIES)
    ((ref_count,),) = conn.run(_REFS)
    return RowCounts(entry_count, ref_count, blob_count, blob_bytes)


def count_owners(conn: Connection) -> dict[str, int]:
    """How many owners are in each state. Takes time in proportion to their number."""
    found: dict[str, int] = dict(conn.run(_OWNERS, now=conn.now))
    return {state: found.get(state, 0) for state in OWNER_STATES}


def count_sizes(conn: Connection) -> Sizes:
    """Count everything. Takes time in proportion to what there is."""
    rows = count_rows(conn)
    findings = audit(conn).counts
    variables = read_variables(conn)
    last_sweep_at = variables.get("last_sweep_at")
    sweep_age_s = nan if last_sweep_at is None else max(0, conn.now - int(last_sweep_at)) / 1000
    return {
        "findings": {
            name: findings.get(name, 0) for name in CLASSES if name not in NOT_IN_THE_VIEW
        },
        "sweep_age_seconds": sweep_age_s,
        "brake_engaged": int("brake_engaged_at" in variables),
        "entries": rows.entries,
        "owner_refs": rows.refs,
        "owners": count_owners(conn),
        "blobs": rows.blobs,
        "blob_bytes": rows.blob_bytes,
    }


class Counted(Generic[T]):
    """What was counted last. Counting takes at most a twentieth of the time.

    Use it in one thread at a time, but for `last`.
    """

    MIN_AGE_S = 5.0
    AGE_PER_COST = 20

    def __init__(self, count: Callable[[], T], clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._good_until = float("-inf")
        self.last: T | None = None
        """What was counted last, however long ago; None: nothing yet."""

    def get(self) -> T:
        """It, counted again if that was long enough ago.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        started = self._clock()
        if self.last is None or started >= self._good_until:
            self.last = self._count()
            ended = self._clock()
            age_s = max(self.MIN_AGE_S, self.AGE_PER_COST * (ended - started))
            self._good_until = ended + age_s
        return self.last
