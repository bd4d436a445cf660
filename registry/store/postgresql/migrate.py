"""The schema of a PostgreSQL database: made, brought up to date, compared, or refused.

The same functions as of SQLite. A schema is changed in one transaction and under the lock of all
writers: of several replicas that start at once one makes the change, and the others find it made.
No backup is written: PostgreSQL has its own tools for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry.core import stopping
from registry.errors import DatabaseRefused
from registry.store import tables
from registry.store.compatibility import SchemaState, no_registry
from registry.store.postgresql import views
from registry.store.postgresql.address import place_of
from registry.store.postgresql.compatibility import is_usable, refuse_newer
from registry.store.postgresql.differences import elements_of, find_differences
from registry.store.postgresql.inspect import (
    admin_engine,
    driver_of,
    explained,
    look,
    look_through,
    opened,
)
from registry.store.postgresql.upgrade_lock import refuse_services, wait_until_alone
from registry.store.revisions import Direction, check_revision, run_alembic
from registry.store.schema_elements import Elements
from registry.store.views import version_of

Notify = Callable[[str], None]

LOCK_TIMEOUT_S = 60.0
"""How long a change of the schema waits for writers, and for other changes."""


def _ignore(_sentence: str) -> None:
    """Nobody wants to be told."""


def prepare(url: str, *, notify: Notify = _ignore) -> None:
    """Make sure that this program can work with the database.

    An empty database gets the schema; an older schema is upgraded; a newer one is left as it is if
    it still admits this program. Any number of processes may do this at once. Views that are older
    than this program are made anew. `notify` is told, in a sentence, what is made or changed, and
    what is waited for if it takes longer than a second and a half.

    Raises:
        DatabaseRefused: the database is not one of ours, cannot keep a registry, can only be read,
            or needs a newer program. It was left as it is; the message says what to do.
        Refused: the upgrade would break services that have the database open, and kept it open for
            OTHERS_LEAVE_S.
        Busy: others kept it locked for LOCK_TIMEOUT_S.
        StorageUnavailable: it cannot be reached, or the upgrade failed; the old schema is whole.
    """
    found = look(url, to_write=True)
    if is_usable(place_of(url), found) and not _has_old_views(found):
        return
    wait_until_alone(url, found, tables.HEAD_REVISION, notify)
    try:
        _run_revisions(url, "upgrade", "head", notify)
    except DatabaseRefused:
        # A newer program may have been faster. Then this either works, or its refusal says more.
        if not is_usable(place_of(url), look(url)):
            raise


def _has_old_views(found: SchemaState) -> bool:
    """Whether views are to be made anew. Those of a newer schema are a newer program's."""
    return found.revision == tables.HEAD_REVISION and views.are_outdated(
        found.views, found.views_version
    )


def upgrade(url: str, revision: str = "head", *, notify: Notify = _ignore) -> None:
    """Upgrade the schema to a revision; an empty database gets the schema.

    Does nothing if the schema is there already, or newer and compatible.

    Raises:
        Invalid: there is no such revision.
        RegistryError: as `prepare`.
    """
    if revision in ("head", tables.HEAD_REVISION):
        prepare(url, notify=notify)
        return
    check_revision(revision)
    place, found = place_of(url), look(url)
    refuse_newer(place, found)
    wait_until_alone(url, found, revision, notify)
    _run_revisions(url, "upgrade", revision, notify)


def downgrade(url: str, revision: str, *, notify: Notify = _ignore) -> None:
    """Take the schema back to a revision, or to `base`: nothing.

    Raises:
        Invalid: there is no such revision.
        DatabaseRefused: there is no schema, or it is newer than this program.
        Refused: a service has the database open.
        RegistryError: as `prepare`.
    """
    place = place_of(url)
    if revision != "base":
        check_revision(revision)
    found = look(url)
    if found.revision is None:
        raise DatabaseRefused(f"{place} has no schema; there is nothing to take back.")
    refuse_newer(place, found)
    refuse_services(url)
    _run_revisions(url, "downgrade", revision, notify)


