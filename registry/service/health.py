"""Whether the service is well: looks of its own, in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from registry.config import Settings
from registry.core.times import format_time
from registry.errors import RegistryError
from registry.service.lanes import start_threads
from registry.store.engine import Connection, Engine
from registry.store.group_commit import Writer
from registry.store.opening import find_problem
from registry.store.ops.settings_table import policy_of, read_variables, write_variables

T = TypeVar("T")

THREADS = 2
WRITE_PROBE_MS = 1000
PATIENCE_S = 5.0
SWEEP_TOLERANCE_MS = 10_000
OK = "ok"


class Health:
    """The checks behind `/health`. Each says `ok`, or what is wrong and what to do."""

    def __init__(self, settings: Settings, database: Engine, writer: Writer) -> None:
        self._settings = settings
        self._database = database
        self._writer = writer
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry-probes")
        self._started_at = database.clock()

    def start(self) -> None:
        """Start the threads.

        Raises:
            StorageUnavailable: there are none to be had.
        """
        start_threads(self._threads, THREADS)

    def close(self) -> None:
        """Wait for what was begun."""
        self._threads.shutdown(wait=True)

    async def check(self) -> dict[str, str]:
        """All checks but the sweeper's. It answers in time, whatever hangs: the database's
        patience and PATIENCE_S are the bound."""
        checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": self._check_database,
            "schema": self._check_schema,
            "writer": self._check_writer,
            "disk": self._check_disk,
        }
        within_s = self._settings.busy_timeout_s + PATIENCE_S
        found = await asyncio.gather(*(_within(within_s, check()) for check in checks.values()))
        return dict(zip(checks, found, strict=True))

    async def check_sweeper(self) -> tuple[str, dict[str, str]]:
        """Whether somebody sweeps, and what to look at.

        Raises:
            StorageUnavailable: the database cannot be read.
        """
        variables, now = await self._run(self._read_variables)
        overdue_ms = 3 * policy_of(variables).sweep_interval_ms + SWEEP_TOLERANCE_MS
        last = int(variables.get("last_sweep_at", self._started_at))
        check = OK
        if now - last > overdue_ms:
            check = f"nobody has swept for {(now - last) // 1000} s; see the log for the cause"
        warnings = {}
        if "brake_engaged_at" in variables:
            warnings["brake"] = (
                f"expiry is paused since {format_time(int(variables['brake_engaged_at']))}: "
                "many leased owners lapsed together. Find out why; to let them expire at once, "
                "run `metadata-registry sweep --release-brake`"
            )
        return check, warnings

    async def _check_database(self) -> str:
        if not self._writer.alive:
            return "it cannot be written, because the writer does not run; restart the service"
        try:
            await self._writer.submit(_write_probe, None)
        except RegistryError as error:
            return error.detail
        return OK

    async def _check_schema(self) -> str:
        return await self._run(self._find_problem) or OK

    def _find_problem(self) -> str | None:
        try:
            # First, as it parts a database that was replaced from what is left of the one before.
            self._database.ensure_current()
        except RegistryError as error:
            return error.detail
        return find_problem(self._settings.database_url)

    async def _check_writer(self) -> str:
        return OK if self._writer.alive else "the writer thread does not run; restart the service"

    async def _check_disk(self) -> str:
        disk, bound = await self._run(self._database.disk_use), self._settings.min_free_bytes
        free = disk.free_bytes
        if free is None or free >= bound:
            return OK
        return (
            f"{free} bytes are free on the disk of {self._database.name}, less than {bound} "
            "(min_free_bytes). Free some space: when the disk is full, nothing can be registered"
        )

    def _read_variables(self) -> tuple[dict[str, str], int]:
        """The settings in the table, and the time as those who sweep have it."""
        with self._database.read() as conn:
            return read_variables(conn), conn.now

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)


async def _within(seconds: float, check: Awaitable[str]) -> str:
    try:
        return await asyncio.wait_for(check, seconds)
    except RegistryError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {seconds:g} s; if that stays so, restart the service"


def _write_probe(conn: Connection, now: int, items: Sequence[None]) -> list[None]:
    """A small write, at most one a second: the lock can be had, the disk takes what is written."""
    before = int(read_variables(conn).get("probed_at", 0))
    if not 0 <= now - before < WRITE_PROBE_MS:
        write_variables(conn, {"probed_at": now})
    return list(items)
