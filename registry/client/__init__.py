"""Speaking to a registry service: serve models as a worker, look, fetch verified files.

Nothing here needs the service's own libraries; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.client.async_client import AsyncRegistryClient as AsyncRegistryClient
    from registry.client.client import RegistryClient as RegistryClient
    from registry.client.resolver import Resolver as Resolver
    from registry.client.worker import Worker as Worker
    from registry.discovery.cards import LoraInfo as LoraInfo

_HOMES = {
    "AsyncRegistryClient": "registry.client.async_client",
    "LoraInfo": "registry.discovery.cards",
    "RegistryClient": "registry.client.client",
    "Resolver": "registry.client.resolver",
    "Worker": "registry.client.worker",
}

__all__ = ["AsyncRegistryClient", "LoraInfo", "RegistryClient", "Resolver", "Worker"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
