"""What the store asks of a database engine. `sqlite/` is one; each has a package of its own.

Operations (`ops`) and queries (`reads`) know these protocols and nothing of an engine; only
`opening` names one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Column
from sqlalchemy.engine import Dialect

from registry.errors import RegistryError
from registry.store.sql import R, Row, Statement


class Connection(Protocol):
    """A transaction, or a read: runs statements and hands back all rows.

    `now` is the time of the transaction in milliseconds, taken once (S15).
    """

    now: int

    def run(self, statement: Statement[R], **parameters: Any) -> list[R]:
        """Run a statement; every row it answers."""
        ...

    def ask(self, statement: Statement[R], **parameters: Any) -> Callable[[], list[R]]:
        """As `run`, but what comes back gives the rows. Who asks for several things before taking
        the rows of any waits for the engine once."""
        ...

    def run_text(self, text: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Run SQL text, in which `:name` is a parameter; every row it answers."""
        ...

    def last_ids(self) -> dict[str, int]:
        """The last id ever given in each table. Under the write lock, the next ones are the
        caller's to give. Ids are never reused, so cursors stay right."""
        ...

    def log_bytes(self) -> int:
        """The size of the log of changes that are not folded into the database yet."""
        ...

    def read_part(
        self, column: Column[Any], key: Column[Any], value: str, offset: int, length: int
    ) -> bytes | None:
        """A part of the content of one row, or None: no row has this key."""
        ...


class PointReader(Protocol):
    """One held connection for the point reads of one event loop. A read does not wait.

    Every call raises StorageUnavailable where the database cannot be read, and Busy while it is
    being replaced.
    """

    def change_token(self) -> int:
        """Another number once anything was committed since, by whichever process."""
        ...

    def run(self, text: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Run the text of a compiled statement; every row it answers."""
        ...

    def close(self) -> None:
        """Let go of the connection; the next call opens another. Safe in any thread."""
        ...


class GroupReader(Protocol):
    """Point reads of one event loop that wait for the engine, many in one query."""

    def prepare(self, text: str) -> int:
        """Note a query that takes a list of rows as its only parameter, of which the first item is
        the row's number, and answers rows with that number first. Its own number."""
        ...

    def find(self, query: int, key: Sequence[str]) -> asyncio.Future[list[bytes | None] | None]:
        """The columns that a query answers for a key, as text, or None: there is no row. What was
        committed before the call is seen.

        Raises, when it is awaited:
            StorageUnavailable: the database cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the next read opens another. In the event loop."""
        ...


class DiskUse(NamedTuple):
    """Bytes of the database and of its log, and what may still be written, where that is known."""

    database_bytes: int
    log_bytes: int
    free_bytes: int | None


class Engine(Protocol):
    """A migrated database: `write()` and `read()` give connections, safe in any thread."""

    clock: Callable[[], int]
    busy_timeout_s: float
    dialect: Dialect

    @property
    def name(self) -> str:
        """What people call the database in a message: a path, or an address without password."""
        ...

    @property
    def directory(self) -> str | None:
        """Where the database is on this host, if it is: this user can write there."""
        ...

    def write(self) -> AbstractContextManager[Connection]:
        """A write transaction: committed to disk when the block ends, rolled back if it raises.

        Raises:
            Busy: the write lock was not to be had within `busy_timeout_s`.
            StorageUnavailable: the database cannot be written.
        """
        ...

    writes_content_beside: bool
    """Whether `write_content` goes on beside whoever has the write lock."""

    def write_content(self) -> AbstractContextManager[Connection]:
        """As `write`, for uploads alone.

        Raises:
            Busy: another upload of the same content came first.
            StorageUnavailable: the database cannot be written.
        """
        ...

    def read(self) -> AbstractContextManager[Connection]:
        """A snapshot for a few queries that must agree. Keep it short.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        ...

    reads_at_once: bool
    """Whether keys are read by a `point_reader`, which does not wait, or by a `group_reader`."""

    def point_reader(self) -> PointReader | None:
        """A reader for one event loop, where reads need not wait."""
        ...

    def group_reader(self) -> GroupReader | None:
        """A reader for one event loop, where they must."""
        ...

    def ensure_current(self) -> None:
        """Raises StorageUnavailable unless what is open is the database that is there."""
        ...

    def warnings(self) -> dict[str, str]:
        """What somebody should look at although it works, by name."""
        ...

    def disk_use(self) -> DiskUse:
        """How much disk the database takes."""
        ...

    def find_damage(self) -> Iterator[str]:
        """A sentence for each fault of the stored pages and of the references between rows.

        Raises:
            Busy, StorageUnavailable: it cannot be looked at, for reasons that tell nothing of it.
        """
        ...

    def is_damage(self, error: RegistryError) -> bool:
        """Whether an error tells something of the database, not of a shortage or a lock."""
        ...

    def close(self) -> None:
        """Close every connection that is not in use."""
        ...
