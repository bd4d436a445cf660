"""The way through a list of a service, page by page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry.core.events import EventPage
from registry.core.listings import Entry, Model, OwnerRecord
from registry.errors import ServiceUnreachable

T = TypeVar("T")

EMPTY_PAGES_MAX = 100
"""Pages without a row that may follow each other; a service of ours sends none."""
EMPTY_EVENTS_PAGES_MAX = 10_000
"""The same for events, of which many may have to be looked at to find one."""
LIST_MAX_ROWS = 10_000_000
LIST_MAX_S = 600.0
"""How long the pages of a list may be waited for, all together."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `next` is where the part behind it begins, None at the end."""

    rows: tuple[T, ...]
    next: str | None


class Pages:
    """The way through a list, page by page: it gets on with each page, and comes to an end.

    `after` is where the next page begins.
    """

    def __init__(self) -> None:
        self.after: str | None = None
        self.complete = False
        self._position: Any = None
        self._empty = 0
        self._rows = 0
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts how long pages are waited for, apart from what the caller does with them."""
        started = time.monotonic()
        yield
        self._waited_s += time.monotonic() - started

    def take(self, page: Page[Any]) -> None:
        """Note a page that came.

        Raises:
            ServiceUnreachable: it is none that can follow, or the list is without end.
        """
        self._rows += len(page.rows)
        self._empty = 0 if page.rows else self._empty + 1
        if page.rows:
            first, last = _position(page.rows[0]), _position(page.rows[-1])
            if self._position is not None and first <= self._position:
                raise endless("goes back to what it had listed")
            self._position = last
        if page.next is not None and page.next == self.after:
            raise endless("does not get on")
        if self._empty > EMPTY_PAGES_MAX or self._rows > LIST_MAX_ROWS:
            raise endless("has no end")
        if self._waited_s > LIST_MAX_S and page.next is not None:
            raise endless(f"did not come to its end within {LIST_MAX_S:g} s")
        self.after = page.next
        self.complete = page.next is None


def bounded(pages: Iterable[EventPage]) -> Iterator[EventPage]:
    """Pages of the journal, as long as it gets on and may come to an end.

    Raises:
        ServiceUnreachable: too many pages without an event, too many events, or too long a wait.
    """
    empty = rows = 0
    waited_s = 0.0
    following = iter(pages)
    while True:
        began = time.monotonic()
        page = next(following, None)
        if page is None:
            return
        waited_s += time.monotonic() - began
        empty = 0 if page.events else empty + 1
        rows += len(page.events)
        if empty > EMPTY_EVENTS_PAGES_MAX or rows > LIST_MAX_ROWS:
            raise endless("has no end")
        if waited_s > LIST_MAX_S and page.next is not None:
            raise endless(f"did not come to its end within {LIST_MAX_S:g} s")
        yield page


def _position(row: Entry | OwnerRecord | Model) -> Any:
    """Where a row is in the order of its list."""
    if isinstance(row, Entry):
        return row.id
    if isinstance(row, Model):
        return row.slug, row.suffix
    owner = row.owner
    names = owner.namespace, owner.component, owner.endpoint
    return (*names, str(owner.instance_id), owner.lora_slug or "")


def endless(what: str) -> ServiceUnreachable:
    """What a list of a registry never is."""
    return ServiceUnreachable(f"What answers there is no metadata registry: its list {what}.")
