"""What a setting may be, kept with its field."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ValueKind(StrEnum):
    """What a setting's value is."""

    TEXT = "text"
    TEXTS = "texts"
    WHOLE = "whole number"
    NUMBER = "number"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed for a setting, and what it is for. `high` and `low` are inclusive."""

    kind: ValueKind
    help: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    separator: str = os.pathsep
    """What stands between texts in a variable."""


def text_setting(default: str | None, help: str, choices: tuple[str, ...] = ()) -> Any:
    return ruled_setting(default, Rule(ValueKind.TEXT, help, choices=choices))


def whole_setting(default: int, help: str, low: int, high: int) -> Any:
    return ruled_setting(default, Rule(ValueKind.WHOLE, help, low, high))


def number_setting(default: float, help: str, low: float, high: float) -> Any:
    return ruled_setting(default, Rule(ValueKind.NUMBER, help, low, high))


def switch_setting(help: str) -> Any:
    return ruled_setting(False, Rule(ValueKind.SWITCH, help))


def ruled_setting(default: object, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})
