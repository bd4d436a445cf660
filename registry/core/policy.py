"""The rules of leases, grace and retention as numbers (S9, S10, S14)."""

from __future__ import annotations

from dataclasses import dataclass

OUTAGE_MIN_MS = 500
"""Half of the shortest lease: a worker that renews in time survives a stall of this length."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that every sweeper and the audit must agree on. Times in milliseconds.

    The defaults stand here and nowhere else: those of the service's settings, of the views and of
    an operation that finds nothing in the settings table are these.
    """

    lease_grace_ms: int = 300_000
    upload_grace_ms: int = 900_000
    scrub_period_ms: int = 24 * 3_600_000
    tombstone_retention_ms: int = 24 * 3_600_000
    journal_retention_ms: int = 90 * 24 * 3_600_000
    journal_max_rows: int = 10_000_000
    sweep_interval_ms: int = 10_000
    brake_min_owners: int = 3
    brake_max_ms: int = 900_000
    brake_percent: float = 30

    @property
    def outage_ms(self) -> int:
        """How long nobody has swept when that counts as an outage (S10): a third of the grace.

        Never less than OUTAGE_MIN_MS, or a short grace would make an outage of every pause.
        """
        return max(self.lease_grace_ms // 3, OUTAGE_MIN_MS)


DEFAULTS = Policy()
