"""`metadata-registry fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token
from registry.cli.output import ProgressBar, print_json
from registry.cli.tables import Column, print_table
from registry.cli.text import counted, shown_size
from registry.core.checks import BASE_SUFFIX

if TYPE_CHECKING:
    from registry.client.resolver import FetchedFile


def fetch(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="The model, like org_model.")],
    suffix: Annotated[
        str, typer.Option(metavar="SUFFIX", help="_base, or a LoRA's slug.")
    ] = BASE_SUFFIX,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="NS/COMP/EP", help="Only files that this endpoint holds."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put the files there; otherwise into the cache only."),
    ] = None,
    urls: Annotated[
        list[str],
        typer.Option(
            "--url",
            metavar="URL",
            envvar="REGISTRY_URL",
            help="The registry service; given several times, replicas of it to try in turn.",
        ),
    ] = [DEFAULT_URL],  # noqa: B006 - typer copies it
    token: Token = None,
    ca_file: CaFile = None,
    timeout_s: Annotated[
        float, typer.Option(metavar="S", min=1, help="How long all of it may take.")
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Download a model's files, each verified by size and blake3, or change nothing.

    Files go through a cache in $XDG_CACHE_HOME/metadata-registry (~/.cache/metadata-registry) and
    are linked into DIR, read-only, where the file system allows it; otherwise they are copied. A
    download that was broken off is gone on with where it ended.
    """
    from registry.client.protocol import Endpoint
    from registry.client.resolver import FetchLimits, Resolver

    only = None if endpoint is None else Endpoint.parse(endpoint)
    resolver = Resolver(
        urls, token=token, ca_file=ca_file, limits=FetchLimits(deadline_s=timeout_s)
    )
    with ProgressBar() as progress:
        files = resolver.fetch(slug, suffix, to=to, endpoint=only, on_progress=progress)
    if as_json:
        print_json({"files": [_as_json(file) for file in files]})
    else:
        _print_fetched(files)


def _as_json(file: FetchedFile) -> dict[str, object]:
    return {
        "filename": file.filename,
        "checksum": file.checksum,
        "size": file.size,
        "path": str(file.path),
        "downloaded": file.downloaded,
    }


def _print_fetched(files: list[FetchedFile]) -> None:
    print_table(
        [Column("SOURCE"), Column("SIZE", right=True), Column("PATH", runs_on=True)],
        [
            ("downloaded" if file.downloaded else "cache", shown_size(file.size), str(file.path))
            for file in files
        ],
    )
    downloaded = sum(file.downloaded for file in files)
    total = shown_size(sum(file.size for file in files))
    print(f"\n{counted(len(files), 'file')}, {total}, verified; downloaded {downloaded}")
