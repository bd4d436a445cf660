"""What the forms of pages let one choose."""

from __future__ import annotations

from collections.abc import Mapping

from registry.core.records import OwnerState
from registry.store.reads.stats import OWNER_STATES, SUSPECT

LIVE = frozenset({OwnerState.ACTIVE.value, OwnerState.DRAINING.value, SUSPECT})
STATES: Mapping[str, frozenset[str]] = {
    "": LIVE,
    "all": frozenset(OWNER_STATES),
    **{name: frozenset({name}) for name in OWNER_STATES},
}
"""The choices of the list: which states each shows. Nothing chosen: who has not ended."""

FORMATS = ("html", "csv", "json")
"""What the answer of a statement can be."""