def current(url: str) -> str | None:
    """The schema revision of a database. None: there is nothing in it.

    Raises:
        DatabaseRefused: it is not one of ours.
    """
    return look(url).revision


def check(url: str) -> list[str]:
    """How the database differs from this program's schema, a sentence each. Empty: not at all.

    Raises:
        DatabaseRefused: there is no registry in the database, or it is not one of ours.
    """
    place = place_of(url)
    with opened(url) as connection:
        found = look_through(connection, place)
        if found.revision is None:
            raise DatabaseRefused(f"{no_registry(place)[:-1]}, or make one with `db upgrade`.")
        there = elements_of(connection)
    are_ours = version_of(found.views_version) <= views.VERSION
    fresh, restored = fresh_elements(url)
    # pg_dump writes a view as the server tells it, which the server tells otherwise when it was
    # restored: with a name for each column.
    there |= {each: fresh[each] for each, text in restored.items() if there.get(each) == text}
    differences = find_differences(there, fresh, with_views=are_ours)
    if found.revision != tables.HEAD_REVISION:
        differences.insert(
            0, f"the schema revision is {found.revision!r} instead of {tables.HEAD_REVISION!r}"
        )
    return differences


def fresh_elements(url: str) -> tuple[Elements, Elements]:
    """What the revisions make, as the server of a database tells it; and the views as it tells
    them once they were dumped and restored.

    They run on temporary tables, in a transaction that is rolled back: nobody else sees any of it.

    Raises:
        RegistryError: as `prepare`.
    """
    place, engine = place_of(url), admin_engine(url)
    with translated(place), engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql("SET LOCAL search_path = pg_temp")
        run_alembic("upgrade", "head", connection=connection)
        driver = driver_of(connection)
        found = elements_of(driver)
        for name in views.VIEWS:
            ((text,),) = driver.execute(
                "SELECT pg_get_viewdef(CAST(CAST(%s AS text) AS regclass), true)",
                (f"pg_temp.{name}",),
            ).fetchall()
            driver.execute(f"CREATE OR REPLACE VIEW {name} AS {text}".encode())
        again = elements_of(driver)
        transaction.rollback()
    return found, {each: text for each, text in again.items() if each.kind == "view"}


def _run_revisions(url: str, direction: Direction, revision: str, notify: Notify) -> None:
    """Bring a database to a revision, with its views.

    Raises:
        RegistryError: nothing was changed.
    """
    place, told = place_of(url), list[str]()

    def before_commit(before: str | None, after: str | None) -> None:
        if before is None:
            told.append(f"Made the schema of {place}, revision {after}.")
            return
        notify(f"Changing {place} from schema revision {before} to {after or 'none'}.")
        told.append(f"{place} has schema revision {after or 'none'}.")

    with translated(place):
        run_alembic(
            direction,
            revision,
            url=url,
            lock_timeout_s=LOCK_TIMEOUT_S,
            on_wait=lambda: notify(f"Waiting for others who write to {place}."),
            before_commit=before_commit,
            on_views=lambda: told.append(
                f"Made the views of {place} anew, as this version has them."
            ),
        )
    for sentence in told:
        notify(sentence)


@contextmanager
def translated(place: str) -> Iterator[None]:
    """What Alembic, SQLAlchemy and PostgreSQL raise, as ours. A revision's own mistakes stay."""
    import psycopg
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except CommandError as error:
        raise DatabaseRefused(f"{place}: {error}") from error
    except psycopg.Error as error:
        stopping.check()
        raise explained(place, error) from error
    except DBAPIError as error:
        stopping.check()
        cause = error.orig
        ours = psycopg.OperationalError | psycopg.InternalError | psycopg.errors.InvalidSchemaName
        if isinstance(cause, ours | psycopg.errors.InsufficientPrivilege):
            raise explained(place, cause) from error
        raise
