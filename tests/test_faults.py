"""Whatever fails at whatever moment: a transaction leaves all of its rows, or none.

A fault is put before each statement that an operation sends to the database, BEGIN and COMMIT
included, and after each but the COMMIT.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from registry.core.records import (
    Artifact,
    ArtifactKey,
    Owner,
    RefStatus,
    Registered,
    Registration,
    Removal,
    Unregistration,
)
from registry.errors import Busy, Conflict, StorageUnavailable
from registry.store.engine import Connection, Engine
from registry.store.group_commit import Writer
from registry.store.opening import open_database
from registry.store.ops import blobs, file_status, register, unregister
from registry.store.sqlite.engine import Database
from tests.places import Dump, Place, Places, SQLitePlace, as_place, on_both, on_sqlite
from tests.support import assert_sound, checksum, dump_of

pytestmark = on_both

T = TypeVar("T")

NOW = 1_700_000_000_000
WAIT_S = 30

ONE, TWO, THREE = (Owner("ns", "backend", "generate", number) for number in (1, 2, 3))
CONFIG, TOKENIZER, ADDED = (
    ArtifactKey("model", "_base", name) for name in ("config.json", "tokenizer.json", "added.json")
)
OLD, NEW = b"old", b"brand new"


def copy(key: ArtifactKey, content: bytes) -> Artifact:
    return Artifact(key, checksum(content), len(content))


def at(key: ArtifactKey, content: bytes, path: str) -> Artifact:
    return Artifact(key, checksum(content), len(content), path)


def upload(content: bytes) -> blobs.Upload:
    return blobs.Upload(checksum(content), len(content), lambda: content)


def hold(owner: Owner, *artifacts: Artifact) -> Registration:
    return Registration(owner, artifacts)


# A connection that fails where it is told to


@dataclass
class Fault:
    """Fails at a statement, counted from 1, with an error; `tripped` when it has."""

    at: int = 0
    after: bool = False
    error: Exception = field(default_factory=lambda: RuntimeError("a fault"))
    seen: int = 0
    tripped: bool = False
    on: Callable[[str], None] = lambda text: None

    def run(self, text: str, execute: Callable[[], T]) -> T:
        if text == "ROLLBACK" or text.startswith("PRAGMA"):
            return execute()
        self.on(text)
        self.seen += 1
        if self.seen != self.at:
            return execute()
        self.tripped = True
        if self.after and text != "COMMIT":
            answered = execute()
            if isinstance(answered, sqlite3.Cursor):
                answered.fetchall()
        raise self.error


class FaultyConnection(sqlite3.Connection):
    """A connection of the driver's, with `fault` in front of `execute`."""

    fault = Fault()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        run = super().execute
        return FaultyConnection.fault.run(sql, lambda: run(sql, parameters))


