"""`metadata-registry serve`. Its flags are made from the settings, so that none can be missing."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from registry.config import SETTINGS, Kind, Setting, load

_types: dict[Kind, tuple[Any, str | None]] = {
    Kind.TEXT: (str | None, "TEXT"),
    Kind.TEXTS: (list[str] | None, "TEXT"),
    Kind.WHOLE: (int | None, "N"),
    Kind.NUMBER: (float | None, "N"),
    Kind.SWITCH: (bool | None, None),
}
"""The type of a flag, and what its help calls the value."""


def serve(config: Path | None = None, **flags: Any) -> None:
    """Serve the registry over HTTP, until SIGINT or SIGTERM.

    An older schema is brought up to date first, after a backup next to the database file. Every
    flag is also a variable (--lease-grace-s is REGISTRY_LEASE_GRACE_S) and a key of the TOML file
    (lease_grace_s); the flag wins over the variable, and that over the file.
    """
    settings = load(flags, os.environ, config)
    from registry.api.server import run

    run(settings)


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )


def _flag(setting: Setting) -> inspect.Parameter:
    rule = setting.rule
    spelling = setting.flag
    if rule.kind is Kind.SWITCH:
        spelling += f"/--no-{spelling.removeprefix('--')}"
    annotation, value = _types[rule.kind]
    option = typer.Option(
        spelling,
        help=f"{rule.help} Default: {setting.default_shown}.",
        metavar="|".join(rule.choices) or value,
        show_default=False,
    )
    return _parameter(setting.name, annotation, option)


_config_option = typer.Option(
    "--config", metavar="FILE", envvar="REGISTRY_CONFIG", help="TOML file with settings."
)
# Typer reads a function's parameters from here.
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_parameter("config", Path | None, _config_option), *map(_flag, SETTINGS)]
)
serve.__annotations__ = {}
