"""What the pages of a running service keep: the figures, and the places for SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from starlette.requests import Request

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

    def close(self) -> None:
        """Wait for what was begun."""
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
