"""What a setting may be, kept with its field, and how it is spelled wherever it can be given."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from registry.core.environment import PREFIX


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


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting and how it is spelled wherever it can be given."""

    name: str
    default: Any
    rule: Rule

    @property
    def flag(self) -> str:
        """`--lease-grace-s`. A setting with several values is a flag given several times."""
        singular = self.name.removesuffix("s") if self.rule.kind is ValueKind.TEXTS else self.name
        return "--" + singular.replace("_", "-")

    @property
    def variable(self) -> str:
        """`REGISTRY_LEASE_GRACE_S`."""
        return PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """What a value may be, as the end of a sentence that begins `it must be`."""
        rule = self.rule
        match rule.kind:
            case ValueKind.SWITCH:
                return "true or false"
            case ValueKind.WHOLE:
                return f"a whole number from {rule.low} to {rule.high}"
            case ValueKind.NUMBER:
                return f"a number from {rule.low:g} to {rule.high:.10g}"
            case ValueKind.TEXTS:
                return "a list of texts that are not empty"
            case ValueKind.TEXT if rule.choices:
                return "one of " + ", ".join(rule.choices)
            case ValueKind.TEXT:
                return "a text that is not empty"

    @property
    def default_shown(self) -> str:
        """The default as help texts show it."""
        if self.default in (None, ()):
            return "none"
        return (
            str(self.default).lower() if self.rule.kind is ValueKind.SWITCH else str(self.default)
        )


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
