"""Threads for looks at files: a place that hangs costs its own threads, and nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from registry.content.file_pools import THREADS_PER_PLACE, FilePools, Patience
from registry.core.work_progress import step
from registry.errors import Busy

LIMIT_S = 0.3


def place_of(path: str) -> str:
    return path.split("/")[1]


def running(scenario: Callable[[FilePools, threading.Event], Coroutine[Any, Any, None]]) -> None:
    """A scenario with an event that whatever hangs waits for; it is set at the end."""

    async def run() -> None:
        released = threading.Event()
        try:
            await scenario(FilePools(place_of, LIMIT_S), released)
        finally:
            released.set()

    asyncio.run(run())


def test_answers_and_errors_come_back() -> None:
    async def scenario(pools: FilePools, _: threading.Event) -> None:
        assert await pools.run("/a/1", divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await pools.run("/a/1", divmod, 7, 0)

    running(scenario)


def test_a_place_that_hangs_is_given_up_and_other_places_answer() -> None:
    async def scenario(pools: FilePools, released: threading.Event) -> None:
        calls = [pools.run(f"/hung/{n}", released.wait) for n in range(3 * THREADS_PER_PLACE)]
        outcomes = asyncio.gather(*calls, return_exceptions=True)
        for number in range(100):
            assert await pools.run(f"/fine/{number}", abs, -number) == number
        found = await outcomes
        assert all(isinstance(each, Busy) for each in found)
        assert "'/hung/0' does not answer within 0.3 s" in str(found[0])

    running(scenario)


def test_when_all_threads_of_a_place_hang_others_are_refused_at_once() -> None:
    async def scenario(pools: FilePools, released: threading.Event) -> None:
        calls = [pools.run(f"/hung/{n}", released.wait) for n in range(THREADS_PER_PLACE)]
        await asyncio.gather(*calls, return_exceptions=True)
        made = pools.run("/hung/another", pytest.fail, "nobody has a thread for it")
        with pytest.raises(Busy):
            await made
        released.set()
        assert await eventually(pools, "/hung/another")

    running(scenario)


async def eventually(pools: FilePools, path: str) -> bool:
    """Whether a place answers again."""
    for _ in range(3000):
        try:
            return await pools.run(path, lambda: True)
        except Busy:
            await asyncio.sleep(0.01)
    return False


def test_a_file_that_hangs_takes_one_thread_however_often_it_is_asked_for() -> None:
    async def scenario(pools: FilePools, released: threading.Event) -> None:
        for _ in range(2 * THREADS_PER_PLACE):
            with pytest.raises(Busy):
                await pools.run("/place/hung", released.wait)
            assert await pools.run("/place/fine", abs, -1) == 1

    running(scenario)


def test_what_takes_long_and_comes_on_is_waited_for_and_so_are_those_behind_it() -> None:
    async def scenario(pools: FilePools, _: threading.Event) -> None:
        def slow() -> bool:
            for _ in range(10):
                time.sleep(LIMIT_S / 4)
                step()
            return True

        calls = [pools.run(f"/slow/{n}", slow) for n in range(THREADS_PER_PLACE + 1)]
        assert await asyncio.gather(*calls) == [True] * (THREADS_PER_PLACE + 1)

    running(scenario)


def test_an_answer_that_comes_too_late_is_handed_over_to_be_put_away() -> None:
    async def scenario(pools: FilePools, released: threading.Event) -> None:
        late: list[str] = []
        was_late = asyncio.Event()

        def put_away(answer: str) -> None:
            late.append(answer)
            was_late.set()

        def work() -> str:
            released.wait()
            return "opened"

        with pytest.raises(Busy):
            await pools.run("/hung/a", work, late=put_away)
        assert late == []
        cancelled = asyncio.create_task(pools.run("/hung/b", work, late=put_away))
        await asyncio.sleep(0)
        cancelled.cancel()
        released.set()
        await asyncio.wait_for(was_late.wait(), 30)
        assert late == ["opened"]

    running(scenario)


def test_what_nobody_waits_for_is_done_when_a_thread_is_free() -> None:
    async def scenario(pools: FilePools, released: threading.Event) -> None:
        calls = [pools.run(f"/hung/{n}", released.wait) for n in range(THREADS_PER_PLACE)]
        await asyncio.gather(*calls, return_exceptions=True)
        closed = threading.Event()
        pools.leave("/hung/0", closed.set)
        assert not closed.is_set()
        released.set()
        assert await asyncio.to_thread(closed.wait, 30)

    running(scenario)


def test_patience_gives_up_a_place_and_not_the_others() -> None:
    released = threading.Event()
    patience = Patience(place_of, LIMIT_S)
    assert patience.run("/hung/a", abs, -1) == 1
    with pytest.raises(Busy, match="/hung/a' does not answer"):
        patience.run("/hung/a", released.wait)
    with pytest.raises(Busy, match="/hung/b' does not answer"):
        patience.run("/hung/b", pytest.fail, "it is not asked again")
    assert patience.run("/fine/a", abs, -1) == 1
    with pytest.raises(ZeroDivisionError):
        patience.run("/fine/a", divmod, 1, 0)
    released.set()


def test_patience_waits_for_what_comes_on() -> None:
    def slow() -> bool:
        for _ in range(6):
            time.sleep(LIMIT_S / 3)
            step()
        return True

    assert Patience(place_of, LIMIT_S).run("/slow/a", slow)
