"""Models and files in pages: the list, one model, one file with its history."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from registry.core.checks import SLUG_PATTERN, check_slug, check_suffix
from registry.core.findings import Explanation
from registry.core.records import ArtifactKey
from registry.core.slugs import slugify
from registry.core.text import shown
from registry.errors import Invalid
from registry.server.http import registry_of
from registry.server.pages import rendering
from registry.server.pages.texts import owners_of
from registry.server.pages.urls import at, file_url, model_url
from registry.server.routes.artifacts import cursor
from registry.store.reads.model_lines import (
    FILES_WITH_HOLDERS,
    files_of_model,
    find_model,
    holders_after,
    holders_of_model,
    models_page,
)
from registry.store.reads.owner_lines import worker_names
from registry.store.reads.queries import explain, with_ways
from registry.wire.paths import metadata_path

PAGE = 50
FIND_MAX = 1000
_is_model = re.compile(f"({SLUG_PATTERN})/(_base|{SLUG_PATTERN})").fullmatch
_is_key = re.compile(f"({SLUG_PATTERN})/(_base|{SLUG_PATTERN})(?:/([^/]+))?").fullmatch
_is_slug = re.compile(SLUG_PATTERN).fullmatch


async def show_models(request: Request) -> Response:
    """`GET /ui/models`: models whose slug begins with `q`, or that of a model's name. A whole key
    leads to its page."""
    wanted = request.query_params.get("q", "").strip()
    if len(wanted) > FIND_MAX:
        raise Invalid(f"q has more than {FIND_MAX} characters.")
    lookups = registry_of(request).lookups
    key = _is_key(wanted)
    if key is not None and key[3]:
        return RedirectResponse(file_url(key[1], key[2], key[3]), 303)
    if key is not None and await lookups.look(find_model, key[1], key[2]) is not None:
        return RedirectResponse(model_url(key[1], key[2]), 303)
    prefix = wanted if not wanted or _is_slug(wanted) else slugify(wanted)
    models, following = await lookups.look(models_page, _after(request), prefix, PAGE)
    return await rendering.page(
        request,
        "models.html",
        title="Models",
        here="/ui/models",
        wanted=prefix,
        models=models,
        is_first="after" not in request.query_params,
        following=following and at("/ui/models", q=prefix, after="/".join(following)),
    )


def _after(request: Request) -> tuple[str, str]:
    text = request.query_params.get("after")
    if text is None:
        return "", ""
    match = _is_model(text)
    if match is None:
        raise Invalid(f"after is {shown(text)}; follow the link of the page before.")
    return match[1], match[2]


async def show_model(request: Request) -> Response:
    """`GET /ui/models/{slug}/{suffix}`: a model's files, and who holds them."""
    slug, suffix = request.path_params["slug"], request.path_params["suffix"]
    check_slug("slug", slug)
    check_suffix(suffix)
    after, holders_from = request.query_params.get("after", ""), cursor(request, "holders_after")
    lookups = registry_of(request).lookups
    model = await lookups.look(find_model, slug, suffix)
    files = await lookups.look(files_of_model, slug, suffix, after, PAGE)
    holders = await lookups.look(holders_of_model, slug, suffix, holders_from, PAGE)
    return await rendering.page(
        request,
        "model.html",
        200 if model is not None else 404,
        title=f"{slug}/{suffix}",
        here="/ui/models",
        slug=slug,
        suffix=suffix,
        model=model,
        files=files,
        holders=holders,
        files_with_holders=FILES_WITH_HOLDERS,
        more_files=len(files) == PAGE
        and model_url(
            slug, suffix, after=files[-1].key.filename, holders_after=holders_from or None
        ),
        more_holders=len(holders) == PAGE
        and model_url(slug, suffix, after=after, holders_after=holders[-1].id),
    )


async def show_artifact(request: Request) -> Response:
    """`GET /ui/artifacts/{slug}/{suffix}/{filename}`: whose bytes are served, and why; or why there
    are none any more."""
    key = ArtifactKey(*(request.path_params[name] for name in ("slug", "suffix", "filename")))
    lookups = registry_of(request).lookups
    found = await lookups.look(explain, key)
    holders_from = cursor(request, "holders_after")
    following = None
    if found.entry is not None:
        rows = await lookups.look(holders_after, found.entry.id, holders_from, PAGE)
        found = Explanation(
            found.entry, tuple(holder for _, holder in rows), found.events, found.revisions
        )
        if len(rows) == PAGE:
            following = file_url(key.slug, key.suffix, key.filename, holders_after=rows[-1][0])
    if rendering.may_see_paths(request):
        paths = {holder.path for holder in found.holders if holder.path is not None}
        found = with_ways(found, await lookups.find_ways(paths))
    owners = [*(holder.owner for holder in found.holders), *owners_of(found.events)]
    return await rendering.page(
        request,
        "artifact.html",
        200 if found.entry is not None else 404,
        title=str(key),
        here="/ui/models",
        key=key,
        entry=found.entry,
        holders=found.holders,
        events=found.events,
        revisions=found.revisions,
        workers=await lookups.look(worker_names, owners),
        following=following,
        content_url=metadata_path(key),
    )
