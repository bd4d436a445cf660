"""`metadata-registry ls`, `owners`, `models` and `explain`: what a service holds, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Quiet, Token, Url, Wide
from registry.cli.output import print_json, shown_checksum
from registry.cli.tables import Column, print_facts, print_table
from registry.cli.text import shown_size
from registry.core.findings import Explanation
from registry.core.listings import Entry, Model, OtherRevision, OwnerRecord
from registry.core.records import ArtifactKey, Holder, Owner, OwnerState
from registry.core.text import printable
from registry.core.times import format_time
from registry.errors import NotRegistered
from registry.wire.listings import (
    ArtifactsResponse,
    EntryResponse,
    EventResponse,
    ExplainResponse,
    ModelResponse,
    ModelsResponse,
    OwnersResponse,
    owner_response,
    owner_summary,
)

if TYPE_CHECKING:
    from registry.client.protocol import OwnerDetails


class EntryOrder(StrEnum):
    """What files are listed by."""

    KEY = "key"
    SIZE = "size"
    HOLDERS = "holders"


class OwnersOrder(StrEnum):
    """What owners are listed by."""

    OWNER = "owner"
    STATE = "state"
    FILES = "files"
    LEASE = "lease"
    REGISTERED = "registered"


class ModelsOrder(StrEnum):
    """What models are listed by."""

    MODEL = "model"
    FILES = "files"
    SIZE = "size"
    HOLDERS = "holders"


SORT_HELP = "Names first to last, times early to late, numbers large to small."


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
    sort: Annotated[EntryOrder | None, typer.Option(help=SORT_HELP)] = None,
    quiet: Quiet = False,
    wide: Wide = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the registered files."""
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        entries = list(
            client.artifacts(slug=slug, suffix=suffix, filename=filename, checksum=checksum)
        )
    if sort is not None:
        entries.sort(key=_entry_orders[sort])
    if quiet:
        _print_names(str(each.key) for each in entries)
    elif as_json:
        print_json(ArtifactsResponse([EntryResponse.of(entry) for entry in entries], None))
    else:
        _print_entries(entries, wide)


