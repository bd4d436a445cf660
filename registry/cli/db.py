"""`metadata-registry db`: the schema of the registry's database, and copies of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from registry.cli.exit_codes import REFUSED
from registry.cli.options import AsJson
from registry.cli.output import ProgressBar, confirm, print_json, print_note
from registry.cli.tables import Column, print_table
from registry.cli.text import shown_size, without_password
from registry.errors import Refused, RegistryError

app = typer.Typer(
    name="db",
    help="Make, change and check the schema of the registry's database; back it up, restore it.",
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
NOTE_WITHIN_S = 1.0


@app.command()
def upgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="The revision to stop at.")
    ] = "head",
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Bring the schema up to date; make it if there is none.

    A SQLite file is backed up first, beside it. PostgreSQL is not: pg_dump does that.
    """
    from registry.store.opening import migrations_of

    migrate = migrations_of(database_url)
    before = migrate.current(database_url)
    migrate.upgrade(database_url, revision, notify=print_note)
    _print_changed(before, migrate.current(database_url), as_json)


@app.command()
def downgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="The revision to go back to; base: nothing.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Take the schema back to an older revision, after a question.

    Stop the service first. What only the newer schema can hold is lost. A SQLite file is backed up
    first, beside it; PostgreSQL is not: pg_dump does that. A service that starts brings the schema
    up to date again, unless it is of the older version.
    """
    from registry.store.opening import is_postgresql, migrations_of

    migrate = migrations_of(database_url)
    before = migrate.current(database_url)
    if not yes:
        saved = "" if is_postgresql(database_url) else ", but for the backup"
        confirm(
            f"Take the schema of {without_password(database_url)} back from revision "
            f"{before or 'none'} to {revision}? What only the newer one can hold is lost{saved}."
        )
    migrate.downgrade(database_url, revision, notify=print_note)
    _print_changed(before, migrate.current(database_url), as_json)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.")],
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Copy the database to a new file, while a service goes on writing.

    The copy holds what was committed at one moment. It is on the disk and was read back when this
    ends; until then it has another name. A file that is there is not overwritten.
    """
    _refuse_server(database_url, "pg_dump --format=custom --file=FILE")
    from registry.store.sqlite.backup import back_up

    made = back_up(database_url, file)
    _note_backup(database_url)
    if as_json:
        print_json({"path": str(made.path), "revision": made.revision, "size": made.size})
    else:
        print(f"Wrote {made.path}: {shown_size(made.size)}, schema revision {made.revision}.")


def _note_backup(database_url: str) -> None:
    """Have the overview of a service show when this was, where the database can be written."""
    from registry.store.opening import open_database
    from registry.store.ops.settings_table import write_variables

    with suppress(RegistryError):
        database = open_database(database_url, busy_timeout_s=NOTE_WITHIN_S)
        try:
            with database.write() as conn:
                write_variables(conn, {"last_backup_at": conn.now})
        finally:
            database.close()


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace the database that is there; it is kept.")
    ] = False,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the database, after it was checked.

    A service that has a database open there must be stopped first. With --force, what was there is
    kept beside the new database, as a backup. An older schema is brought up to date when a
    service starts. The exit code is 1 if the backup or the database that is there forbid it.
    """
    _refuse_server(database_url, "pg_restore --dbname=NEW_DATABASE FILE")
    from registry.store.sqlite.restore import restore as restore_backup

    restored = restore_backup(database_url, file, force=force)
    kept = None if restored.kept is None else str(restored.kept)
    if as_json:
        print_json({"path": str(restored.path), "revision": restored.revision, "kept": kept})
        return
    print(f"Restored {restored.path}, schema revision {restored.revision}.")
    if kept is not None:
        print(f"What was there before is kept as {kept}.")


@app.command()
def copy(
    source: Annotated[str, typer.Option("--from", metavar="URL", help="The registry to copy.")],
    target: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", help="Where it goes: a new file, or an empty database."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy a registry into an empty database, of SQLite or PostgreSQL: in either direction.

    Stop the service first, and start it on the copy. What is copied is what was committed at one
    moment, with ids, leases and journal, so that the service goes on as if nothing had happened.
    Every table is read back and compared before the copy is there at all: a copy that is broken off
    leaves nothing. The exit code is 1 if the target is not empty.
    """
    from registry.store.opening import copy_database

    with ProgressBar("rows") as progress:
        copied = copy_database(source, target, progress)
    if copied.users:
        print_note(
            f"{copied.source} is in use: what was written to it after the copy began is not in "
            f"{copied.target}."
        )
    if as_json:
        print_json({"source": copied.source, "target": copied.target, "rows": copied.rows})
        return
    rows = ", ".join(f"{count} {name}" for name, count in copied.rows.items())
    print(f"Copied {copied.source} to {copied.target}, and compared them: {rows}.")


@app.command()
def current(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the schema revision of the database, and this program's."""
    from registry.store import tables
    from registry.store.opening import migrations_of

    revision, head = migrations_of(database_url).current(database_url), tables.HEAD_REVISION
    if as_json:
        print_json({"revision": revision, "head": head})
    else:
        print(f"{revision or 'none'} ({_compared(revision, head)})")


@app.command()
def history(as_json: AsJson = False) -> None:
    """List the schema revisions that this program knows, the newest last."""
    from registry.store import revisions as known

    revisions = known.history()
    if as_json:
        print_json([{"revision": each.revision, "title": each.title} for each in revisions])
    else:
        columns = [Column("revision"), Column("title", wraps=True)]
        rows = [(each.revision, " ".join(each.title.split())) for each in revisions]
        print_table(columns, rows)


@app.command()
def check(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Compare the database with the schema of this program. Exit code 1 if they differ."""
    from registry.store.opening import migrations_of

    differences = migrations_of(database_url).check(database_url)
    if as_json:
        print_json({"differences": differences})
    else:
        for difference in differences or ["The schema is as it should be."]:
            print(difference)
    if differences:
        raise typer.Exit(REFUSED)


def _refuse_server(database_url: str, instead: str) -> None:
    """These commands copy files. Raises Refused for PostgreSQL, and says what to use."""
    from registry.store.opening import is_postgresql

    if is_postgresql(database_url):
        raise Refused(
            "This is for SQLite files. PostgreSQL has tools of its own, which work while services "
            f"write: {instead}, or the backups of the managed service."
        )


def _print_changed(before: str | None, after: str | None, as_json: bool) -> None:
    if as_json:
        print_json({"before": before, "revision": after})
    else:
        print(f"The schema revision is {after or 'none'}.")


def _compared(revision: str | None, head: str) -> str:
    if revision == head:
        return "head"
    if revision is None:
        return "no registry there yet"
    return f"{'older' if revision < head else 'newer'} than this program's {head}"
