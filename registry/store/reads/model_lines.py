"""Models and files as the pages list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, bindparam, cast, func, select, tuple_

from registry.core.records import Holder
from registry.store.engine import Connection
from registry.store.reads.bounded import (
    FILE,
    FileLine,
    FileRow,
    UpTo,
    counted,
    file_line,
    has_bytes,
    why_dark,
)
from registry.store.reads.owner_lines import OwnerLine, owners_by_id
from registry.store.reads.queries import HOLDER_FACTS, HolderRow, holder_record
from registry.store.sql import Statement
from registry.store.tables import entries, owner_refs, owners

FILES_COUNTED = 1000
"""Of a model."""
REFS_COUNTED = 5000
"""Of a model, to say how many owners hold it."""
FILES_WITH_HOLDERS = 100
"""Files of a model whose holders are listed with it."""


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model in a list. `dark` is the first of its files whose bytes nobody has, and `why`."""

    slug: str
    suffix: str
    files: UpTo
    size: int
    holders: UpTo
    base_slug: str | None
    dark: str | None = None
    why: str | None = None


class _Named(NamedTuple):
    slug: str
    suffix: str


class _ModelSize(NamedTuple):
    files: int
    size: int
    base_slug: str | None


class _ModelHolding(NamedTuple):
    holders: int
    refs: int


class _DarkFile(NamedTuple):
    id: int
    filename: str


class _NumberedHolder(NamedTuple):
    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str
    state: str
    lease_expires_at: int | None
    path: str | None
    status: str
    created_at: int
    owner_id: int


_of_model = (entries.c.slug == bindparam("slug")) & (entries.c.suffix == bindparam("suffix"))
_NEXT_MODEL = Statement(
    select(entries.c.slug, entries.c.suffix)
    .where(
        tuple_(entries.c.slug, entries.c.suffix)
        > tuple_(bindparam("after_slug"), bindparam("after_suffix"))
    )
    .order_by(entries.c.slug, entries.c.suffix)
    .limit(1),
    _Named,
)
_some_files = (
    select(entries.c.id, entries.c.filename, entries.c.size, entries.c.base_slug)
    .where(_of_model)
    .order_by(entries.c.filename)
    .limit(bindparam("row_limit"))
    .subquery("some_files")
)
_MODEL_SIZE = Statement(
    select(
        func.count().label("files"),
        cast(func.coalesce(func.sum(_some_files.c.size), 0), BigInteger).label("size"),
        func.max(_some_files.c.base_slug).label("base_slug"),
    ).select_from(_some_files),
    _ModelSize,
)
_some_refs = (
    select(owner_refs.c.owner_id)
    .select_from(entries.join(owner_refs, owner_refs.c.entry_id == entries.c.id))
    .where(_of_model)
    .limit(bindparam("row_limit"))
    .subquery("some_refs")
)
_MODEL_HOLDERS = Statement(
    select(
        func.count(_some_refs.c.owner_id.distinct()).label("holders"), func.count().label("refs")
    ).select_from(_some_refs),
    _ModelHolding,
)
_DARK_FILE = Statement(
    select(_some_files.c.id, _some_files.c.filename)
    .where(~has_bytes(_some_files))
    .order_by(_some_files.c.filename)
    .limit(1),
    _DarkFile,
)
_FILES_OF_MODEL = Statement(
    FILE.where(_of_model, entries.c.filename > bindparam("after"))
    .order_by(entries.c.filename)
    .limit(bindparam("row_limit")),
    FileRow,
)
_HOLDERS_AFTER = Statement(
    select(*HOLDER_FACTS, owner_refs.c.owner_id)
    .select_from(owner_refs.join(owners, owners.c.id == owner_refs.c.owner_id))
    .where(
        owner_refs.c.entry_id == bindparam("entry_id"), owner_refs.c.owner_id > bindparam("after")
    )
    .order_by(owner_refs.c.owner_id)
    .limit(bindparam("row_limit")),
    _NumberedHolder,
)
_HOLDER_IDS = Statement(
    select(owner_refs.c.owner_id)
    .where(
        owner_refs.c.entry_id == bindparam("entry_id"), owner_refs.c.owner_id > bindparam("after")
    )
    .order_by(owner_refs.c.owner_id)
    .limit(bindparam("row_limit"))
)
_FILE_IDS = Statement(select(_some_files.c.id).order_by(_some_files.c.filename))


# Models


def models_page(
    conn: Connection, after: tuple[str, str], prefix: str, limit: int
) -> tuple[list[ModelLine], tuple[str, str] | None]:
    """Models whose slug begins with `prefix`, in the order of (slug, suffix), and where more may
    follow."""
    found: list[ModelLine] = []
    place = max(after, (prefix, ""))
    while len(found) < limit:
        rows = conn.run(_NEXT_MODEL, after_slug=place[0], after_suffix=place[1])
        if not rows or not rows[0].slug.startswith(prefix):
            return found, None
        place = (rows[0].slug, rows[0].suffix)
        line = find_model(conn, *place)
        if line is not None:
            found.append(line)
    return found, place


def find_model(conn: Connection, slug: str, suffix: str) -> ModelLine | None:
    """A model with its counts, or None: nobody holds a file of it."""
    ((files, size, base_slug),) = conn.run(
        _MODEL_SIZE, slug=slug, suffix=suffix, row_limit=FILES_COUNTED + 1
    )
    if not files:
        return None
    ((holders, refs),) = conn.run(
        _MODEL_HOLDERS, slug=slug, suffix=suffix, row_limit=REFS_COUNTED + 1
    )
    dark = conn.run(_DARK_FILE, slug=slug, suffix=suffix, row_limit=FILES_COUNTED)
    return ModelLine(
        slug,
        suffix,
        counted(files, FILES_COUNTED),
        size,
        UpTo(holders, refs <= REFS_COUNTED),
        base_slug,
        dark[0].filename if dark else None,
        why_dark(conn, dark[0].id) if dark else None,
    )


def find_models(conn: Connection, names: Sequence[tuple[str, str]]) -> list[ModelLine]:
    """Those of these models of which somebody holds a file."""
    lines = [find_model(conn, *name) for name in names]
    return [line for line in lines if line is not None]


def files_of_model(
    conn: Connection, slug: str, suffix: str, after: str, limit: int
) -> list[FileLine]:
    """Files of a model by name, behind one of them."""
    rows = conn.run(_FILES_OF_MODEL, slug=slug, suffix=suffix, after=after, row_limit=limit)
    return list(map(file_line, rows))


def holders_of_model(
    conn: Connection, slug: str, suffix: str, after: int, limit: int
) -> list[OwnerLine]:
    """Who holds any of the first 100 files of a model, by the ids of owners, behind one of them."""
    files = conn.run(_FILE_IDS, slug=slug, suffix=suffix, row_limit=FILES_WITH_HOLDERS)
    ids: set[int] = set()
    for (entry_id,) in files:
        rows = conn.run(_HOLDER_IDS, entry_id=entry_id, after=after, row_limit=limit)
        ids.update(owner_id for (owner_id,) in rows)
    return owners_by_id(conn, sorted(ids)[:limit])


# Files


def holders_after(
    conn: Connection, entry_id: int, after: int, limit: int
) -> list[tuple[int, Holder]]:
    """Who holds an entry, in the order in which they came, with the ids to go on behind."""
    rows = conn.run(_HOLDERS_AFTER, entry_id=entry_id, after=after, row_limit=limit)
    return [(row.owner_id, holder_record(HolderRow(*row[:-1]))) for row in rows]
