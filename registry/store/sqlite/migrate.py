"""The schema of a database: made, brought up to date, compared, or refused.

`prepare` is for whoever opens a database: the service, the in-process registry. The other
functions are for administrators. A schema is changed in one transaction, by one process at a
time, and after a backup if there was one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from registry.core import stopping
from registry.errors import DatabaseRefused
from registry.store import tables
from registry.store.compatibility import no_registry
from registry.store.revisions import check_revision
from registry.store.sqlite import views
from registry.store.sqlite.compatibility import is_usable, refuse_newer
from registry.store.sqlite.inspect import Found, claim, locate, look, looking
from registry.store.sqlite.revisions import fresh_schema, run_revisions, waiting_for_lock
from registry.store.sqlite.schema_change import Notify
from registry.store.sqlite.upgrade_lock import wait_until_alone


def _ignore(_sentence: str) -> None:
    """Nobody wants to be told."""


def prepare(url: str, *, notify: Notify = _ignore) -> None:
    """Make sure that this program can work with the database.

    A new or empty file gets the schema. An older schema is upgraded, after a backup next to the
    file. A newer one is left as it is if it still admits this program. Any number of processes
    may do this at once. An upgrade that programs of the older version could not live with waits
    until nobody has the database open. Views that are older than this program are made anew.
    `notify` is told, in a sentence, what is made or changed,
    and what is waited for if it takes longer than a second and a half.

    Raises:
        DatabaseRefused: the file is not one of ours, cannot be used as a database, or needs a
            newer program. It was left as it is; the message says what to do.
        Refused: the upgrade would break a program that has the database open, and kept it open
            for OTHERS_LEAVE_S.
        Busy: other processes kept it locked for LOCK_TIMEOUT_S.
        StorageUnavailable: the backup or the upgrade failed; the old schema is whole.
    """
    path = locate(url)
    with _telling_of_lock(path, notify):
        found = look(path)
    if not is_usable(path, found):
        found = wait_until_alone(path, found, tables.HEAD_REVISION, notify)
    if is_usable(path, found) and not _has_old_views(found):
        return
    try:
        run_revisions(path, "upgrade", "head", notify)
    except DatabaseRefused:
        # A newer program may have been faster. Then this either works, or its refusal says more.
        if not is_usable(path, look(path)):
            raise


def _has_old_views(found: Found) -> bool:
    """Whether views are to be made anew. Those of a newer schema are a newer program's."""
    return found.revision == tables.HEAD_REVISION and views.are_outdated(
        found.views, found.views_version
    )


def upgrade(url: str, revision: str = "head", *, notify: Notify = _ignore) -> None:
    """Upgrade the schema to a revision, after a backup; a new or empty file gets the schema.

    Does nothing if the schema is there already, or newer and compatible.

    Raises:
        Invalid: there is no such revision.
        RegistryError: as `prepare`.
    """
    if revision in ("head", tables.HEAD_REVISION):
        prepare(url, notify=notify)
        return
    path = locate(url)
    check_revision(revision)
    with _telling_of_lock(path, notify):
        found = look(path)
    refuse_newer(path, found)
    wait_until_alone(path, found, revision, notify)
    run_revisions(path, "upgrade", revision, notify)


def downgrade(url: str, revision: str, *, notify: Notify = _ignore) -> None:
    """Take the schema back to a revision, or to `base`: nothing. A backup is written first.

    Raises:
        Invalid: there is no such revision.
        DatabaseRefused: there is no schema, or it is newer than this program.
        Refused: another process has the database open.
        RegistryError: as `prepare`.
    """
    path = locate(url)
    if revision != "base":
        check_revision(revision)
    found = look(path)
    if found.revision is None:
        raise DatabaseRefused(f"{path} has no schema; there is nothing to take back.")
    refuse_newer(path, found)
    with claim(path):
        pass  # A service would not survive it; one that starts meanwhile is looked for at the end.
    run_revisions(path, "downgrade", revision, notify)


def current(url: str) -> str | None:
    """The schema revision of a database. None: there is no such file, or nothing in it.

    Raises:
        DatabaseRefused: the file is not one of ours.
    """
    return look(locate(url), to_write=False).revision


def check(url: str) -> list[str]:
    """How the database differs from this program's schema, a sentence each. Empty: not at all.

    Raises:
        DatabaseRefused: there is no such database, or it is not one of ours.
    """
    path = locate(url)
    found = look(path, to_write=False)
    if found.revision is None:
        raise DatabaseRefused(f"{no_registry(path)[:-1]}, or make one with `db upgrade`.")
    from registry.store.sqlite.differences import find_differences

    with fresh_schema() as wanted, looking(path) as connection:
        differences = find_differences(
            connection, wanted, with_views=views.version_of(found.views_version) <= views.VERSION
        )
    if found.revision != tables.HEAD_REVISION:
        differences.insert(
            0, f"the schema revision is {found.revision!r} instead of {tables.HEAD_REVISION!r}"
        )
    return differences


def _telling_of_lock(path: Path, notify: Notify) -> AbstractContextManager[None]:
    return stopping.telling(notify, waiting_for_lock(path))
