"""A durable registry of the metadata files that LLM serving workers share.

The public names below are loaded when first used, so that importing `registry` starts no server
framework and no database library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.core.records import ArtifactKey as ArtifactKey
    from registry.core.records import Owner as Owner
    from registry.core.records import Receipt as Receipt
    from registry.core.slugs import slugify as slugify
    from registry.errors import RegistryError as RegistryError
    from registry.service.embedded import MetadataArtifactRegistry as MetadataArtifactRegistry

__version__ = "0.5.0"

_HOMES = {
    "ArtifactKey": "registry.core.records",
    "MetadataArtifactRegistry": "registry.service.embedded",
    "Owner": "registry.core.records",
    "Receipt": "registry.core.records",
    "RegistryError": "registry.errors",
    "slugify": "registry.core.slugs",
}

__all__ = [
    "ArtifactKey",
    "MetadataArtifactRegistry",
    "Owner",
    "Receipt",
    "RegistryError",
    "__version__",
    "slugify",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != __name__:
            raise
        raise ImportError(
            f"{name} is not in metadata-registry-client, which is installed here: install "
            "metadata-registry in its place.",
            name=__name__,
        ) from None
    return getattr(module, name)
