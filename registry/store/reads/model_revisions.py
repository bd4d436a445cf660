"""Which revisions of a model are there beside one (S17), and in which files they differ."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, select

from registry.core.listings import Entry, OtherRevision
from registry.store.engine import Connection
from registry.store.sql import Statement
from registry.store.tables import entries

REVISIONS_MAX = 20
FILES_COMPARED = 2000
DIFFERING_MAX = 100


class _SlugRow(NamedTuple):
    slug: str


class _FileRow(NamedTuple):
    filename: str
    checksum: str


_SLUGS = Statement(
    select(entries.c.slug)
    .where(
        entries.c.suffix == bindparam("suffix"),
        (entries.c.slug == bindparam("base_slug"))
        | (entries.c.base_slug == bindparam("base_slug")),
        entries.c.slug != bindparam("slug"),
    )
    .distinct()
    .order_by(entries.c.slug)
    .limit(REVISIONS_MAX),
    _SlugRow,
)
_FILES = Statement(
    select(entries.c.filename, entries.c.checksum)
    .where(entries.c.slug == bindparam("slug"), entries.c.suffix == bindparam("suffix"))
    .order_by(entries.c.filename)
    .limit(FILES_COMPARED),
    _FileRow,
)


def find_other_revisions(conn: Connection, entry: Entry) -> tuple[OtherRevision, ...]:
    """The other revisions of the model of an entry, at most 20, by slug."""
    key = entry.key
    base_slug = entry.base_slug or key.slug
    rows = conn.run(_SLUGS, suffix=key.suffix, base_slug=base_slug, slug=key.slug)
    if not rows:
        return ()
    mine = _files_of(conn, key.slug, key.suffix)
    found = []
    for row in rows:
        other = _files_of(conn, row.slug, key.suffix)
        names = sorted(
            name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)
        )
        found.append(OtherRevision(row.slug, tuple(names[:DIFFERING_MAX])))
    return tuple(found)


def _files_of(conn: Connection, slug: str, suffix: str) -> dict[str, str]:
    rows = conn.run(_FILES, slug=slug, suffix=suffix)
    return {row.filename: row.checksum for row in rows}
