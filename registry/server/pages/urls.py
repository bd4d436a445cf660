"""The addresses of pages, with every part of them quoted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from registry.core.records import Owner

JOURNAL = "/ui/events"
SQL = "/ui/sql"
WORDS = "/ui/words"
OWNER = "/ui/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}"
"""The route of an owner's page."""


def at(path: str, **query: object) -> str:
    """A path with those parameters that are not None or empty."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def model_url(slug: str, suffix: str, **query: object) -> str:
    """A model's page."""
    return at(f"/ui/models/{_path(slug, suffix)}", **query)


def file_url(slug: str, suffix: str, filename: str, **query: object) -> str:
    """A file's page, whether anybody holds it or not."""
    return at(f"/ui/artifacts/{_path(slug, suffix, filename)}", **query)


def owner_url(owner: Owner | str, **query: object) -> str:
    """An owner's page."""
    return at(f"/ui/owners/{_path(*str(owner).split('/'))}", **query)


def entry_url(entry: str) -> str | None:
    """The page of an entry that is named as `slug/suffix/filename`; None: it is not named so."""
    parts = entry.split("/")
    return file_url(*parts) if len(parts) == 3 else None


def finding_owner_url(owner: str) -> str | None:
    """The page of an owner that a finding names; None: it names none that has one."""
    return owner_url(owner) if owner.count("/") == 4 else None


def _path(*segments: str) -> str:
    return "/".join(quote(segment, safe="") for segment in segments)


HELPERS: tuple[Callable[..., Any], ...] = (
    *(at, model_url, file_url, owner_url, entry_url, finding_owner_url),
)
"""What templates may call."""
