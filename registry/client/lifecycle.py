"""The life of a model on a worker, and what to do next. No I/O and no clock.

    REGISTERING --> PUBLISHING --> ATTACHED --> WITHDRAWING --> RELEASING --> (gone)
                                    |    ^
                                    v    |
                                    REFUSED

Files are registered before the card is published, and released after it was withdrawn: a live card
never points at removed files. A step that fails leaves the model where it is: in PUBLISHING or
WITHDRAWING its card may be live or not, so its files stay registered and its lease is renewed.
Attaching or detaching again goes on from there.
"""

from __future__ import annotations

import random
from enum import Enum, StrEnum, auto

from registry.core.records import Renewed
from registry.errors import (
    Busy,
    ContentMissing,
    Internal,
    LeaseGone,
    RegistryError,
    RequestTimeout,
    ServiceUnreachable,
    SettingsError,
    StorageUnavailable,
    Superseded,
    UploadsPending,
)


class ModelState(StrEnum):
    """Where a model is in its life."""

    REGISTERING = "registering"
    PUBLISHING = "publishing"
    ATTACHED = "attached"
    REFUSED = "refused"
    """The registry lost its files and takes them no more. Its card is withdrawn; it is retried."""
    WITHDRAWING = "withdrawing"
    RELEASING = "releasing"

    @property
    def may_be_live(self) -> bool:
        """Whether its card is live or may be, so that its files must be served."""
        return self in (ModelState.PUBLISHING, ModelState.ATTACHED, ModelState.WITHDRAWING)


class Next(Enum):
    """What a worker does about a model after it heard from the registry."""

    NOTHING = auto()
    REGISTER = auto()
    """The registry holds something else than it should: register again."""
    WAIT = auto()
    """Nothing is known: ask again soon, and serve on meanwhile."""
    WITHDRAW = auto()
    """The files cannot be registered: no frontend must be told of the model."""
    STOP = auto()
    """A newer instance has taken this worker's place."""


def after_renewal(outcome: Renewed | RegistryError, files: int) -> Next:
    """What a renewal leads to, for a model with so many files."""
    if isinstance(outcome, Renewed):
        return Next.NOTHING if outcome.refs == files else Next.REGISTER
    if isinstance(outcome, LeaseGone):
        return Next.REGISTER
    return Next.STOP if isinstance(outcome, Superseded) else Next.WAIT


def after_registration(outcome: RegistryError | None) -> Next:
    """What registering again leads to."""
    if outcome is None:
        return Next.NOTHING
    if isinstance(outcome, Superseded):
        return Next.STOP
    return Next.WAIT if is_passing(outcome) else Next.WITHDRAW


def is_passing(error: RegistryError) -> bool:
    """Whether an error says nothing about the files: that the service cannot answer now, that its
    room for uploads is taken, or that something else answered in its place."""
    return type(error) is RegistryError or isinstance(error, _PASSING)


_PASSING = (
    Busy,
    ContentMissing,
    Internal,
    RequestTimeout,
    ServiceUnreachable,
    SettingsError,
    StorageUnavailable,
    UploadsPending,
)


def outcome_is_unknown(error: BaseException) -> bool:
    """Whether what failed may have been done nevertheless."""
    return not isinstance(error, RegistryError) or isinstance(error, ServiceUnreachable | Internal)


def find_pause_s(lease_ttl_s: float, *, all_is_well: bool) -> float:
    """How long to wait before the next renewals: a third of the lease, and less when they failed.

    Shortened by chance, so that workers that started together do not renew together for ever.
    """
    longest_s = lease_ttl_s / 3 if all_is_well else lease_ttl_s / 12
    return longest_s * random.uniform(0.75, 1)