def owners(
    owner: Annotated[
        str | None,
        typer.Argument(metavar="OWNER", help="Show what this one holds; otherwise list all."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NS", help="Only owners in this namespace.")
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only those of this worker.")
    ] = None,
    state: Annotated[OwnerState | None, typer.Option(help="Only those in this state.")] = None,
    sort: Annotated[OwnersOrder | None, typer.Option(help=SORT_HELP)] = None,
    quiet: Quiet = False,
    wide: Wide = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the owners, or show what one holds."""
    identity = None if owner is None else Owner.parse(owner)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        if identity is not None:
            _show_owner(client.owner(identity), as_json)
            return
        records = [
            each
            for each in client.owners()
            if namespace in (None, each.owner.namespace)
            and worker in (None, each.worker_name)
            and state in (None, each.state)
        ]
    if sort is not None:
        records.sort(key=_owner_orders[sort])
    if quiet:
        _print_names(str(each.owner) for each in records)
    elif as_json:
        print_json(OwnersResponse([owner_summary(each) for each in records], None))
    else:
        _print_owners(records, wide)


def models(
    slug: Annotated[str | None, typer.Option(metavar="SLUG", help="Only this model.")] = None,
    unserveable: Annotated[
        bool, typer.Option("--unserveable", help="Only those that cannot be served whole.")
    ] = False,
    sort: Annotated[ModelsOrder | None, typer.Option(help=SORT_HELP)] = None,
    quiet: Quiet = False,
    wide: Wide = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the models: how many files, how large, how many holders, and whether all can be served.

    A model can be served if each of its files had the right bytes at the last look at one holder.
    """
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        found = [
            each
            for each in client.models()
            if slug in (None, each.slug) and not (unserveable and each.serveable)
        ]
    if sort is not None:
        found.sort(key=_model_orders[sort])
    if quiet:
        _print_names(f"{each.slug}/{each.suffix}" for each in found)
    elif as_json:
        print_json(ModelsResponse([ModelResponse.of(each) for each in found], None))
    else:
        _print_models(found, wide)


_entry_orders: dict[EntryOrder, Callable[[Entry], Any]] = {
    EntryOrder.KEY: lambda entry: str(entry.key),
    EntryOrder.SIZE: lambda entry: -entry.size,
    EntryOrder.HOLDERS: lambda entry: -entry.holders,
}
_owner_orders: dict[OwnersOrder, Callable[[OwnerRecord], Any]] = {
    OwnersOrder.OWNER: lambda record: str(record.owner),
    OwnersOrder.STATE: lambda record: str(record.state),
    OwnersOrder.FILES: lambda record: -record.refs,
    OwnersOrder.LEASE: lambda record: record.lease.expires_at if record.lease else inf,
    OwnersOrder.REGISTERED: lambda record: record.registered_at,
}
_model_orders: dict[ModelsOrder, Callable[[Model], Any]] = {
    ModelsOrder.MODEL: lambda model: (model.slug, model.suffix),
    ModelsOrder.FILES: lambda model: -model.files,
    ModelsOrder.SIZE: lambda model: -model.bytes,
    ModelsOrder.HOLDERS: lambda model: -model.holders,
}


def _print_names(names: Iterable[str]) -> None:
    for name in names:
        print(printable(name))


def explain(
    key: Annotated[str, typer.Argument(metavar="SLUG/SUFFIX/FILENAME", help="The file.")],
    wide: Wide = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a file's content, who holds it and where the bytes are, and what happened to it last.

    The exit code is 1 if nobody holds it.
    """
    wanted = ArtifactKey.parse(key)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        explanation = client.explain(wanted)
    if as_json:
        _print_explanation_json(explanation)
    else:
        _print_explanation(explanation, wide)
    if explanation.entry is None:
        raise NotRegistered(f"{wanted} is not registered.")


def _print_entries(entries: Sequence[Entry], wide: bool) -> None:
    columns = [
        Column("KEY"),
        Column("SIZE", right=True),
        Column("HOLDERS", right=True, rank=1),
        Column("CHECKSUM", rank=2),
    ]
    has_revisions = any(each.base_slug for each in entries)
    print_table(
        columns + [Column("REVISION OF", rank=3)] * has_revisions,
        [
            (
                str(each.key),
                shown_size(each.size),
                str(each.holders),
                shown_checksum(each.checksum),
                *[each.base_slug or "-"] * has_revisions,
            )
            for each in entries
        ],
        wide=wide,
    )


def _print_models(found: Sequence[Model], wide: bool) -> None:
    columns = [
        Column("MODEL"),
        Column("FILES", right=True, rank=2),
        Column("SIZE", right=True, rank=3),
        Column("HOLDERS", right=True, rank=1),
        Column("SERVEABLE"),
    ]
    has_revisions = any(each.base_slug for each in found)
    print_table(
        columns + [Column("REVISION OF", rank=4)] * has_revisions,
        [
            (
                f"{each.slug}/{each.suffix}",
                str(each.files),
                shown_size(each.bytes),
                str(each.holders),
                "yes" if each.serveable else "no",
                *[each.base_slug or "-"] * has_revisions,
            )
            for each in found
        ],
        wide=wide,
    )


def _print_owners(records: Iterable[OwnerRecord], wide: bool) -> None:
    print_table(
        [
            Column("OWNER"),
            Column("STATE"),
            Column("FILES", right=True, rank=1),
            Column("LEASE ENDS", rank=2),
            Column("WORKER", rank=3),
            Column("REGISTERED", rank=4),
        ],
        [
            (
                str(each.owner),
                each.state,
                str(each.refs),
                format_time(each.lease.expires_at) if each.lease else "-",
                each.worker_name or "-",
                format_time(each.registered_at),
            )
            for each in records
        ],
        wide=wide,
    )


def _show_owner(details: OwnerDetails, as_json: bool) -> None:
    record = details.record
    if as_json:
        print_json(owner_response(record, details.entries))
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
    facts += [(name, format_time(at)) for name, at in times.items() if at is not None]
    facts += [("end reason", record.end_reason)] if record.end_reason else []
    return facts


def _print_explanation_json(explanation: Explanation) -> None:
    if explanation.entry is not None:
        print_json(ExplainResponse.of(explanation.entry, explanation))
        return
    events = [EventResponse.of(event) for event in explanation.events]
    print_json({"entry": None, "holders": [], "events": events})


def _print_explanation(explanation: Explanation, wide: bool) -> None:
    if explanation.entry is not None:
        print_facts(_entry_facts(explanation.entry) + _revision_facts(explanation.revisions))
        print()
        _print_holders(explanation.holders, wide)
    if explanation.events:
        from registry.cli.events import print_lines

        print()
        print_lines(explanation.events)


def _entry_facts(entry: Entry) -> list[tuple[str, str]]:
    return [
        ("key", str(entry.key)),
        *([("revision of", entry.base_slug)] if entry.base_slug else []),
        ("checksum", entry.checksum),
        ("size", str(entry.size)),
        ("generation", str(entry.generation)),
        ("created", format_time(entry.created_at)),
        ("updated", format_time(entry.updated_at)),
    ]


def _revision_facts(revisions: Iterable[OtherRevision]) -> list[tuple[str, str]]:
    return [
        ("beside it", f"{each.slug}, with other {', '.join(each.differing) or 'nothing'}")
        for each in revisions
    ]


def _print_holders(holders: Iterable[Holder], wide: bool) -> None:
    print_table(
        [
            Column("HOLDER"),
            Column("STATE", rank=2),
            Column("BYTES"),
            Column("STATUS"),
            Column("SINCE", rank=1),
        ],
        [
            (
                str(each.owner),
                each.state,
                each.path or each.source,
                each.status,
                format_time(each.since),
            )
            for each in holders
        ],
        wide=wide,
    )
