"""`metadata-registry ls`, `owners`, `models` and `explain`: what a service holds, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.exit_codes import REFUSED
from registry.cli.options import DEFAULT_URL, AsJson, Token, Url
from registry.cli.output import (
    Column,
    print_facts,
    print_json,
    print_table,
    shown_checksum,
)
from registry.cli.text import shown_size
from registry.core.records import (
    ArtifactKey,
    Entry,
    Event,
    Explanation,
    Holder,
    Model,
    Owner,
    OwnerRecord,
)
from registry.wire import messages as wire

if TYPE_CHECKING:
    from registry.client.protocol import OwnerDetails


def ls(
    slug: Annotated[str | None, typer.Option(metavar="SLUG", help="Only this model.")] = None,
    suffix: Annotated[
        str | None, typer.Option(metavar="SUFFIX", help="Only _base, or this LoRA's slug.")
    ] = None,
    filename: Annotated[
        str | None, typer.Option(metavar="FILENAME", help="Only files of this name.")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(metavar="CHECKSUM", help="Only this content.")
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List the registered files."""
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token) as client:
        entries = list(
            client.artifacts(slug=slug, suffix=suffix, filename=filename, checksum=checksum)
        )
    if as_json:
        print_json(
            wire.ArtifactsResponse([wire.EntryResponse.of(entry) for entry in entries], None)
        )
    else:
        _print_entries(entries)


def owners(
    owner: Annotated[
        str | None,
        typer.Argument(metavar="OWNER", help="Show what this one holds; otherwise list all."),
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List the owners, or show what one holds."""
    identity = None if owner is None else Owner.parse(owner)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token) as client:
        if identity is not None:
            _show_owner(client.owner(identity), as_json)
            return
        records = list(client.owners())
    if as_json:
        print_json(wire.OwnersResponse([wire.owner_summary(each) for each in records], None))
    else:
        _print_owners(records)


def models(url: Url = DEFAULT_URL, token: Token = None, as_json: AsJson = False) -> None:
    """List the models: how many files, how large, how many holders, and whether all can be served.

    A model can be served if each of its files had the right bytes at the last look at one holder.
    """
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token) as client:
        found = list(client.models())
    if as_json:
        print_json(wire.ModelsResponse([wire.ModelResponse.of(each) for each in found], None))
    else:
        _print_models(found)


def explain(
    key: Annotated[str, typer.Argument(metavar="SLUG/SUFFIX/FILENAME", help="The file.")],
    url: Url = DEFAULT_URL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show a file's content, who holds it and where the bytes are, and what happened to it last.

    The exit code is 1 if nobody holds it.
    """
    wanted = ArtifactKey.parse(key)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token) as client:
        explanation = client.explain(wanted)
    if as_json:
        _print_explanation_json(explanation)
    else:
        _print_explanation(wanted, explanation)
    if explanation.entry is None:
        raise typer.Exit(REFUSED)


def _print_entries(entries: Iterable[Entry]) -> None:
    print_table(
        [Column("KEY"), Column("SIZE", True), Column("HOLDERS", True), Column("CHECKSUM")],
        [
            (str(each.key), shown_size(each.size), str(each.holders), shown_checksum(each.checksum))
            for each in entries
        ],
    )


def _print_models(found: Iterable[Model]) -> None:
    print_table(
        [
            Column("MODEL"),
            Column("FILES", True),
            Column("SIZE", True),
            Column("HOLDERS", True),
            Column("SERVEABLE"),
        ],
        [
            (
                f"{each.slug}/{each.suffix}",
                str(each.files),
                shown_size(each.bytes),
                str(each.holders),
                "yes" if each.serveable else "no",
            )
            for each in found
        ],
    )


def _print_owners(records: Iterable[OwnerRecord]) -> None:
    print_table(
        [
            Column("OWNER"),
            Column("STATE"),
            Column("FILES", True),
            Column("LEASE ENDS"),
            Column("WORKER"),
            Column("REGISTERED"),
        ],
        [
            (
                str(each.owner),
                each.state,
                str(each.refs),
                wire.format_time(each.lease.expires_at) if each.lease else "-",
                each.worker_name or "-",
                wire.format_time(each.registered_at),
            )
            for each in records
        ],
    )


def _show_owner(details: OwnerDetails, as_json: bool) -> None:
    record = details.record
    if as_json:
        print_json(wire.owner_answer(record, details.entries))
        return
    print_facts(_owner_facts(record))
    if details.entries:
        print()
        print_table(
            [Column("KEY"), Column("SIZE", True), Column("CHECKSUM")],
            [
                (str(each.key), shown_size(each.size), shown_checksum(each.checksum))
                for each in details.entries
            ],
        )


def _owner_facts(record: OwnerRecord) -> list[tuple[str, str]]:
    times = {
        "lease ends": record.lease.expires_at if record.lease else None,
        "registered": record.registered_at,
        "renewed": record.renewed_at,
        "drained until": record.drain_deadline_at,
        "ended": record.ended_at,
    }
    facts = [("owner", str(record.owner)), ("state", str(record.state))]
    facts += [("worker", record.worker_name)] if record.worker_name else []
    facts += [(name, wire.format_time(at)) for name, at in times.items() if at is not None]
    facts += [("end reason", record.end_reason)] if record.end_reason else []
    return facts


def _print_explanation_json(explanation: Explanation) -> None:
    if explanation.entry is not None:
        print_json(wire.ExplainResponse.of(explanation.entry, explanation))
        return
    events = [wire.EventResponse.of(event) for event in explanation.events]
    print_json({"entry": None, "holders": [], "events": events})


def _print_explanation(key: ArtifactKey, explanation: Explanation) -> None:
    entry = explanation.entry
    if entry is None:
        print(f"error: {key} is not registered.", file=sys.stderr)
    else:
        print_facts(_entry_facts(entry))
        print()
        _print_holders(explanation.holders)
    if explanation.events:
        print()
        _print_events(explanation.events)


def _entry_facts(entry: Entry) -> list[tuple[str, str]]:
    return [
        ("key", str(entry.key)),
        ("checksum", entry.checksum),
        ("size", str(entry.size)),
        ("generation", str(entry.generation)),
        ("created", wire.format_time(entry.created_at)),
        ("updated", wire.format_time(entry.updated_at)),
    ]


def _print_holders(holders: Iterable[Holder]) -> None:
    print_table(
        [Column("HOLDER"), Column("STATE"), Column("BYTES"), Column("STATUS"), Column("SINCE")],
        [
            (
                str(each.owner),
                each.state,
                each.path or each.source,
                each.status,
                wire.format_time(each.since),
            )
            for each in holders
        ],
    )


def _print_events(events: Iterable[Event]) -> None:
    print_table(
        [Column("EVENT"), Column("AT"), Column("KIND"), Column("OWNER"), Column("DETAIL")],
        [
            (
                str(each.id),
                wire.format_time(each.at),
                each.kind,
                str(each.owner) if each.owner else "-",
                _event_detail(each),
            )
            for each in events
        ],
    )


def _event_detail(event: Event) -> str:
    content = " ".join(
        shown_checksum(checksum)
        for checksum in (event.previous_checksum, event.checksum)
        if checksum is not None
    )
    return event.reason or content
