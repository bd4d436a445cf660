"""A mirror: keeps in a registry what the cards of a discovery store name, for a fleet that knows
nothing of the registry.

Every look at the store and every answer of the registry only changes what is known; what to do is
planned anew from all that is known. So it does not matter where a mirror was killed: the next one
finds what is there, and does what is left.

    following     what the store tells                ledger      all that is known of each owner
    plan          what is to be done, without I/O     jobs        doing it, a few at a time
    origins       files from the workers              renewing    leases, and an emptied registry

The names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.mirror.loop import Mirror as Mirror
    from registry.mirror.settings import MirrorMode as MirrorMode
    from registry.mirror.settings import MirrorSettings as MirrorSettings

_HOMES = {
    "Mirror": "registry.mirror.loop",
    "MirrorMode": "registry.mirror.settings",
    "MirrorSettings": "registry.mirror.settings",
}

__all__ = ["Mirror", "MirrorMode", "MirrorSettings"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
