"""`metadata-registry doctor`: one look at everything that a newcomer gets wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.cli.checks import (
    CheckLine,
    CheckState,
    NamedCheck,
    failed,
    make_all,
    note,
    ok,
)
from registry.cli.environment import strangers_named
from registry.cli.flags import takes_settings
from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Wide
from registry.cli.output import print_json, warnings_shown
from registry.cli.tables import Column, print_table
from registry.cli.text import counted
from registry.errors import Refused, SettingsError

if TYPE_CHECKING:
    from registry.config import Settings


@takes_settings
def doctor(
    config: Path | None = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            envvar="REGISTRY_URL",
            help="The service to ask as well. Default: where these settings would put it.",
        ),
    ] = None,
    token: Token = None,
    ca_file: CaFile = None,
    wide: Wide = False,
    as_json: AsJson = False,
    **flags: Any,
) -> None:
    """Look at everything that is easily got wrong, and say what to do. Changes nothing.

    Give the flags, the variables and the file that the service is started with. Looked at are the
    settings, the database with its file system and space, open files, artifact roots, tokens,
    certificate, address, clocks, discovery, the service itself, your token, and the public URLs.
    It may run before the first start and beside a service. The exit code is 1 if a check fails.
    """
    with warnings_shown(as_json=as_json):
        lines = _look(flags, config, url, token, ca_file)
    wrong = [line for line in lines if line.state is CheckState.FAILED]
    if as_json:
        print_json({"status": "failing" if wrong else "ok", "checks": list(map(_object, lines))})
    else:
        print_table(
            [Column("CHECK"), Column("STATE"), Column("FOUND, AND WHAT TO DO", wraps=True)],
            [(line.check, line.state, line.sentence) for line in lines],
            wide=wide,
        )
    if wrong:
        first = wrong[0]
        failing = "1 check fails" if len(wrong) == 1 else f"{len(wrong)} checks fail; the first"
        raise Refused(f"{failing}: {first.check}. {first.sentence}")


def _look(
    flags: Mapping[str, Any],
    config: Path | None,
    url: str | None,
    token: str | None,
    ca_file: str | None,
) -> list[CheckLine]:
    from registry.cli import checks_there as there
    from registry.cli.checks_database import DatabaseCheck
    from registry.cli.checks_here import checks_here, url_of

    line, settings = _settings(flags, config)
    lines = [line]
    public_urls: tuple[str, ...] = ()
    address = DEFAULT_URL
    elsewhere: list[NamedCheck] = []
    if settings is not None:
        checked, database = settings, DatabaseCheck(settings)
        lines += make_all([NamedCheck("database", database.look), *checks_here(settings)])
        public_urls, address = settings.public_urls or database.public_urls, url_of(settings)
        elsewhere.append(NamedCheck("discovery", lambda: [there.check_discovery(checked)]))
    is_set = settings is not None and bool(settings.public_urls)
    lines += make_all(
        [
            NamedCheck(
                "service",
                lambda: there.check_service(
                    url or address, token, ca_file, is_given=url is not None
                ),
            ),
            *elsewhere,
            NamedCheck(
                "public_url", lambda: there.check_public_urls(public_urls, ca_file, is_set=is_set)
            ),
        ]
    )
    return lines


def _settings(flags: Mapping[str, Any], config: Path | None) -> tuple[CheckLine, Settings | None]:
    from registry.config import load, resolve

    try:
        settings = load(flags, os.environ, config)
        sources = [each.source for each in resolve(flags, os.environ, config).values()]
        strangers = strangers_named(known_too=False)
    except SettingsError as error:
        return failed("settings", error.detail), None
    given = len([source for source in sources if source != "default"])
    found = f"{counted(given, 'setting')} given, the others as they come."
    if strangers is not None:
        return note("settings", f"{found} {strangers[0].upper()}{strangers[1:]}."), settings
    return ok("settings", found), settings


def _object(line: CheckLine) -> dict[str, str]:
    return {
        "check": line.check,
        "state": line.state,
        "found": line.found,
        "todo": line.todo,
    }
