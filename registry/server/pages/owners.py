"""Owners in pages: the list, one owner with what it holds and what would go dark without it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from registry.core.records import Owner
from registry.errors import Invalid, UnknownOwner
from registry.server.http import registry_of
from registry.server.pages import rendering
from registry.server.pages.models import FIND_MAX, PAGE
from registry.server.pages.urls import at, owner_url
from registry.server.routes.artifacts import cursor
from registry.store.reads.deaths import what_would_go_dark
from registry.store.reads.owner_lines import (
    count_wrong_files,
    files_of_owner,
    find_owner_line,
    find_workers,
    owners_of_instance,
    owners_page,
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
    lookups = registry_of(request).lookups
    found = await lookups.look(
        owners_page, None if after is None else Owner.parse(after), parts, PAGE
    )
    following = len(found) == PAGE and at("/ui/owners", q=wanted, after=found[-1].record.owner)
    if len(parts) == 1 and after is None:
        workers = await lookups.look(find_workers, wanted, PAGE)
        found = [*workers, *(each for each in found if each not in workers)]
    return await rendering.page(
        request,
        "owners.html",
        title="Owners",
        here="/ui/owners",
        wanted=wanted,
        owners=found,
        is_first=after is None,
        following=following,
    )


async def show_owner_page(request: Request) -> Response:
    """`GET /ui/owners/{owner}`: an owner, what it holds, and what would go dark without it."""
    names = ("namespace", "component", "endpoint", "instance_id", "suffix")
    owner = Owner.parse("/".join(request.path_params[name] for name in names))
    lookups = registry_of(request).lookups
    found = await lookups.look(find_owner_line, owner)
    if found is None:
        raise UnknownOwner(f"No owner {owner} is known, and no tombstone of one is left.")
    after = cursor(request)
    files = await lookups.look(files_of_owner, found.id, after, PAGE)
    siblings = await lookups.look(owners_of_instance, owner)
    death = await lookups.look(what_would_go_dark, siblings)
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
        following=len(files) == PAGE and owner_url(owner, after=files[-1].file.id),
    )