class FaultyCursor(psycopg.Cursor[Any]):
    """The same for PostgreSQL: what goes out together is counted one by one."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        run = super().execute
        text = query.decode() if isinstance(query, bytes) else str(query)
        return FaultyConnection.fault.run(text, lambda: run(query, params, **options))


@pytest.fixture(autouse=True)
def _faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def faulty(*arguments: Any, **options: Any) -> sqlite3.Connection:
        options.setdefault("factory", FaultyConnection)
        connection: sqlite3.Connection = connect(*arguments, **options)
        return connection

    monkeypatch.setattr(FaultyConnection, "fault", Fault())
    monkeypatch.setattr("registry.store.sqlite.engine.sqlite3.connect", faulty)
    to_server = psycopg.connect

    def faulty_to_server(*arguments: Any, **options: Any) -> Any:
        return to_server(*arguments, cursor_factory=FaultyCursor, **options)

    monkeypatch.setattr(psycopg, "connect", faulty_to_server)


@contextmanager
def failing(fault: Fault) -> Iterator[Fault]:
    FaultyConnection.fault = fault
    try:
        yield fault
    finally:
        FaultyConnection.fault = Fault()


# Operations and the registry that each of them finds

Operation = Callable[[Connection, int, Sequence[Any]], Sequence[Any]]
Step = tuple[Operation, list[Any]]

WORLD: list[Step] = [
    (blobs.store_blobs, [upload(OLD), upload(NEW)]),
    (register.register, [hold(ONE, copy(CONFIG, OLD), copy(TOKENIZER, OLD))]),
    (register.register, [hold(TWO, copy(CONFIG, OLD), at(ADDED, OLD, "/models/added.json"))]),
]
"""ONE and TWO share a key, and each has one alone; a copy goes with its last ref."""

STEPS: dict[str, Step] = {
    "create": (register.register, [hold(THREE, copy(ArtifactKey("new", "_base", "a.json"), NEW))]),
    "share": (register.register, [hold(THREE, copy(CONFIG, OLD), at(TOKENIZER, OLD, "/there"))]),
    "replace": (register.register, [hold(ONE, copy(TOKENIZER, NEW))]),
    "move": (register.register, [hold(ONE, at(TOKENIZER, OLD, "/a"), at(CONFIG, OLD, "/b"))]),
    "conflict": (register.register, [hold(THREE, copy(ADDED, NEW), copy(CONFIG, NEW))]),
    "many": (
        register.register,
        [hold(THREE, copy(CONFIG, OLD)), hold(ONE, copy(TOKENIZER, NEW)), hold(TWO)],
    ),
    "unregister": (unregister.unregister, [Unregistration(ONE), Unregistration(TWO)]),
    "remove": (unregister.remove, [Removal("model", "_base")]),
    "store_blobs": (blobs.store_blobs, [upload(b"unheard of"), upload(OLD)]),
    "observe": (
        file_status.observe,
        [file_status.Observation(2, 3, "/models/added.json", checksum(OLD), RefStatus.MISSING)],
    ),
}


def make_world(where: Path | Place, world: Sequence[Step] = WORLD) -> Engine:
    place = as_place(where)
    place.migrate()
    database = open_database(place.url, busy_timeout_s=0.05, clock=lambda: NOW)
    with database.write() as conn:
        conn.run_text("INSERT INTO settings VALUES ('upload_grace_ms', '0')")
        for operation, items in world:
            operation(conn, conn.now, items)
    return database


def perform(database: Engine, step: Step) -> Sequence[Any]:
    operation, items = step
    with database.write() as conn:
        return operation(conn, conn.now, items)


def undisturbed(places: Places, folder: Path, step: Step) -> Dump:
    """What the operation leaves when nothing fails."""
    with places.at(folder, "undisturbed.db") as place:
        database = make_world(place)
        perform(database, step)
        database.close()
        return place.dump()


def lasting(place: Place) -> Dump:
    """What a transaction that failed leaves as it was. PostgreSQL never gives an id again that it
    gave to such a one, so its ids have gaps."""
    dump = place.dump()
    return dump if isinstance(place, SQLitePlace) else {**dump, "ids": []}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_a_fault_at_any_statement_changes_nothing_and_the_next_attempt_succeeds(
    places: Places, place: Place, name: str, after: bool
) -> None:
    """S4, S7, S14: an operation and its journal are one transaction."""
    wanted = undisturbed(places, place.folder, STEPS[name])
    database = make_world(place)
    before = lasting(place)
    assert wanted != before
    for number in range(1, 100):
        with failing(Fault(number, after)) as fault, suppress(RuntimeError):
            perform(database, STEPS[name])
        if not fault.tripped:
            break
        assert lasting(place) == before, f"statement {number}"
    assert number > 3, "there was nothing to fail"
    if isinstance(place, SQLitePlace):
        assert place.dump() == wanted
    else:
        assert {name: len(rows) for name, rows in place.dump().items()} == {
            name: len(rows) for name, rows in wanted.items()
        }
    database.close()


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite would say")
    error.sqlite_errorcode = code
    return error


def full_disk(place: Place) -> Exception:
    if isinstance(place, SQLitePlace):
        return sqlite_error(sqlite3.SQLITE_FULL)
    return psycopg.errors.DiskFull("as the server would say")


@pytest.mark.parametrize("name", ["share", "unregister", "store_blobs"])
def test_a_full_disk_is_storage_unavailable_at_any_statement(place: Place, name: str) -> None:
    database = make_world(place)
    before = lasting(place)
    number = 0
    while True:
        number += 1
        with failing(Fault(number, error=full_disk(place))) as fault:
            try:
                perform(database, STEPS[name])
            except StorageUnavailable as error:
                assert re.search("disk (of the server )?is full", error.detail)  # noqa: PT017
        if not fault.tripped:
            break
        assert lasting(place) == before
    assert number > 3
    database.close()


class Interruptible(Database):
    """Hands out the driver's connections, to interrupt them inside of a statement."""

    opened: list[sqlite3.Connection]

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = super().connect(*arguments, **options)
        self.opened = [*getattr(self, "opened", []), connection]
        return connection


