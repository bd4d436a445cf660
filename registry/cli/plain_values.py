"""The values of flags and arguments, without what Typer loads to look at them.

Typer (0.26) has pydantic read every parameter of a command, also those that were not given: 12 MiB
that a service would keep for good, and a tenth of a second before every command. Plain values are
read here; whatever is not plain, or not valid, goes to Typer, whose words people know then.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_origin

_NUMBERS = {int: re.compile(r"-?[0-9]{1,18}"), float: re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")}
_NOT_PLAIN = object()


class PlainValues:
    """Reads the values of one parameter, in place of what Typer would make for it."""

    def __init__(self, parameter: Any) -> None:
        self._annotation = parameter.type_descriptor.annotation
        self._info = parameter.type_descriptor.parameter_info
        self._of_typer = parameter.get_runtime_param

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as its type.

        Raises:
            typer.BadParameter: it is not valid; Typer says why.
        """
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        found = self._plain(value)
        return self._of_typer().coerce(value, param, ctx) if found is _NOT_PLAIN else found

    def _plain(self, value: Any) -> Any:
        if self._info.parser is not None:
            return _NOT_PLAIN
        if get_origin(self._annotation) is list:
            if not isinstance(value, list | tuple):
                return _NOT_PLAIN
            (each_is,) = get_args(self._annotation)
            found = [self._plain_one(each, each_is) for each in value]
            return _NOT_PLAIN if _NOT_PLAIN in found else found
        return self._plain_one(value, self._annotation)

    def _plain_one(self, value: Any, kind: Any) -> Any:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is Path and isinstance(value, str | Path) and not self._looks_at_paths():
            return Path(value)
        if kind in _NUMBERS:
            return self._plain_number(value, kind)
        return _NOT_PLAIN

    def _looks_at_paths(self) -> bool:
        it = self._info
        files = (it.exists, it.writable, it.resolve_path, it.allow_dash, it.path_type)
        return any(files) or not (it.readable and it.file_okay and it.dir_okay)

    def _plain_number(self, value: Any, kind: Any) -> Any:
        if isinstance(value, str) and _NUMBERS[kind].fullmatch(value):
            value = kind(value)
        if type(value) is not kind:
            return _NOT_PLAIN
        low, high = self._info.min, self._info.max
        is_within = (low is None or value >= low) and (high is None or value <= high)
        return value if is_within else _NOT_PLAIN


def read_plainly(command: Any) -> Any:
    """Have a command, and those below it, read their plain values here; the command itself."""
    for parameter in command.params:
        _read_here(parameter)
    make_help = command.get_help_option
    command.get_help_option = lambda context: _read_here(make_help(context))
    for each in getattr(command, "commands", {}).values():
        read_plainly(each)
    return command


def _read_here(parameter: Any) -> Any:
    if parameter is not None and "get_runtime_param" not in vars(parameter):
        values = PlainValues(parameter)
        parameter.get_runtime_param = lambda: values
    return parameter
