"""The part of an audit that looks at files: whether what owners hold in place is still there.

It changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from registry.content.roots import ArtifactRoots
from registry.core import hashing
from registry.core.findings import Finding
from registry.core.times import format_time
from registry.errors import Busy, FileUnreadable, TooLarge
from registry.store.engine import Engine
from registry.store.owner_columns import owner_of
from registry.store.reads.audit import CLASSES
from registry.store.reads.in_place import InPlaceRef, is_still_held, list_in_place

T = TypeVar("T")


class Run(Protocol):
    """Makes a call that looks at the file at a path; raises Busy if it takes too long."""

    def __call__(self, path: str, work: Callable[..., T], /, *arguments: Any) -> T: ...


def _run(path: str, work: Callable[..., T], /, *arguments: Any) -> T:
    return work(*arguments)


def check_files(
    database: Engine,
    roots: ArtifactRoots | None,
    run: Run = _run,
    follow: Callable[[str], str] = os.path.realpath,
) -> Iterator[Finding]:
    """Look at every file that is held in place: is it there, unchanged, and below a root?

    Without roots every path is taken as allowed. `follow` tells where a path leads. Reads each
    file whose identity is not the one that was registered. No transaction is open meanwhile: what
    was registered anew or released since is not reported.

    Raises:
        Busy: at the end, when files could not be looked at, for reasons that are not theirs.
    """
    owner_id = entry_id = 0
    unchecked: list[Busy] = []
    while refs := _next_refs(database, owner_id, entry_id):
        for ref in refs:
            owner_id, entry_id = ref.owner_id, ref.entry_id
            try:
                finding = _look(ref, roots, run, follow)
            except Busy as error:
                unchecked.append(error)
                continue
            if finding is not None and _is_still_held(database, ref):
                yield finding
    if unchecked:
        raise Busy(f"{len(unchecked)} files were not checked. The first: {unchecked[0].detail}")


def _next_refs(database: Engine, owner_id: int, entry_id: int) -> list[InPlaceRef]:
    with database.read() as conn:
        return list_in_place(conn, owner_id, entry_id)


def _is_still_held(database: Engine, ref: InPlaceRef) -> bool:
    with database.read() as conn:
        return is_still_held(conn, ref)


def _look(
    ref: InPlaceRef, roots: ArtifactRoots | None, run: Run, follow: Callable[[str], str]
) -> Finding | None:
    path = follow(ref.path)
    wrong = run(path, _wrong_with, ref, path, roots)
    if wrong is None:
        return None
    kind, detail = wrong
    at = None if kind == "path_outside_roots" else ref.verified_at
    return _finding(ref, kind, detail, at)


def _wrong_with(ref: InPlaceRef, path: str, roots: ArtifactRoots | None) -> tuple[str, str] | None:
    if roots is not None and not roots.allow(path):
        return "path_outside_roots", f"{path} is below no artifact root"
    now = hashing.find_identity(path)
    if now is None:
        return "missing_file", f"{path} is gone or no regular file"
    if now == ref.file_identity:
        return None
    try:
        found = hashing.hash_file(path, max_bytes=ref.size, expected=ref.checksum)
        if found.checksum == ref.checksum:
            return None
    except FileUnreadable as error:
        return "missing_file", error.detail
    except TooLarge:
        pass
    return "drifted_ref", f"{path} holds other bytes than were registered"


def _finding(ref: InPlaceRef, kind: str, detail: str, at: int | None = None) -> Finding:
    since = None if at is None else format_time(at)
    entry = f"{ref.slug}/{ref.suffix}/{ref.filename}"
    return Finding(kind, CLASSES[kind], str(owner_of(ref)), entry, since, detail)
