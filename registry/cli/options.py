"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8090"

Url = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="URL",
        envvar="REGISTRY_URL",
        help="The registry service.",
        show_default=True,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        envvar="REGISTRY_TOKEN",
        help="Access token, if the service asks for one. Others can see it on a command line.",
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        envvar="REGISTRY_CA_FILE",
        help="Authorities whose certificates are believed, in PEM form; else the system's.",
    ),
]
ServiceUrl = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Ask the service there, instead of opening a database here."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="Show every column whole, whatever the terminal's width.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the names alone, one a line.")]
