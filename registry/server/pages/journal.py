"""`/ui/events`: the journal, by owner, model, kind, request and time."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from registry.core.events import EventKind, EventOrder
from registry.core.text import shown
from registry.errors import Invalid
from registry.server.http import registry_of
from registry.server.pages import rendering
from registry.server.pages.models import PAGE
from registry.server.pages.texts import owners_of
from registry.server.pages.urls import JOURNAL, at
from registry.server.routes.artifacts import cursor
from registry.server.routes.models import event_filter
from registry.store.reads.events import list_events
from registry.store.reads.overview import first_event_at
from registry.store.reads.owner_lines import worker_names

FILTERS = ("owner", "slug", "kind", "request_id", "until")


async def show_journal(request: Request) -> Response:
    """`GET /ui/events`: what happened, the newest first; before `until`, a time in UTC."""
    given = {name: request.query_params.get(name, "").strip() for name in FILTERS}
    wanted = event_filter({name: value for name, value in given.items() if value})
    lookups = registry_of(request).lookups
    after = cursor(request) if "after" in request.query_params else None
    until = _time(given["until"]) if given["until"] else None
    if after is None and until is not None:
        after = await lookups.look(first_event_at, until)
    page = await lookups.look(list_events, wanted, EventOrder.NEWEST, after, PAGE)
    return await rendering.page(
        request,
        "events.html",
        title="Events",
        here=JOURNAL,
        given=given,
        kinds=list(EventKind),
        events=page.events,
        workers=await lookups.look(worker_names, owners_of(page.events)),
        is_filtered=any(given.values()),
        following=page.next and at(JOURNAL, **given, after=page.next),
    )


def _time(text: str) -> int:
    """A time in UTC, as a form sends it or as the journal spells it, in milliseconds."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"until is {shown(text)}; it must be a time in UTC, like 2026-01-31T12:00."
        ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return max(0, round(found.timestamp() * 1000))
