"""Owners in pages: the list, one owner with what it holds and what would go dark without it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from registry.core.events import Event, EventFilter, EventKind, EventOrder
from registry.core.listings import OwnerRecord
from registry.core.records import Owner
from registry.core.text import shown
from registry.errors import Invalid, UnknownOwner
from registry.server.http import registry_of
from registry.server.pages import rendering
from registry.server.pages.accept import wants_html
from registry.server.pages.advice import ADVICE
from registry.server.pages.choices import STATES
from registry.server.pages.findings import found_about, owners_named
from registry.server.pages.models import FIND_MAX, PAGE
from registry.server.pages.running import pages_of
from registry.server.pages.texts import owners_of
from registry.server.pages.urls import at, owner_url
from registry.server.routes.artifacts import cursor
from registry.store.reads.deaths import what_would_go_dark
from registry.store.reads.events import list_events
from registry.store.reads.overview import FoundClass, first_event_at
from registry.store.reads.owner_lines import (
    count_wrong_files,
    files_of_owner,
    find_owner_line,
    find_workers,
    owners_in_journal,
    owners_in_states,
    owners_of_instance,
    owners_page,
    worker_names,
)

PARTS = 5


async def show_owners(request: Request) -> Response:
    """`GET /ui/owners`: owners by identity. `q` is the beginning of one, or the number of an
    instance, or the name of a worker; a whole owner leads to its page."""
    wanted = request.query_params.get("q", "").strip().strip("/")
    if len(wanted) > FIND_MAX:
        raise Invalid(f"q has more than {FIND_MAX} characters.")
    parts = wanted.split("/") if wanted else []
    if len(parts) >= PARTS:
        return RedirectResponse(owner_url(Owner.parse(wanted)), 303)
    after = request.query_params.get("after")
    state = request.query_params.get("state", "")
    if state not in STATES:
        raise Invalid(
            f"state is {shown(state)}; it must be one of {', '.join(filter(None, STATES))}."
        )
    lookups = registry_of(request).lookups
    place = None if after is None else Owner.parse(after)
    if wanted:
        found = await lookups.look(owners_page, place, parts, PAGE)
        last = found[-1].record.owner if len(found) == PAGE else None
    else:
        found, last = await lookups.look(owners_in_states, place, STATES[state], PAGE)
    following = last is not None and at("/ui/owners", q=wanted, state=state, after=last)
    if len(parts) == 1 and after is None:
        workers = await lookups.look(find_workers, wanted, PAGE)
        found = [*workers, *(each for each in found if each not in workers)]
    known: list[Owner] = []
    if not found and wanted.isdecimal():
        known = await lookups.look(owners_in_journal, wanted)
    return await rendering.page(
        request,
        "owners.html",
        title="Owners",
        here="/ui/owners",
        wanted=wanted,
        owners=found,
        known=known,
        state=state,
        states=[name for name in STATES if name],
        is_first=after is None,
        following=following,
    )


async def show_owner_page(request: Request) -> Response:
    """`GET /ui/owners/{owner}`: an owner, what it holds, and what would go dark without it."""
    names = ("namespace", "component", "endpoint", "instance_id", "suffix")
    owner = Owner.parse("/".join(request.path_params[name] for name in names))
    lookups = registry_of(request).lookups
    found = await lookups.look(find_owner_line, owner)
    figures = await pages_of(request).figures.get()
    wrong_now = found_about(request, figures, owner=str(owner))
    if found is None:
        return await _unknown(request, owner, wrong_now)
    after = cursor(request)
    files = await lookups.look(files_of_owner, found.id, after, PAGE)
    siblings = await lookups.look(owners_of_instance, owner)
    death = await lookups.look(what_would_go_dark, siblings)
    held_last = () if found.record.ended_at is None else await _held_last(request, found.record)
    wrong = await lookups.look(count_wrong_files, found.id)
    return await rendering.page(
        request,
        "owner.html",
        title=str(owner),
        here="/ui/owners",
        owner=found,
        files=files,
        siblings=siblings,
        death=death,
        wrong=wrong,
        held_last=held_last,
        found=wrong_now,
        advice=ADVICE,
        workers=await lookups.look(worker_names, owners_named(wrong_now)),
        following=len(files) == PAGE and owner_url(owner, after=files[-1].file.id),
    )


async def _unknown(request: Request, owner: Owner, wrong: Sequence[FoundClass]) -> Response:
    """What the journal has of an owner that is not known.

    Raises:
        UnknownOwner: for programs.
    """
    error = UnknownOwner(f"No owner {owner} is known, and no tombstone of one is left.")
    if not wants_html(request.scope):
        raise error
    lookups = registry_of(request).lookups
    page = await lookups.look(list_events, EventFilter(owner), EventOrder.NEWEST, None, PAGE)
    named = [*owners_named(wrong), *owners_of(page.events)]
    return await rendering.page(
        request,
        "unknown_owner.html",
        404,
        title=str(owner),
        here="/ui/owners",
        owner=owner,
        detail=error.detail,
        events=page.events,
        found=wrong,
        advice=ADVICE,
        workers=await lookups.look(worker_names, named),
    )


async def _held_last(request: Request, owner: OwnerRecord) -> list[Event]:
    """What an owner let go of when it ended, the first page of it."""
    lookups = registry_of(request).lookups
    ended_at = owner.ended_at or 0
    behind = await lookups.look(first_event_at, ended_at + 1)
    wanted = EventFilter(owner.owner, kind=EventKind.RELEASED)
    page = await lookups.look(list_events, wanted, EventOrder.NEWEST, behind, PAGE)
    return [event for event in page.events if event.at == ended_at]
