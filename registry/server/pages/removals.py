"""What was removed last: the files of a model that went together, and whether they came back."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from registry.core.events import Event
from registry.core.records import ArtifactKey


@dataclass(slots=True)
class RemovedTogether:
    """Files of one model that went for one reason. `first` is the newest of the events; `again` of
    the files are registered again."""

    first: Event
    files: list[str] = field(default_factory=list)
    again: int = 0


def keys_of(events: Iterable[Event]) -> list[ArtifactKey]:
    """The files that events name."""
    return [
        ArtifactKey(event.slug, event.suffix, event.filename)
        for event in events
        if event.slug is not None and event.suffix is not None and event.filename is not None
    ]


def grouped(events: Iterable[Event], held: Set[ArtifactKey]) -> list[RemovedTogether]:
    """Events that follow each other and say the same of files of one model, together."""
    found: list[RemovedTogether] = []
    for event in events:
        if not found or _cause(found[-1].first) != _cause(event):
            found.append(RemovedTogether(event))
        found[-1].files.append(event.filename or "")
        found[-1].again += any(key in held for key in keys_of([event]))
    return found


def _cause(event: Event) -> tuple[object, ...]:
    return (event.at, event.owner, event.slug, event.suffix, event.reason, event.request_id)
