"""Speaking to a registry service: attach a model directory, look, fetch verified files.

Nothing here needs the service's own libraries; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.client.client import RegistryClient as RegistryClient
    from registry.client.resolver import Resolver as Resolver

_HOMES = {
    "RegistryClient": "registry.client.client",
    "Resolver": "registry.client.resolver",
}

__all__ = ["RegistryClient", "Resolver"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
