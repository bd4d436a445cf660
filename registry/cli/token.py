"""`metadata-registry token`: who may do what on a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.cli.options import AsJson
from registry.cli.output import print_json, print_note
from registry.cli.tables import Column, print_table
from registry.server import tokens
from registry.server.tokens import Grant, Role

app = typer.Typer(
    name="token",
    help="Make access tokens, list them, take them back.",
    no_args_is_help=True,
    add_completion=False,
)


TokenFile = Annotated[
    Path,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="REGISTRY_TOKEN_FILE",
        readable=False,  # It says why itself.
        help="The token file of the service.",
    ),
]


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

    It cannot be shown again. A running service takes it from SIGHUP on.
    """
    grant, token = tokens.create(
        token_file, role, name=name, namespaces=namespace or (), slugs=slug or ()
    )
    if as_json:
        print_json(_as_object(grant) | {"token": token})
        return
    print(f"{grant.name} may {_allowed(grant)}. Its hash is in {token_file}.")
    print(f"The token, which cannot be shown again:\n{token}")


@app.command("list")
def list_tokens(token_file: TokenFile, as_json: AsJson = False) -> None:
    """List the tokens of a token file: their names, and what they may do.

    The tokens themselves are not in the file, and cannot be shown.
    """
    found = tokens.grants(token_file)
    if as_json:
        print_json({"tokens": [_as_object(grant) for grant in found]})
        return
    print_table(
        [Column("NAME"), Column("ROLE"), Column("NAMESPACES"), Column("SLUGS", wraps=True)],
        [
            (
                str(grant.name),
                grant.role,
                ", ".join(grant.namespaces) or "all",
                ", ".join(grant.slugs) or "all",
            )
            for grant in found
        ],
    )


@app.command()
def revoke(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The token's name, as `token list` shows it.")
    ],
    token_file: TokenFile,
    as_json: AsJson = False,
) -> None:
    """Take a token back: its entry leaves the token file.

    A running service refuses it from SIGHUP on. The rest of the file stays as it is. The exit code
    is 1 if no token has this name.
    """
    grant = tokens.revoke(token_file, name)
    if as_json:
        print_json(_as_object(grant))
    else:
        print(f"{grant.name} is not in {token_file} any more. It might {_allowed(grant)}.")
        print("A running service refuses it once it gets SIGHUP.")
    if grant.role is Role.ADMIN and not any(
        each.role is Role.ADMIN for each in tokens.grants(token_file)
    ):
        print_note("warning: no token of the file has the role admin any more.")


def _as_object(grant: Grant) -> dict[str, object]:
    return {
        "name": grant.name,
        "role": grant.role,
        "namespaces": grant.namespaces,
        "slugs": grant.slugs,
    }


def _allowed(grant: Grant) -> str:
    if grant.role is not Role.WRITE:
        return "read" if grant.role is Role.READ else "do everything"
    slugs = f", slugs {', '.join(grant.slugs)}" if grant.slugs else ""
    return f"write in {', '.join(grant.namespaces)}{slugs}"
