"""What is looked at: a database that is opened here, or a service that is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from registry.errors import Usage

if TYPE_CHECKING:
    from registry.client.client import RegistryClient
    from registry.store.engine import Engine


@contextmanager
def opened(database_url: str, *, to_write: bool = False) -> Iterator[Engine]:
    """The database, if it is one that this program can work with. It is not upgraded."""
    from registry.store.opening import open_for_command

    database = open_for_command(database_url, to_write=to_write)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def asked(
    context: typer.Context, url: str, token: str | None, ca_file: str | None, *others: str
) -> Iterator[RegistryClient]:
    """The service at a URL. `others` are the parameters that are for a database only, beside the
    database's URL.

    Raises:
        Usage: one of them is on the command line.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and parameter.name in ("database_url", *others):
            raise Usage(
                f"{parameter.opts[0]} is for a database that is opened here, and --url asks a "
                "service. Leave one of them out."
            )
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        yield client
