"""What the pages of a running service keep: the figures, and the places for SQL."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response

from registry.service.lanes import Lane
from registry.service.registry import Registry

if TYPE_CHECKING:
    from registry.server.openapi.spec import Handler
    from registry.server.pages.figures import KeptFigures

SQL_AT_ONCE = 2
SQL_WAITING_MAX = 8
SQL_PATIENCE_S = 10.0
TURN_S = 0.0005
"""How long a page that is made keeps the interpreter, at most, when others want it."""

T = TypeVar("T")
_USUAL_S = sys.getswitchinterval()


class PagesState:
    """The state of the pages of one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._figures: KeptFigures | None = None
        self.sql = Lane(
            "sql", threads=SQL_AT_ONCE, waiting_max=SQL_WAITING_MAX, patience_s=SQL_PATIENCE_S
        )
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="registry-pages")

    @property
    def figures(self) -> KeptFigures:
        """What is counted of the whole."""
        if self._figures is None:
            from registry.server.pages.figures import KeptFigures  # Loaded with the first page.

            self._figures = KeptFigures(self._registry)
        return self._figures

    async def loaded(self, module: str, name: str) -> Handler:
        """The handler of a page. It is loaded in the thread, so that files are served meanwhile."""
        handler = self._handlers.get((module, name))
        if handler is None:
            path = f"registry.server.pages.{module}"
            load = partial(importlib.import_module, path)
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._renderer, _gently, load)
            handler = self._handlers[module, name] = getattr(found, name)
        return handler

    async def render(self, make: Callable[[], Response]) -> Response:
        """Have a page made by the thread for it, after those that were asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, _gently, make)

    def close(self) -> None:
        """Wait for what was begun."""
        self._renderer.shutdown(wait=True)
        if self._figures is not None:
            self._figures.close()
        self.sql.close()


def _gently(work: Callable[[], T]) -> T:
    """Work that takes a while in Python alone. The event loop, which answers others, gets its turn
    within `TURN_S` meanwhile, instead of the 5 ms that are usual."""
    sys.setswitchinterval(TURN_S)
    try:
        return work()
    finally:
        sys.setswitchinterval(_USUAL_S)


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
