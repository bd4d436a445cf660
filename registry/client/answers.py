"""What a service answers is checked before anything is done with it: by the same rules as what a
service is asked, field by field, whatever record it is in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from registry.core.records import (
    COUNT_MAX,
    PATH_MAX,
    Lease,
    Owner,
    check_checksum,
    check_filename,
    check_lease,
    check_name,
    check_slug,
    check_suffix,
    shown,
)
from registry.errors import Invalid

T = TypeVar("T")

UNREADABLE = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    ArithmeticError,
    RecursionError,
    Invalid,
)
"""What reading an answer can raise when it is not one of a registry."""


def checked(record: T) -> T:
    """A record that came from outside, with all that is in it.

    Raises:
        Invalid: a field has what no registry would answer.
    """
    if isinstance(record, tuple):
        for each in record:
            checked(each)
    elif isinstance(record, Lease):
        check_lease(record.ttl_ms)
        _check_number("expires_at", record.expires_at)
    elif is_dataclass(record) and not isinstance(record, Owner):
        # An owner checks itself.
        for name, check in _checks(cast(Hashable, type(record))):
            value = getattr(record, name)
            if value is None or isinstance(value, bool):
                continue
            if isinstance(value, int):
                _check_number(name, value)
            elif isinstance(value, str):
                if check is not None:
                    check(value)
            else:
                checked(value)
    return record


def _check_number(name: str, value: int) -> None:
    """Sizes, counts, ids, and times in milliseconds since 1970."""
    if not 0 <= value <= COUNT_MAX:
        raise Invalid(f"{name} is {shown(value)}, which no registry answers.")


def _check_path(value: str) -> None:
    if not 0 < len(value) <= PATH_MAX or "\0" in value:
        raise Invalid(f"path is {shown(value)}, which is none.")


_TEXTS: dict[str, Callable[[str], None]] = {
    "slug": lambda value: check_slug("slug", value),
    "suffix": check_suffix,
    "filename": check_filename,
    "checksum": check_checksum,
    "previous_checksum": check_checksum,
    "registered": check_checksum,
    "offered": check_checksum,
    "worker_name": lambda value: check_name("worker_name", value),
    "path": _check_path,
}


@cache
def _checks(kind: Hashable) -> tuple[tuple[str, Callable[[str], None] | None], ...]:
    return tuple((field.name, _TEXTS.get(field.name)) for field in fields(cast(Any, kind)))
