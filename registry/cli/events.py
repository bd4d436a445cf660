"""`metadata-registry events`: the journal, as it is and as it grows."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable, Iterator
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url
from registry.cli.output import shown_checksum
from registry.cli.streams import ReaderGone
from registry.cli.text import json_line, json_plain
from registry.core.events import Event, EventFilter, EventKind, EventOrder, EventPage
from registry.core.records import Owner
from registry.core.text import printable
from registry.core.times import format_time
from registry.errors import Busy, ServiceUnreachable, StorageUnavailable
from registry.wire.listings import EventResponse

if TYPE_CHECKING:
    from registry.client.client import RegistryClient

LAST_DEFAULT = 20
POLL_S = 1.0
KINDS = ", ".join(EventKind)
KIND_WIDTH = max(map(len, EventKind))


def events(
    owner: Annotated[
        str | None, typer.Option(metavar="OWNER", help="Only events of this owner.")
    ] = None,
    slug: Annotated[str | None, typer.Option(metavar="SLUG", help="Only of this model.")] = None,
    kind: Annotated[
        EventKind | None, typer.Option(metavar="KIND", help=f"Only of these: {KINDS}.")
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only what this request did: X-Request-Id of its answer."),
    ] = None,
    last: Annotated[
        int, typer.Option("--last", "-n", metavar="N", min=0, help="Only the last N.")
    ] = LAST_DEFAULT,
    after: Annotated[
        int | None,
        typer.Option(metavar="ID", min=0, help="All that came after this event, not the last N."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")
    ] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened, the oldest first.

    With --follow, until Ctrl-C or until whoever reads the output has gone; the JSON is then one
    object in each line.
    """
    wanted = EventFilter(None if owner is None else Owner.parse(owner), slug, kind, request_id)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        pages = _last(client, wanted, last) if after is None else _behind(client, wanted, after)
        if follow:
            _print_following(client, wanted, pages, as_json)
        elif as_json:
            _print_json(pages)
        else:
            for page in pages:
                print_lines(page.events)


def _last(client: RegistryClient, wanted: EventFilter, count: int) -> Iterator[EventPage]:
    """The newest events in one page, the oldest of them first."""
    newest: list[Event] = []
    last = 0
    for page in _before(client, wanted, _page_size(count)):
        last = last or page.last
        newest += page.events
        if len(newest) >= count:
            break
    yield EventPage(tuple(reversed(newest[:count])), None, last)


def _before(client: RegistryClient, wanted: EventFilter, limit: int) -> Iterator[EventPage]:
    """The pages of the journal, the newest first."""
    from registry.client.pages import bounded

    def pages() -> Iterator[EventPage]:
        page = client.events(wanted, order=EventOrder.NEWEST, limit=limit)
        yield page
        while page.next is not None:
            page = client.events(wanted, order=EventOrder.NEWEST, after=page.next, limit=limit)
            yield page

    return bounded(pages())


def _page_size(count: int) -> int:
    return min(max(count, 1), 1000)


def _behind(client: RegistryClient, wanted: EventFilter, after: int) -> Iterator[EventPage]:
    """The pages behind an event, to the end of the journal."""
    from registry.client.pages import bounded

    def pages() -> Iterator[EventPage]:
        following: int | None = after
        while following is not None:
            page = client.events(wanted, after=following)
            yield page
            following = page.next

    return bounded(pages())


def _print_json(pages: Iterable[EventPage]) -> None:
    """Print all pages as one answer, a page in memory at a time: a journal may be long."""
    last, separator, begin = 0, "\n", '{\n  "events": ['
    for page in pages:
        print(begin, end="")  # Not before a page came: no error is to follow half an answer.
        begin = ""
        for event in page.events:
            print(separator + indent(json_plain(EventResponse.of(event), 2), "    "), end="")
            separator = ",\n"
        last = page.last
    print("]" if separator == "\n" else "\n  ]", end="")
    print(f',\n  "next": null,\n  "last": "{last}"\n}}')


def _print_following(
    client: RegistryClient, wanted: EventFilter, pages: Iterator[EventPage], as_json: bool
) -> None:
    """Print pages, and what comes behind them for as long as somebody reads it.

    Once it has begun, a service that does not answer is asked again and again.
    """
    position, begun, answered = 0, False, True
    while True:
        try:
            for page in pages:
                (_print_json_lines if as_json else print_lines)(page.events)
                sys.stdout.flush()
                position = max(position, page.next or page.last)
            begun = answered = True
        except (Busy, ServiceUnreachable, StorageUnavailable) as error:
            if not begun:
                raise
            if answered:
                print(f"warning: {printable(error.detail)} Trying on.", file=sys.stderr)
            answered = False
        _wait_for_reader(POLL_S)
        pages = _behind(client, wanted, position)


def _wait_for_reader(pause_s: float) -> None:
    """Wait, unless whoever reads the output has gone.

    Raises:
        ReaderGone: nobody reads any more.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        time.sleep(pause_s)
        return
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(round(pause_s * 1000)):
        raise ReaderGone


def _print_json_lines(found: Iterable[Event]) -> None:
    for event in found:
        print(json_line(EventResponse.of(event)))


def print_lines(found: Iterable[Event]) -> None:
    """Print events, a line for each. It is never wrapped."""
    for event in found:
        print(printable(_line(event)))


def _line(event: Event) -> str:
    key = [part for part in (event.slug, event.suffix, event.filename) if part is not None]
    fields = (
        f"{event.id:>8}",
        format_time(event.at),
        event.kind.ljust(KIND_WIDTH),
        "-" if event.owner is None else str(event.owner),
        "/".join(key) or "-",
        _detail(event),
    )
    return "  ".join(fields).rstrip()


def _detail(event: Event) -> str:
    checksums = [each for each in (event.previous_checksum, event.checksum) if each is not None]
    words = [" to ".join(map(shown_checksum, checksums)), event.reason or ""]
    words.append(f"by {event.actor}" if event.actor else "")
    return ", ".join(word for word in words if word)
