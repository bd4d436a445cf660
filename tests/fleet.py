"""What tests of leases and leaks share: a database whose time is passed in, and its audit."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from registry import cli
from registry.config import Settings
from registry.core.findings import Severity
from registry.core.policy import Policy
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Drained,
    Owner,
    Receipt,
    Registered,
    Registration,
    Removal,
    Renewed,
    Unregistration,
)
from registry.errors import RegistryError
from registry.service.registry import Registry
from registry.service.sweeper import policy_from
from registry.store.engine import Connection, Engine
from registry.store.opening import open_database
from registry.store.ops import blobs, leases, register, unregister
from registry.store.ops import prune as prune_module
from registry.store.ops.expire import Sweep, Swept
from registry.store.ops.expire import sweep as sweep_operation
from registry.store.ops.settings_table import Adoption, adopt
from registry.store.owner_columns import identity, lease_of
from registry.store.reads.audit import CLASSES, audit
from registry.store.reads.verify import verify
from registry.store.sqlite.engine import Database
from tests.places import Place, SQLitePlace, as_place
from tests.support import checksum

T = TypeVar("T")
Item = TypeVar("Item")
Out = TypeVar("Out")

START = 1_700_000_000_000
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
LEASE, GRACE, INTERVAL = MINUTE, 5 * MINUTE, 10 * SECOND
"""The lease that owners get here, and the grace and the pause between sweeps as they come."""

NOTES = {name for name, severity in CLASSES.items() if severity is Severity.NOTE}
OF_TIME = {"lapsed_lease", "stuck_drain", "orphan_blob", "unresolved_conflict"}
"""Classes that come and go with the time, in a healthy registry as well."""


def worker(number: int, lora: str | None = None, endpoint: str = "generate") -> Owner:
    return Owner("dynamo", "backend", endpoint, number, lora)


def key(filename: str = "config.json", slug: str = "tiny", suffix: str = "_base") -> ArtifactKey:
    return ArtifactKey(slug, suffix, filename)


@dataclass
class Clock:
    """The time of a test, in milliseconds; it moves only when it is told to."""

    now: int = START

    def __call__(self) -> int:
        return self.now


class Hasty(Database):
    """Does not wait for the disk: nothing here is about power that fails."""

    def connect(self, mode: str, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = super().connect(mode, *arguments, **options)
        connection.execute("PRAGMA synchronous = OFF").fetchall()
        return connection


@dataclass
class World:
    """A registry's database and its operations, at the time of a clock."""

    where: Path | Place
    clock: Clock = field(default_factory=Clock)
    renewing: leases.RenewOperation = field(default_factory=leases.RenewOperation)

    def __post_init__(self) -> None:
        self.place = as_place(self.where)
        self.url = self.place.url
        self.place.migrate()
        self.database: Engine
        self.open()

    def open(self) -> None:
        if isinstance(self.place, SQLitePlace):
            self.database = Hasty(self.url, clock=self.clock)
        else:
            self.database = open_database(self.url, clock=self.clock)

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        assert isinstance(self.place, SQLitePlace)
        return self.place.path

    def close(self) -> None:
        self.database.close()

    # Operations

    def do(
        self, operation: Callable[[Connection, int, Sequence[Item]], Sequence[Out]], item: Item
    ) -> Out:
        with self.database.write() as conn:
            return operation(conn, conn.now, [item])[0]

    def hold(
        self,
        owner: Owner,
        contents: Mapping[ArtifactKey, bytes] | None = None,
        *,
        lease: int | None = LEASE,
        worker_name: str | None = None,
        path: str | None = None,
    ) -> Registered | RegistryError:
        """Register copies, or with `path` the same in place; without contents one file of one's
        own."""
        if contents is None:
            contents = {key(slug=f"own-{owner.instance_id}-{owner.suffix.strip('_')}"): b"{}"}
        artifacts = tuple(
            Artifact(
                each, checksum(content), len(content), None if path is None else f"{path}/{each}"
            )
            for each, content in contents.items()
        )
        uploads = [] if path is not None else [_upload_of(each) for each in contents.values()]
        with self.database.write() as conn:
            blobs.store_blobs(conn, conn.now, uploads)
            item = Registration(owner, artifacts, lease, worker_name)
            return register.register(conn, conn.now, [item])[0]

    def attach(
        self, owner: Owner, contents: Mapping[ArtifactKey, bytes] | None = None, **options: Any
    ) -> Registered:
        """`hold`, which must succeed."""
        outcome = self.hold(owner, contents, **options)
        assert isinstance(outcome, Registered), outcome
        return outcome

    def attach_many(
        self,
        owners: Iterable[Owner],
        *,
        lease: int | None = LEASE,
        files: int = 1,
        shared: int = 0,
        copied: bool = False,
    ) -> list[Owner]:
        """Register many owners at once, each with files in place (or copies) of its own, and with
        `shared` ones that all of them hold; the owners."""
        fleet = list(owners)
        if copied:
            self.upload(b"{}")
        with self.database.write() as conn:
            for start in range(0, len(fleet), 500):
                items = [
                    Registration(owner, _files_of(owner, files, shared, copied), lease)
                    for owner in fleet[start : start + 500]
                ]
                outcomes = register.register(conn, conn.now, items)
                assert all(isinstance(each, Registered) for each in outcomes)
        return fleet

    def upload(self, content: bytes) -> bool:
        return self.do(blobs.store_blobs, _upload_of(content))

    def renew(self, *owners: Owner) -> list[Renewed | RegistryError]:
        with self.database.write() as conn:
            outcomes = self.renewing.renew(conn, conn.now, list(map(identity, owners)))
        return [
            each
            if isinstance(each, RegistryError)
            else Renewed(
                owner,
                lease_of(each.lease_ttl_ms, each.lease_expires_at),
                each.refs,
                each.unserveable,
            )
            for owner, each in zip(owners, outcomes, strict=True)
        ]

    def drain(self, owner: Owner, deadline: int = 5 * MINUTE) -> Drained | RegistryError:
        return self.do(leases.drain, leases.Drain(owner, deadline))

    def unregister(self, owner: Owner) -> Receipt:
        return self.do(unregister.unregister, Unregistration(owner))

    def remove(self, slug: str, suffix: str = "_base") -> Receipt:
        return self.do(unregister.remove, Removal(slug, suffix))

    def adopt(self, **policy: Any) -> Policy:
        """Set what every sweeper goes by; what is not named has its default."""
        wanted = Policy(**policy)
        self.do(adopt, Adoption(wanted, "0.0.0"))
        return wanted

    # Time

    def sweep(self, **options: Any) -> Swept:
        """One sweep by hand, in as many transactions as it takes; what it did altogether."""
        ended: list[Any] = []
        released = 0
        item = Sweep(force=True, **options)
        while True:
            done = self.do(sweep_operation, item)
            ended += done.ended
            released += done.released
            if not done.more:
                return Swept(False, tuple(ended), released, False, done.paused, done.waiting)
            item = Sweep(repeated=True)

    def sweeping_for(
        self, duration: int, *, renewing: Iterable[Owner] = (), every: int = INTERVAL
    ) -> list[Swept]:
        """Let the time pass as under a running service: a sweep in every interval, and renewals
        of the owners that live before it."""
        alive = list(renewing)
        found = []
        until = self.clock.now + duration
        while self.clock.now < until:
            self.clock.now = min(self.clock.now + every, until)
            for renewed in self.renew(*alive) if alive else ():
                assert isinstance(renewed, Renewed), renewed
            found.append(self.sweep())
        return found

    def prune(self) -> int:
        """Prune all that is old, as the service does behind a sweep; how many rounds it took."""
        rounds = 1
        while True:
            with self.database.read() as conn:
                abandoned = prune_module.find_abandoned(conn, conn.now)
            if not self.do(prune_module.prune, prune_module.Prune(abandoned)).more:
                return rounds
            rounds += 1

    # Looking

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.place.ask(query, *values)

    def states(self) -> dict[Owner, str]:
        """Every owner with its state, tombstones included."""
        rows = self.sql(
            "SELECT namespace, component, endpoint, instance_id, lora_slug, state FROM owners"
        )
        return {
            Owner(namespace, component, endpoint, int(number), lora or None): state
            for namespace, component, endpoint, number, lora, state in rows
        }

    def live(self) -> set[Owner]:
        return {each for each, state in self.states().items() if state in ("active", "draining")}

    def kinds(self, *kinds: str) -> list[tuple[Any, ...]]:
        """Kind and reason of the events of these kinds, in order."""
        marks = ", ".join("?" * len(kinds))
        return self.sql(
            f"SELECT kind, reason FROM events WHERE kind IN ({marks}) ORDER BY id", *kinds
        )

    def variable(self, name: str) -> str | None:
        rows = self.sql("SELECT value FROM settings WHERE name = ?", name)
        return rows[0][0] if rows else None

    def findings(self) -> dict[str, int]:
        """What the audit counts by class, at the time of the clock."""
        self.place.set_view_clock(self.clock.now)
        with self.database.read() as conn:
            return audit(conn).counts

    def assert_healthy(self, *, but: Iterable[str] = ()) -> None:
        """Nothing contradicts itself, and no finding is above a note, but for classes named."""
        self.place.assert_sound()
        found = {name: count for name, count in self.findings().items() if name not in NOTES}
        assert found.keys() <= set(but), found
        assert [each for each in verify(self.database) if each.kind not in but] == []


