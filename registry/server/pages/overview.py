"""`/`: the whole at a glance, or for programs where to go on."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__
from registry.core.events import EventFilter, EventKind, EventOrder
from registry.server.http import answer, registry_of
from registry.server.pages import rendering
from registry.server.pages.accept import wants_html
from registry.server.pages.advice import ADVICE
from registry.server.pages.charts import Chart, bar_chart, line_chart
from registry.server.pages.findings import causes, found_now, unserveable_models
from registry.server.pages.running import pages_of
from registry.server.pages.texts import clock_time, number, owners_of
from registry.store.reads.events import list_events
from registry.store.reads.model_lines import find_models, models_page
from registry.store.reads.overview import JournalHour
from registry.store.reads.owner_lines import worker_names
from registry.wire.reports import ServiceResponse

MODELS = 10
REMOVED = 5


async def show_overview(request: Request) -> Response:
    """`GET /`: for people a page, for programs where to go on."""
    if not wants_html(request.scope):
        found = answer(ServiceResponse("metadata-registry", __version__, "/docs", "/openapi.json"))
    else:
        found = await _page(request)
    found.headers["Vary"] = "Accept"
    return found


async def _page(request: Request) -> Response:
    lookups = registry_of(request).lookups
    figures = await pages_of(request).figures.get()
    found = found_now(request, figures)
    names, are_all_dark = unserveable_models(found)
    dark = await lookups.look(find_models, names[:MODELS])
    dark = [each for each in dark if each.dark is not None]
    models, following = await lookups.look(models_page, ("", ""), "", MODELS)
    models = [*dark, *(each for each in models if each not in dark)]
    removed = await lookups.look(
        list_events, EventFilter(kind=EventKind.REMOVED), EventOrder.NEWEST, None, REMOVED
    )
    return await rendering.page(
        request,
        "overview.html",
        title="Overview",
        here="/",
        figures=figures,
        charts=charts_of(figures.hours) if figures is not None else (),
        found=found,
        advice=ADVICE,
        causes=causes(found),
        dark=dark,
        is_all_dark=are_all_dark and len(names) <= MODELS,
        models=models[:MODELS],
        more_models=following is not None or len(models) > MODELS,
        removed=removed.events,
        workers=await lookups.look(worker_names, owners_of(removed.events)),
    )


def charts_of(hours: tuple[JournalHour, ...]) -> tuple[Chart, ...]:
    """How many refs were held, and how many changes each hour had; nothing of an empty journal."""
    if not hours:
        return ()
    refs = [hour.refs for hour in hours]
    changes = [hour.changes for hour in hours]
    known = [value for value in refs if value is not None]
    ends = [clock_time(hour.start + 3_600_000) for hour in hours]
    busiest = max(hours, key=lambda hour: hour.changes)
    held = (
        f"Over the last {len(known)} hours {number(min(known))} to {number(max(known))} refs were "
        f"held at the end of an hour; now {number(known[-1])} are."
    )
    changed = (
        f"{number(sum(changes))} changes in the last {len(hours)} hours, most of them "
        f"({number(busiest.changes)}) from {clock_time(busiest.start)} UTC on."
    )
    return (
        line_chart("Refs held", held, refs, ends),
        bar_chart("Changes an hour", changed, changes, ends),
    )
