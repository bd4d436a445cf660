"""On which terms a worker registers files."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.model_revisions import OnConflict


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long what is registered stays without a renewal, and the name of the worker.

    Without `ttl_s` there is no lease. A worker of the same name takes the place of an older
    instance of it. `on_conflict` says what becomes of files that others hold with other content.
    """

    ttl_s: float | None
    worker_name: str | None = None
    on_conflict: OnConflict = OnConflict.REFUSE