@pytest.mark.parametrize("name", STEPS)
@on_sqlite
def test_an_interruption_within_a_statement_changes_nothing(
    places: Places, tmp_path: Path, name: str
) -> None:
    """SQLite rolls the whole transaction back by itself then; ours must notice."""
    make_world(tmp_path / "registry.db").close()
    before = dump_of(tmp_path / "registry.db")
    database = Interruptible(f"sqlite:///{tmp_path}/registry.db", clock=lambda: NOW)
    interrupted = 0
    for budget in range(0, 10_000, 97):
        left = budget

        def out_of_time() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        try:
            with database.write() as conn:
                database.opened[-1].set_progress_handler(out_of_time, 1)
                operation, items = STEPS[name]
                operation(conn, conn.now, items)
                database.opened[-1].set_progress_handler(None, 0)
        except sqlite3.OperationalError:
            interrupted += 1
        else:
            break
        assert dump_of(tmp_path / "registry.db") == before
    database.close()
    assert interrupted > 1
    assert dump_of(tmp_path / "registry.db") == undisturbed(places, tmp_path, STEPS[name])
    assert_sound(tmp_path / "registry.db")


# The writer


@dataclass
class Gate:
    """A writer's operation that waits until it is let through: what comes after it is a batch."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def operation(self, _conn: Connection, _now: int, items: Sequence[Any]) -> list[Any]:
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        return list(items)


def with_writer(
    database: Engine,
    scenario: Callable[[Writer], Coroutine[Any, Any, None]],
    *,
    queue_max: int = 100,
) -> Writer:
    writer = Writer(database, queue_max=queue_max)
    writer.start()
    try:
        asyncio.run(asyncio.wait_for(scenario(writer), WAIT_S))
    finally:
        writer.close()
    return writer


async def begin(writer: Writer, operation: Operation, item: Any) -> asyncio.Task[Any]:
    """Submit, and go on once the item is in the queue."""
    task = asyncio.create_task(writer.submit(operation, item))
    for _ in range(3):  # It is handed over when a round of the loop brought no more.
        await asyncio.sleep(0)
    return task


async def held_up(writer: Writer, gate: Gate) -> asyncio.Task[Any]:
    """The writer is busy with one item until the gate opens."""
    task = await begin(writer, gate.operation, None)
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
    return task


@pytest.fixture
def world(place: Place) -> Iterator[Engine]:
    database = make_world(place)
    yield database
    database.close()


def owners_with_refs(database: Engine) -> set[str]:
    with database.read() as conn:
        rows = conn.run_text(
            "SELECT instance_id FROM owners JOIN owner_refs ON owner_id = id WHERE state = 'active'"
        )
    return {row[0] for row in rows}


def some_owner(number: int) -> Owner:
    return Owner("ns", "backend", "many", number)


def test_a_bad_item_of_a_batch_hurts_only_itself(world: Engine) -> None:
    """The batch fails as a whole, and is then run item by item."""
    malformed = Artifact(ArtifactKey("bad", "_base", "a.json"), "no checksum", 1, "/a")

    async def scenario(writer: Writer) -> None:
        gate = Gate()
        first = await held_up(writer, gate)
        good = [
            await begin(writer, register.register, hold(some_owner(number), copy(CONFIG, OLD)))
            for number in range(100, 105)
        ]
        bad = await begin(writer, register.register, hold(some_owner(105), malformed))
        refused = await begin(writer, register.register, hold(some_owner(106), copy(CONFIG, NEW)))
        gone = await begin(writer, unregister.unregister, Unregistration(ONE))
        gate.opened.set()
        await first
        for task in good:
            assert isinstance(await task, Registered)
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
            await bad
        with pytest.raises(Conflict):
            await refused
        assert (await gone).released == 2

    writer = with_writer(world, scenario)
    assert writer.stats.failed_batches == 2  # The batch, and the bad item alone.
    assert owners_with_refs(world) == {"2", "100", "101", "102", "103", "104"}


def test_two_conflicting_new_registrations_in_one_batch_are_one_winner_and_one_conflict(
    world: Engine,
) -> None:
    key = ArtifactKey("contested", "_base", "a.json")

    async def scenario(writer: Writer) -> None:
        gate = Gate()
        _ = await held_up(writer, gate)
        first = await begin(writer, register.register, hold(some_owner(1), at(key, OLD, "/a")))
        second = await begin(writer, register.register, hold(some_owner(2), at(key, NEW, "/b")))
        gate.opened.set()
        assert isinstance(await first, Registered)
        with pytest.raises(Conflict):
            await second

    writer = with_writer(world, scenario)
    assert writer.stats.batches == 2


def test_a_fault_at_the_commit_of_a_batch_is_survived_by_every_item(world: Engine) -> None:
    """The batch is rolled back and its items are written one by one."""

    async def scenario(writer: Writer) -> None:
        gate = Gate()
        _ = await held_up(writer, gate)
        tasks = [
            await begin(writer, register.register, hold(some_owner(number), copy(CONFIG, OLD)))
            for number in range(100, 110)
        ]
        fault = Fault()

        def fail_second_commit(text: str) -> None:
            if text == "COMMIT":
                commits.append(text)
                if len(commits) == 2:
                    fault.at = fault.seen + 1

        fault.on = fail_second_commit
        commits: list[str] = []
        with failing(fault):
            gate.opened.set()
            for task in tasks:
                assert isinstance(await task, Registered)
        assert fault.tripped
        assert len(commits) == 2 + len(tasks)

    with_writer(world, scenario)
    assert owners_with_refs(world) == {"1", "2", *map(str, range(100, 110))}


def test_a_batch_is_answered_only_after_its_commit(world: Engine) -> None:
    """S16: held up before the COMMIT, nobody has an answer and nobody else sees the rows."""
    reached, go_on = threading.Event(), threading.Event()

    def before(text: str) -> None:
        if text == "COMMIT":
            reached.set()
            assert go_on.wait(WAIT_S)

    async def scenario(writer: Writer) -> None:
        with failing(Fault(on=before)):
            tasks = [
                await begin(writer, register.register, hold(some_owner(number), copy(CONFIG, OLD)))
                for number in range(100, 103)
            ]
            assert await asyncio.to_thread(reached.wait, WAIT_S)
            assert not any(task.done() for task in tasks)
            assert owners_with_refs(world) == {"1", "2"}
            go_on.set()
            for task in asyncio.as_completed(tasks):
                answered = await task
                assert str(answered.owner.instance_id) in owners_with_refs(world)

    with_writer(world, scenario)


def test_a_full_queue_is_busy_and_what_was_accepted_is_written(world: Engine) -> None:
    async def scenario(writer: Writer) -> None:
        gate = Gate()
        _ = await held_up(writer, gate)
        accepted = [
            await begin(writer, register.register, hold(some_owner(number), copy(CONFIG, OLD)))
            for number in (100, 101)
        ]
        assert writer.waiting == 2
        with pytest.raises(Busy):
            await writer.submit(register.register, hold(some_owner(102), copy(CONFIG, OLD)))
        gate.opened.set()
        for task in accepted:
            await task
        await writer.submit(register.register, hold(some_owner(103), copy(CONFIG, OLD)))

    with_writer(world, scenario, queue_max=2)
    assert owners_with_refs(world) == {"1", "2", "100", "101", "103"}


def test_a_caller_that_was_cancelled_while_waiting_still_gets_its_write(world: Engine) -> None:
    """S7: an unregister runs to its end even if the HTTP client hangs up."""

    async def scenario(writer: Writer) -> None:
        gate = Gate()
        _ = await held_up(writer, gate)
        task = await begin(writer, unregister.unregister, Unregistration(ONE))
        other = await begin(writer, unregister.unregister, Unregistration(TWO))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        assert (await other).released == 2

    with_writer(world, scenario)
    assert owners_with_refs(world) == set()


def test_closing_writes_what_was_accepted_and_refuses_what_comes_after(world: Engine) -> None:
    async def scenario(writer: Writer) -> None:
        gate = Gate()
        _ = await held_up(writer, gate)
        accepted = await begin(writer, register.register, hold(THREE, copy(CONFIG, OLD)))
        closing = asyncio.create_task(asyncio.to_thread(writer.close))
        gate.opened.set()
        await closing
        assert isinstance(await accepted, Registered)
        assert not writer.alive
        with pytest.raises(Busy):
            await writer.submit(register.register, hold(some_owner(100), copy(CONFIG, OLD)))

    with_writer(world, scenario)
    assert owners_with_refs(world) == {"1", "2", "3"}


def test_every_submit_during_a_close_is_answered(world: Engine) -> None:
    """None is left waiting for a thread that has stopped: it is written, or it is Busy."""
    closing = threading.Event()

    async def caller(writer: Writer, first: int) -> list[int]:
        written: list[int] = []
        for number in range(first, first + 10_000):
            try:
                await writer.submit(register.register, hold(some_owner(number), copy(CONFIG, OLD)))
            except Busy:
                return written
            written.append(number)
            if len(written) == 3:
                closing.set()
        raise AssertionError("the writer was never closed")

    def run_loop(writer: Writer, thread: int) -> list[int]:
        async def callers() -> list[list[int]]:
            starts = [thread * 1_000_000 + index * 10_000 for index in range(1, 9)]
            return await asyncio.gather(*[caller(writer, start) for start in starts])

        found = asyncio.run(asyncio.wait_for(callers(), WAIT_S))
        return [number for numbers in found for number in numbers]

    written: set[str] = set()
    for round_number in range(1, 6):
        closing.clear()
        writer = Writer(world)
        writer.start()
        with ThreadPoolExecutor(3) as threads:
            loops = [threads.submit(run_loop, writer, round_number * 10 + n) for n in range(3)]
            assert closing.wait(WAIT_S)
            writer.close()
            written |= {str(number) for loop in loops for number in loop.result(WAIT_S)}
    assert owners_with_refs(world) == {"1", "2"} | written


def test_a_submit_that_meets_the_close_halfway_is_answered(world: Engine) -> None:
    """The close comes in the middle of the submit, where it looks how long the queue is."""

    async def scenario(writer: Writer) -> None:
        queue_size = writer._queue.qsize
        closers: list[threading.Thread] = []

        class Queue:
            put = writer._queue.put
            get = writer._queue.get
            get_nowait = writer._queue.get_nowait

            def qsize(self) -> int:
                if not closers:
                    closers.append(threading.Thread(target=writer.close))
                    closers[0].start()
                    closers[0].join(0.5)  # It may have to wait for the submit; not the reverse.
                return queue_size()

        writer._queue = Queue()  # type: ignore[assignment]
        try:
            await writer.submit(register.register, hold(THREE, copy(CONFIG, OLD)))
        except Busy:
            assert owners_with_refs(world) == {"1", "2"}
        else:
            assert owners_with_refs(world) == {"1", "2", "3"}
        closers[0].join(WAIT_S)

    with_writer(world, scenario)


def test_an_operation_with_too_few_outcomes_fails_and_the_writer_lives_on(world: Engine) -> None:
    def forgetful(_conn: Connection, _now: int, _items: Sequence[Any]) -> list[Any]:
        return []

    async def scenario(writer: Writer) -> None:
        with pytest.raises(ValueError, match="outcomes"):
            await writer.submit(forgetful, None)
        assert isinstance(
            await writer.submit(register.register, hold(THREE, copy(CONFIG, OLD))), Registered
        )

    with_writer(world, scenario)


# Locks


def test_a_lock_that_stays_is_busy_and_nothing_is_written(world: Engine, place: Place) -> None:
    before = place.dump()

    async def scenario(writer: Writer) -> None:
        with place.write_locked():
            with pytest.raises(Busy):
                await writer.submit(register.register, hold(THREE, copy(CONFIG, OLD)))
            with pytest.raises(Busy):
                perform(world, STEPS["unregister"])
        assert place.dump() == before
        assert isinstance(
            await writer.submit(register.register, hold(THREE, copy(CONFIG, OLD))), Registered
        )

    with_writer(world, scenario)


def test_a_lock_that_is_released_in_time_is_waited_for(tmp_path: Path) -> None:
    make_world(tmp_path / "registry.db").close()
    patient = Database(f"sqlite:///{tmp_path}/registry.db", busy_timeout_s=WAIT_S)
    tried = threading.Semaphore(0)

    def count_attempts(text: str) -> None:
        if text == "BEGIN IMMEDIATE":
            tried.release()

    async def scenario(writer: Writer) -> None:
        with (
            failing(Fault(on=count_attempts)),
            SQLitePlace(tmp_path / "registry.db").write_locked() as other,
        ):
            task = await begin(writer, register.register, hold(THREE, copy(CONFIG, OLD)))
            for _ in range(3):
                assert await asyncio.to_thread(tried.acquire, timeout=WAIT_S)
            assert not task.done()
            other.execute("COMMIT")
            assert isinstance(await task, Registered)

    with_writer(patient, scenario)
    patient.close()
    assert_sound(tmp_path / "registry.db")


def test_readers_go_on_while_the_write_lock_is_held(world: Engine, place: Place) -> None:
    with place.write_locked():
        assert owners_with_refs(world) == {"1", "2"}


def test_more_callers_than_connections_are_busy_and_nothing_else(
    world: Engine, place: Place
) -> None:
    """A pool that has no connection left is as busy as a database that is locked."""
    with place.write_locked(), ThreadPoolExecutor(60) as threads:
        attempts = [threads.submit(perform, world, STEPS["unregister"]) for _ in range(60)]
        for attempt in attempts:
            with pytest.raises(Busy):
                attempt.result(WAIT_S)