def _upload_of(content: bytes) -> blobs.Upload:
    return blobs.Upload(checksum(content), len(content), lambda: content)


def _files_of(owner: Owner, files: int, shared: int, copied: bool) -> tuple[Artifact, ...]:
    slugs = [f"own-{owner.instance_id}"] * files + ["shared"] * shared
    names = [*range(files), *range(shared)]
    content = checksum(b"{}")
    return tuple(
        Artifact(
            key(f"{name}.json", slug),
            content,
            2,
            None if copied else f"/models/{slug}/{name}.json",
        )
        for slug, name in zip(slugs, names, strict=True)
    )


def worst_of(where: Path | Place, at: int | None = None) -> dict[str, int]:
    """What is above a note in a database, by class."""
    place = as_place(where)
    if at is not None:
        place.set_view_clock(at)
    rows = place.ask("SELECT class, COUNT(*) FROM leaks GROUP BY class")
    return {name: count for name, count in rows if name not in NOTES}


def run_cli(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, what it printed and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["metadata-registry", *map(str, arguments)]
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as done:
            code = done.code
    return code or 0, out.getvalue(), err.getvalue()


class Service:
    """A registry service without its HTTP side, at the time of a clock: `async with`."""

    def __init__(self, where: Path | Place, clock: Clock, **settings: Any) -> None:
        # Files in place are made up, and are not to be missing because nobody has their root.
        settings = {"artifact_roots": ("/",), **settings}
        self.settings = Settings(database_url=as_place(where).url, **settings)
        database = open_database(self.settings.database_url, clock=clock)
        self.registry = Registry(self.settings, database)

    @property
    def policy(self) -> Policy:
        return policy_from(self.settings)

    async def __aenter__(self) -> Registry:
        await self.registry.start()
        return self.registry

    async def __aexit__(self, *_: object) -> None:
        await self.registry.close()


def count_statements(connection: sqlite3.Connection) -> list[str]:
    """From here on, every statement that the connection runs is in the list."""
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    return seen
