"""How much the database holds, for metrics: counted, so only now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, select

from registry.core.records import OwnerState
from registry.store.engine import Connection
from registry.store.ops.settings_table import read_variables
from registry.store.reads.audit import CLASSES, NOT_IN_THE_VIEW, audit
from registry.store.sql import Statement
from registry.store.tables import blobs, entries, owner_refs, owners

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


def count_sizes(conn: Connection) -> Sizes:
    """Count everything. Takes time in proportion to what there is."""
    ((blob_count, blob_bytes),) = conn.run(_BLOBS)
    ((entry_count,),) = conn.run(_ENTRIES)
    ((ref_count,),) = conn.run(_REFS)
    found: dict[str, int] = dict(conn.run(_OWNERS, now=conn.now))
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
        "entries": entry_count,
        "owner_refs": ref_count,
        "owners": {state: found.get(state, 0) for state in OWNER_STATES},
        "blobs": blob_count,
        "blob_bytes": blob_bytes,
    }


class Counted:
    """The sizes as they were counted last. Counting takes at most a twentieth of the time.

    Use it in one thread at a time.
    """

    MIN_AGE_S = 5.0
    AGE_PER_COST = 20

    def __init__(self, count: Callable[[], Sizes], clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._sizes: Sizes | None = None
        self._good_until = float("-inf")

    def get(self) -> Sizes:
        """The sizes, counted again if that was long enough ago.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        started = self._clock()
        if self._sizes is None or started >= self._good_until:
            self._sizes = self._count()
            ended = self._clock()
            age_s = max(self.MIN_AGE_S, self.AGE_PER_COST * (ended - started))
            self._good_until = ended + age_s
        return self._sizes
