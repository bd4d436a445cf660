"""What reaches the writer together is committed together, and nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from registry.errors import Busy
from registry.store.engine import Connection, Engine
from registry.store.group_commit import GATHERED_MAX, Writer
from tests.places import on_both

pytestmark = on_both


def note(conn: Connection, now: int, items: Sequence[int]) -> list[int]:
    """An operation that writes its items and answers with how many there were."""
    for item in items:
        row = {"name": f"note-{item}", "value": str(now)}
        conn.run_text("INSERT INTO settings VALUES (:name, :value)", row)
    return [len(items)] * len(items)


def notes(database: Engine) -> int:
    with database.read() as conn:
        found: int = conn.run_text("SELECT COUNT(*) FROM settings WHERE name LIKE 'note-%'")[0][0]
        return found


def test_callers_of_one_round_of_the_event_loop_share_a_commit(database: Engine) -> None:
    async def run() -> list[int]:
        writer = Writer(database)
        writer.start()
        try:
            return await asyncio.gather(*(writer.submit(note, item) for item in range(40)))
        finally:
            await asyncio.to_thread(writer.close)

    assert asyncio.run(run()) == [40] * 40


def test_callers_who_come_one_after_the_other_round_by_round_share_one_as_well(
    database: Engine,
) -> None:
    """While one is on its way, the others come together; the first may be alone."""

    async def run() -> list[int]:
        writer = Writer(database)
        writer.start()
        tasks = []
        try:
            for item in range(20):
                tasks.append(asyncio.create_task(writer.submit(note, item)))
                await asyncio.sleep(0)
            return await asyncio.gather(*tasks)
        finally:
            await asyncio.to_thread(writer.close)

    outcomes = asyncio.run(run())
    assert len(outcomes) == 20
    assert max(outcomes) > 1


def test_callers_who_never_cease_to_come_keep_nobody_waiting(database: Engine) -> None:
    """A batch is handed over when it is large enough, though more comes with every round."""

    async def run() -> list[int]:
        writer = Writer(database)
        writer.start()
        tasks, gathered = [], []
        try:
            for item in range(4 * GATHERED_MAX):
                tasks.append(asyncio.create_task(writer.submit(note, item)))
                await asyncio.sleep(0)
                gathered.append(sum(map(len, writer._coming.values())))
            await asyncio.gather(*tasks)
            return gathered
        finally:
            await asyncio.to_thread(writer.close)

    assert max(asyncio.run(run())) <= GATHERED_MAX


def test_what_was_accepted_just_before_the_end_is_written(database: Engine) -> None:
    async def run() -> int:
        writer = Writer(database)
        writer.start()
        task = asyncio.create_task(writer.submit(note, 1))
        await asyncio.sleep(0)
        assert writer.waiting == 1
        await asyncio.to_thread(writer.close)
        return await task

    assert asyncio.run(run()) == 1
    assert notes(database) == 1


def test_what_comes_together_still_has_a_limit(database: Engine) -> None:
    async def run() -> list[int | BaseException]:
        writer = Writer(database, queue_max=10)
        writer.start()
        try:
            tasks = [writer.submit(note, item) for item in range(15)]
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await asyncio.to_thread(writer.close)

    outcomes = asyncio.run(run())
    assert [type(each) for each in outcomes].count(Busy) == 5
    assert notes(database) == 10
