"""Flags made from the settings, so that none can be missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from registry.config import SETTINGS
from registry.core.setting_rules import Setting, ValueKind

_types: dict[ValueKind, tuple[Any, str | None]] = {
    ValueKind.TEXT: (str | None, "TEXT"),
    ValueKind.TEXTS: (list[str] | None, "TEXT"),
    ValueKind.WHOLE: (int | None, "N"),
    ValueKind.NUMBER: (float | None, "N"),
    ValueKind.SWITCH: (bool | None, None),
}
"""The type of a flag, and what its help calls the value."""

_config_option = typer.Option(
    "--config", metavar="FILE", envvar="REGISTRY_CONFIG", help="TOML file with settings."
)


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and a flag for every setting, and the parameters of its own."""
    own = [
        each
        for each in inspect.signature(command, eval_str=True).parameters.values()
        if each.name != "config" and each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [_parameter("config", Path | None, _config_option), *map(_flag, SETTINGS)]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    # Typer reads a function's parameters from here.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


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
    if rule.kind is ValueKind.SWITCH:
        spelling += f"/--no-{spelling.removeprefix('--')}"
    annotation, value = _types[rule.kind]
    option = typer.Option(
        spelling,
        help=f"{rule.help} Default: {setting.default_shown}.",
        metavar="|".join(rule.choices) or value,
        show_default=False,
    )
    return _parameter(setting.name, annotation, option)
