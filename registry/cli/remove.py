"""`metadata-registry rm`: an administrator drops a model's files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url, Wide
from registry.cli.output import confirm, print_json
from registry.cli.tables import Column, print_table
from registry.cli.text import counted, shown_size
from registry.core.checks import check_slug, check_suffix
from registry.core.listings import Entry
from registry.errors import NotRegistered, Usage
from registry.wire.listings import ArtifactsResponse, EntryResponse
from registry.wire.responses import ReceiptResponse


def rm(
    model: Annotated[
        str,
        typer.Argument(
            metavar="SLUG[/SUFFIX]", help="A model with all its LoRAs; or only _base, or one LoRA."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be dropped.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wide: Wide = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Drop a model's files, whoever holds them, after a question. For administrators.

    Nobody can read them from then on. Owners stay, and so do their own files, on their disks. A
    worker that is attached registers again what it lost at its next renewal: to be rid of a model
    for good, detach its owners (`metadata-registry detach OWNER`). Exit 1 if nothing is registered
    there.
    """
    slug, has_suffix, suffix = model.partition("/")
    check_slug("slug", slug)
    if has_suffix:
        check_suffix(suffix)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        entries = list(client.artifacts(slug=slug, suffix=suffix if has_suffix else None))
        if not entries:
            raise NotRegistered(f"Nothing is registered under {model}.")
        if dry_run:
            _show(entries, as_json, wide=wide)
            return
        if not yes:
            if as_json:
                raise Usage("With --json nobody is asked: say --yes.")
            _show(entries, as_json, wide=wide)
            confirm(f"Drop {counted(len(entries), 'file')} of {model}, whoever holds them?")
        found = sorted({entry.key.suffix for entry in entries})
        receipts = [client.remove(slug, each) for each in found]
    if as_json:
        print_json([ReceiptResponse.of(receipt) for receipt in receipts])
        return
    files = sum(len(receipt.removed) for receipt in receipts)
    refs = sum(receipt.released for receipt in receipts)
    print(f"Dropped {counted(files, 'file')} of {model}, {counted(refs, 'ref')} released.")


def _show(entries: Sequence[Entry], as_json: bool, *, wide: bool) -> None:
    """What would be dropped."""
    if as_json:
        print_json(ArtifactsResponse([EntryResponse.of(entry) for entry in entries], None))
        return
    by_suffix = sorted(entries, key=lambda entry: entry.key.suffix)
    models = [(name, list(each)) for name, each in groupby(by_suffix, lambda e: e.key.suffix)]
    print_table(
        [
            Column("MODEL"),
            Column("FILES", right=True),
            Column("SIZE", right=True),
            Column("HOLDERS", right=True),
        ],
        [
            (
                f"{files[0].key.slug}/{suffix}",
                str(len(files)),
                shown_size(sum(entry.size for entry in files)),
                str(max(entry.holders for entry in files)),
            )
            for suffix, files in models
        ],
        wide=wide,
    )
