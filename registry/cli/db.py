"""`metadata-registry db`: the schema of the database that the registry is kept in."""

from __future__ import annotations

from typing import Annotated

import typer

from registry.cli.failures import REFUSED
from registry.cli.options import AsJson
from registry.cli.output import Column, print_json, print_table

app = typer.Typer(
    name="db",
    help="Make, upgrade and check the schema of the registry's database.",
    no_args_is_help=True,
    add_completion=False,
)

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="REGISTRY_DATABASE_URL",
        metavar="URL",
        help="Where the registry is kept.",
    ),
]

DEFAULT_URL = "sqlite:///registry.db"


@app.command()
def upgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="The revision to stop at.")
    ] = "head",
    database_url: DatabaseUrl = DEFAULT_URL,
) -> None:
    """Bring the schema up to date, after a backup beside the file; make it if there is none."""
    from registry.db import schema

    schema.upgrade(database_url, revision, notify=lambda sentence: typer.echo(sentence, err=True))
    print(f"The schema revision is {schema.current(database_url)}.")


@app.command()
def current(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the schema revision of the database, and this program's."""
    from registry.db import schema, tables

    revision, head = schema.current(database_url), tables.HEAD_REVISION
    if as_json:
        print_json({"revision": revision, "head": head})
    else:
        print(f"{revision or 'none'} ({_compared(revision, head)})")


@app.command()
def history(as_json: AsJson = False) -> None:
    """List the schema revisions that this program knows, the newest last."""
    from registry.db import schema

    revisions = schema.history()
    if as_json:
        print_json([{"revision": each.revision, "title": each.title} for each in revisions])
    else:
        columns = [Column("revision"), Column("title")]
        print_table(columns, [(each.revision, each.title) for each in revisions])


@app.command()
def check(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Compare the database with the schema of this program. Exit code 1 if they differ."""
    from registry.db import schema

    differences = schema.check(database_url)
    if as_json:
        print_json({"differences": differences})
    else:
        for difference in differences or ["The schema is as it should be."]:
            print(difference)
    if differences:
        raise typer.Exit(REFUSED)


def _compared(revision: str | None, head: str) -> str:
    if revision == head:
        return "head"
    if revision is None:
        return "no registry there yet"
    return f"{'older' if revision < head else 'newer'} than this program's {head}"
