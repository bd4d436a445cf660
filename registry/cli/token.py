"""`metadata-registry token`: who may do what on a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.cli.options import AsJson
from registry.cli.output import print_json
from registry.server import tokens
from registry.server.tokens import Grant, Role

app = typer.Typer(
    name="token",
    help="Make access tokens.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _token() -> None:
    pass


@app.command()
def new(
    role: Annotated[Role, typer.Option(help="What the token may do; each includes the former.")],
    token_file: Annotated[
        Path,
        typer.Option(
            "--token-file",
            metavar="FILE",
            envvar="REGISTRY_TOKEN_FILE",
            help="The token file of the service; made if it is not there.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the journal calls it. Default: one is made up."),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(metavar="NS", help="For write: a namespace whose owners it may change."),
    ] = None,
    slug: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="For write: slugs that it may register, like 'llama-*'. Default: every slug.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, add its hash to the token file, and print it: the last word of the output.

    It cannot be shown again. A running service takes it from SIGHUP on; to take a token back,
    delete its entry from the file and send SIGHUP.
    """
    grant, token = tokens.create(
        token_file, role, name=name, namespaces=namespace or (), slugs=slug or ()
    )
    if as_json:
        print_json(
            {
                "name": grant.name,
                "role": grant.role,
                "namespaces": grant.namespaces,
                "slugs": grant.slugs,
                "token": token,
            }
        )
        return
    print(f"{grant.name} may {_allowed(grant)}. Its hash is in {token_file}.")
    print(f"The token, which cannot be shown again:\n{token}")


def _allowed(grant: Grant) -> str:
    if grant.role is not Role.WRITE:
        return "read" if grant.role is Role.READ else "do everything"
    slugs = f", slugs {', '.join(grant.slugs)}" if grant.slugs else ""
    return f"write in {', '.join(grant.namespaces)}{slugs}"
