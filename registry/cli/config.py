"""`metadata-registry config`: the settings as `serve` would take them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from registry.cli.flags import takes_settings
from registry.cli.options import AsJson
from registry.cli.output import print_json
from registry.cli.tables import Column, print_table
from registry.cli.text import without_password
from registry.config import SETTINGS, resolve

app = typer.Typer(
    name="config",
    help="Look at the settings of the service.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _config() -> None:
    pass


@app.command()
@takes_settings
def show(config: Path | None = None, as_json: AsJson = False, **flags: Any) -> None:
    """Show every setting, its value and where that came from.

    Give the flags, the variables and the file that the service is started with. A wrong setting is
    named, as it is when the service starts.
    """
    found = resolve(flags, os.environ, config)
    rows = [
        (name, without_password(value) if isinstance(value, str) else value, each.source)
        for name, each in found.items()
        for value in [each.value]
    ]
    if as_json:
        print_json({name: {"value": value, "source": source} for name, value, source in rows})
        return
    print_table(
        [Column("SETTING"), Column("VALUE", wraps=True), Column("SOURCE")],
        [(name, _shown(value, _SEPARATORS[name]), source) for name, value, source in rows],
    )


_SEPARATORS = {setting.name: setting.rule.separator for setting in SETTINGS}


def _shown(value: object, separator: str) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return separator.join(value) if isinstance(value, tuple) else str(value)
