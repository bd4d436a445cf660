"""`metadata-registry sweep`: lapsed owners are ended now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.db import DEFAULT_URL, DatabaseUrl
from registry.cli.options import AsJson, CaFile, ServiceUrl, Token
from registry.cli.reports import print_swept
from registry.cli.subjects import asked, opened
from registry.errors import Usage
from registry.wire.listings import RemovedResponse
from registry.wire.reports import SweptResponse

if TYPE_CHECKING:
    from registry.core.sweeping import Ending, Swept
    from registry.store.engine import Connection, Engine

BREATHER_S = 0.01


def sweep(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say who would be ended now.")
    ] = False,
    release_brake: Annotated[
        bool,
        typer.Option("--release-brake", help="Let go of the brake that pauses mass expiry."),
    ] = False,
    url: ServiceUrl = None,
    token: Token = None,
    ca_file: CaFile = None,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """End lapsed owners now, and delete what is past its time.

    Goes by the settings of the service that last ran on the database. Without a service, run it at
    least every third of the lease grace: a longer gap counts as an outage, after which nobody is
    ended before one full lease and the grace have passed. With --url and --dry-run a service is
    asked, which sweeps by itself.
    """
    if url is not None:
        if not dry_run:
            raise Usage(
                "A service sweeps by itself. Say --dry-run to see whom it would end now, or "
                "--database-url to sweep a database that is opened here."
            )
        with asked(context, url, token, ca_file) as client:
            swept = client.rehearse_sweep(release_brake=release_brake)
        print_swept(swept, as_json)
        return
    with opened(database_url, to_write=not dry_run) as database:
        if dry_run:
            from registry.store.ops.expire import rehearse

            with database.read() as conn:
                swept = SweptResponse.of(rehearse(conn, release_brake), None)
        else:
            swept = SweptResponse.of(*_sweep_all(database, release_brake))
    print_swept(swept, as_json)


def _sweep_all(database: Engine, release_brake: bool) -> tuple[Swept, RemovedResponse]:
    """End everybody who is due and prune all that is old, in batches with a breather between
    them, in which others get the write lock. What was done, and what went besides."""
    from registry.store.ops.expire import Sweep, Swept
    from registry.store.ops.expire import sweep as sweep_once
    from registry.store.ops.prune import Prune, find_abandoned, prune

    released = 0
    ended: list[Ending] = []
    removed = RemovedResponse()
    item = Sweep(force=True, release_brake=release_brake)
    while True:
        with database.write() as conn, _counting(conn, removed):
            done = sweep_once(conn, conn.now, [item])[0]
        ended += done.ended
        released += done.released
        if not done.more:
            break
        item = Sweep(repeated=True)
        time.sleep(BREATHER_S)
    with database.read() as conn:
        step = Prune(find_abandoned(conn, conn.now))
    while True:
        # Without uploads there is nothing to count, which looks at everything.
        with (
            database.write() as conn,
            _counting(conn, removed) if step.checksums else nullcontext(),
        ):
            pruned = prune(conn, conn.now, [step])[0]
        removed.tombstones += pruned.tombstones
        removed.events += pruned.events
        if not pruned.more:
            swept = Swept(False, tuple(ended), released, False, done.paused, done.waiting)
            return swept, removed
        time.sleep(BREATHER_S)
        with database.read() as conn:
            step = pruned.next_step(find_abandoned(conn, conn.now) if step.checksums else ())


@contextmanager
def _counting(conn: Connection, removed: RemovedResponse) -> Iterator[None]:
    """Add the entries and copies that go while the block runs, in which nobody else writes."""
    query = "SELECT (SELECT COUNT(*) FROM entries), (SELECT COUNT(*) FROM blobs)"
    ((entries, copies),) = conn.run_text(query)
    yield
    ((entries_left, copies_left),) = conn.run_text(query)
    removed.entries += entries - entries_left
    removed.copies += copies - copies_left
