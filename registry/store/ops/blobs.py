"""Copied content: uploads come in, and what no owner ref names any more goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, bindparam, cast, delete, exists, func, insert, select, update

from registry.core.policy import DEFAULTS
from registry.store.engine import Connection
from registry.store.journal import Uploaded, write_uploads
from registry.store.sql import Statement, as_rows, json_column
from registry.store.tables import blobs, owner_refs, settings


@dataclass(frozen=True, slots=True)
class Upload:
    """Checked content on its way in. `read` gives the bytes, again if the operation runs again."""

    checksum: str
    size: int
    read: Callable[[], bytes]
    actor: str | None = None
    request_id: str | None = None

    def journalled(self, *, is_new: bool) -> Uploaded:
        """What the journal is told of it."""
        return Uploaded(self.checksum, self.size, is_new, self.actor, self.request_id)


_names = json_column("rows", "checksum", str)
_upload_grace_ms = func.coalesce(
    select(cast(settings.c.value, BigInteger))
    .where(settings.c.name == "upload_grace_ms")
    .scalar_subquery(),
    DEFAULTS.upload_grace_ms,
)
_referenced = exists().where(owner_refs.c.blob_checksum == blobs.c.checksum)

_SIZES = Statement(
    select(blobs.c.checksum, blobs.c.size).join(_names, blobs.c.checksum == _names.c.checksum)
)
_RENEW = Statement(
    update(blobs)
    .values(uploaded_at=bindparam("now"))
    .where(blobs.c.checksum.in_(select(_names.c.checksum)))
    .returning(blobs.c.checksum)
)
_INSERT = Statement(
    insert(blobs).values(
        checksum=bindparam("checksum"),
        size=bindparam("size"),
        uploaded_at=bindparam("now"),
        content=bindparam("content"),
    )
)
_WRONG = Statement(
    select(owner_refs.c.blob_checksum)
    .join(_names, owner_refs.c.blob_checksum == _names.c.checksum)
    .where(owner_refs.c.status == "drifted")
    .distinct()
)
_REPLACE = Statement(
    update(blobs)
    .values(size=bindparam("new_size"), content=bindparam("new_content"))
    .where(blobs.c.checksum == bindparam("name"))
)
_COLLECT = Statement(
    delete(blobs).where(
        blobs.c.checksum.in_(select(_names.c.checksum)),
        blobs.c.uploaded_at <= bindparam("now") - _upload_grace_ms,
        ~_referenced,
    )
)
_PENDING_BYTES = Statement(
    select(cast(func.coalesce(func.sum(blobs.c.size), 0), BigInteger))
    .where(~_referenced)
    .select_from(blobs)
)
_CONTENT = Statement(select(blobs.c.content).where(blobs.c.checksum == bindparam("checksum")))


def store_blobs(conn: Connection, now: int, items: Sequence[Upload]) -> list[bool]:
    """Keep uploaded content, and journal it; True where it was not here before."""
    outcomes = store_content(conn, now, items)
    told = zip(items, outcomes, strict=True)
    write_uploads(conn, now, [item.journalled(is_new=is_new) for item, is_new in told])
    return outcomes


def journal_uploads(conn: Connection, now: int, items: Sequence[Uploaded]) -> list[None]:
    """Journal content that `store_content` has kept beside the writers."""
    write_uploads(conn, now, items)
    return [None] * len(items)


def store_content(conn: Connection, now: int, items: Sequence[Upload]) -> list[bool]:
    """Keep uploaded content; True where it was not here before.

    Content that was here has its upload grace renewed, so that nobody's removal takes it before
    its uploader has registered it. If its bytes were found to be wrong, they are put right.
    """
    names = as_rows(sorted({item.checksum for item in items}))
    here = {row[0] for row in conn.run(_RENEW, now=now, rows=names)}
    wrong = {row[0] for row in conn.run(_WRONG, rows=names)} if here else set()
    outcomes = []
    for item in items:
        outcomes.append(item.checksum not in here)
        if item.checksum not in here:
            conn.run(_INSERT, checksum=item.checksum, size=item.size, now=now, content=item.read())
            here.add(item.checksum)
        elif item.checksum in wrong:
            wrong.discard(item.checksum)
            new = {"new_size": item.size, "new_content": item.read()}
            conn.run(_REPLACE, name=item.checksum, **new)
    return outcomes


def sizes_of(conn: Connection, checksums: Iterable[str]) -> dict[str, int]:
    """The sizes of those of the contents that are here as copies."""
    return find_sizes(conn, checksums)()


def find_sizes(conn: Connection, checksums: Iterable[str]) -> Callable[[], dict[str, int]]:
    """As `sizes_of`, called for when all else was asked."""
    names = as_rows(list(set(checksums)))
    if names == "[]":
        return dict
    rows = conn.ask(_SIZES, rows=names)
    return lambda: dict(rows())


def collect_blobs(conn: Connection, now: int, checksums: Iterable[str]) -> None:
    """Delete those of the contents that no owner ref names and whose upload grace is over."""
    names = sorted(set(checksums))
    if names:
        conn.run(_COLLECT, now=now, rows=as_rows(names))


def pending_bytes(conn: Connection) -> int:
    """Bytes that are uploaded and not registered. Looks at every blob."""
    ((total,),) = conn.run(_PENDING_BYTES)
    return int(total)


def find_content(conn: Connection, checksum: str) -> bytes | None:
    """Copied content, or None if it is not here. Unchecked: compare its checksum before use."""
    for (content,) in conn.run(_CONTENT, checksum=checksum):
        return bytes(content)
    return None


def find_chunk(conn: Connection, checksum: str, offset: int, length: int) -> bytes | None:
    """A part of copied content, or None if it is not here any more."""
    return conn.read_part(blobs.c.content, blobs.c.checksum, checksum, offset, length)
