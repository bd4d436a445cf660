"""The views as SQLite spells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from registry.store import views

VERSION = views.VERSION
RECORDED_AS = views.RECORDED_AS

SPELLING = views.Spelling(
    now_ms="CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    utc="strftime('%Y-%m-%dT%H:%M:%fZ', {} / 1000.0, 'unixepoch')",
    same="IS",
    items="json_each({}) j",
)

VIEWS = views.spelled(SPELLING)
"""In the order in which they are made."""

version_of = views.version_of


def are_outdated(found: Mapping[str, str], recorded: str | None) -> bool:
    """Whether a program replaces what is there: older views, or views of this version that
    somebody has changed."""
    version = version_of(recorded)
    if version != VERSION:
        return version < VERSION
    return any(found.get(name, "").split() != text.split() for name, text in VIEWS.items())


def dropping() -> Iterator[str]:
    """The statements that take the views away."""
    return views.dropping(VIEWS)


def replacing(wanted: Mapping[str, str], version: int | None) -> Iterator[str]:
    """The statements that put views in the place of those that are there."""
    return views.replacing(VIEWS, wanted, version)
