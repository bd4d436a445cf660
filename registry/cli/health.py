"""`metadata-registry health`: for probes that run a command, and for people."""

from __future__ import annotations

import typer

from registry.cli.exit_codes import REFUSED
from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url
from registry.cli.output import print_json
from registry.cli.tables import Column, print_table

PATIENCE_S = 10.0
"""More than the service gives its own checks."""


def health(
    url: Url = DEFAULT_URL, token: Token = None, ca_file: CaFile = None, as_json: AsJson = False
) -> None:
    """Ask a service whether it can do its work.

    Exit 0: it can, warnings or not. 1: one of its checks fails. 2: it does not answer. It is asked
    once, so that a probe gets what is so now.
    """
    from registry.client.client import RegistryClient
    from registry.client.retries import RetryPolicy

    once = RetryPolicy(attempts=1)
    with RegistryClient(
        url, token=token, ca_file=ca_file, timeout_s=PATIENCE_S, retries=once
    ) as client:
        found = client.health()
    if as_json:
        print_json(found)
    else:
        rows = [*found.checks.items(), *((f"warning {n}", s) for n, s in found.warnings.items())]
        print_table([Column("CHECK"), Column("STATE", runs_on=True)], rows)
        print(f"\n{found.status}")
    if found.status != "ok":
        raise typer.Exit(REFUSED)
