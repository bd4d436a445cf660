"""What the pages of a running service keep: the figures, and the places for SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from registry.server.pages.figures import KeptFigures
from registry.service.lanes import Lane
from registry.service.registry import Registry

SQL_AT_ONCE = 2
SQL_WAITING_MAX = 8
SQL_PATIENCE_S = 10.0


class PagesState:
    """The state of the pages of one event loop."""

    def __init__(self, registry: Registry) -> None:
        self.figures = KeptFigures(registry)
        self.sql = Lane(
            "sql", threads=SQL_AT_ONCE, waiting_max=SQL_WAITING_MAX, patience_s=SQL_PATIENCE_S
        )

        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="registry-pages")

    async def render(self, make: Callable[[], Response]) -> Response:
        """Have a page made by the thread for it, after those that were asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, make)

    def close(self) -> None:
        """Wait for what was begun."""
        self._renderer.shutdown(wait=True)
        self.figures.close()
        self.sql.close()


@contextmanager
def showing(registry: Registry) -> Iterator[PagesState]:
    """The state of the pages while the block runs."""
    pages = PagesState(registry)
    try:
        yield pages
    finally:
        pages.close()


def pages_of(request: Request) -> PagesState:
    """The state that the service was started with."""
    return cast(PagesState, request.state.pages)
