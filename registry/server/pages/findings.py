"""What is wrong, by class: what each class is, what to do about it, and what pages show of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from registry.core.findings import Finding
from registry.errors import DiscoveryUnavailable
from registry.server.http import registry_of
from registry.server.pages import rendering
from registry.server.pages.advice import ADVICE, SEVERITIES
from registry.server.pages.running import pages_of
from registry.service.discovery_watch import DiscoveryWatch
from registry.store.reads.audit import CLASSES, check_classes
from registry.store.reads.overview import FINDINGS_EACH, FoundClass, RegistryFigures
from registry.store.reads.owner_lines import worker_names

NAME_PATHS = frozenset(
    {"drifted_ref", "missing_file", "root_missing", "unverified_ref", "path_outside_roots"}
)
"""Classes whose details name paths on disk."""

UNSERVEABLE = "unserveable_entry"
CAUSES = frozenset({"drifted_ref", "missing_file", "root_missing", "missing_blob"})
"""Classes of what may leave a file without a holder that has its bytes."""

_ORDER = {kind: place for place, kind in enumerate(CLASSES)}

HIDDEN = "The path is shown to administrators."


async def show_findings(request: Request) -> Response:
    """`GET /ui/audit`: what is wrong, by class, with what to do."""
    name = request.query_params.get("class") or None
    check_classes([] if name is None else [name])
    figures = await pages_of(request).figures.get()
    every = found_now(request, figures)
    found = [each for each in every if name in (None, each.kind)]
    return await rendering.page(
        request,
        "audit.html",
        title="Audit",
        here="/ui/audit",
        figures=figures,
        found=found,
        advice=ADVICE,
        severities=SEVERITIES,
        causes=causes(every),
        wanted=name,
        workers=await registry_of(request).lookups.look(worker_names, owners_named(found)),
    )


def owners_named(found: Sequence[FoundClass]) -> list[str]:
    """The owners that findings name."""
    every = (finding.owner for each in found for finding in each.findings)
    return [owner for owner in every if owner is not None]


def found_now(request: Request, figures: RegistryFigures | None) -> list[FoundClass]:
    """The findings, the worst class first, those of discovery among them; without paths for whom
    they are not."""
    found = [] if figures is None else [*figures.found]
    watch = cast("DiscoveryWatch | None", request.state.discovery)
    if watch is not None:
        with suppress(DiscoveryUnavailable):
            found += _of_discovery(watch, registry_of(request).database.clock())
    if not rendering.may_see_paths(request):
        found = list(map(_without_paths, found))
    return sorted(found, key=lambda each: (-each.severity.rank, _ORDER[each.kind]))


def unserveable_models(found: Sequence[FoundClass]) -> tuple[list[tuple[str, str]], bool]:
    """The models (slug, suffix) with a file whose bytes nobody has, and whether that is all."""
    for each in found:
        if each.kind == UNSERVEABLE:
            keys = [str(finding.entry).split("/") for finding in each.findings]
            models = dict.fromkeys((key[0], key[1]) for key in keys)
            return list(models), each.count == len(each.findings)
    return [], True


def causes(found: Sequence[FoundClass]) -> dict[str, int]:
    """How many of the listed findings of a class are why a file has no holder with its bytes."""
    entries = {
        finding.entry for each in found if each.kind == UNSERVEABLE for finding in each.findings
    }
    counts = {
        each.kind: sum(finding.entry in entries for finding in each.findings)
        for each in found
        if each.kind in CAUSES
    }
    return {kind: count for kind, count in counts.items() if count}


def _of_discovery(watch: DiscoveryWatch, now: int) -> list[FoundClass]:
    report = watch.report(now).audit
    by_class: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_class.setdefault(finding.kind, []).append(finding)
    return [
        FoundClass(kind, each[0].severity, report.counts[kind], tuple(each[:FINDINGS_EACH]))
        for kind, each in by_class.items()
    ]


def _without_paths(found: FoundClass) -> FoundClass:
    if found.kind not in NAME_PATHS:
        return found
    hidden = tuple(replace(finding, detail=HIDDEN) for finding in found.findings)
    return replace(found, findings=hidden)
