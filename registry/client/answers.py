"""What a service answers is checked before anything is done with it: by the same rules as what a
service is asked, field by field, whatever record it is in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from registry import errors
from registry.core.checks import (
    COUNT_MAX,
    PATH_MAX,
    check_checksum,
    check_filename,
    check_lease,
    check_name,
    check_slug,
    check_suffix,
)
from registry.core.records import Lease, Owner
from registry.core.text import shown, shown_url
from registry.errors import Invalid
from registry.wire.problems import read_problem

T = TypeVar("T")

DETAIL_MAX = 2000
"""Characters of a message of the service."""
RETRY_AFTER_MAX_S = 3600

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
    if isinstance(record, tuple | list):
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
    "base_slug": lambda value: check_slug("base_slug", value),
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
    return tuple((each.name, _TEXTS.get(each.name)) for each in fields(cast(Any, kind)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered, its body read whole.

    `via` is a sentence about the proxy that it may have come from, if there is one.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    via: str = ""


def error_of(answer: Answer) -> errors.RegistryError:
    """The error that an answer outside of 200 to 299 stands for."""
    if 300 <= answer.status < 400:
        return errors.ServiceUnreachable(
            f"The service sends callers on to {_location(answer)} ({answer.status}). Use that "
            f"address as --url.{answer.via}"
        )
    error = _problem_of(answer)
    if type(error) is not errors.RegistryError:
        return error
    if answer.status == 503:
        return errors.Busy(f"{errors.Busy().detail}{answer.via}")
    if answer.status in (502, 504):
        return errors.ServiceUnreachable(
            f"A proxy in front of the service answered {answer.status}.{answer.via} Check that the "
            "service behind it runs."
        )
    return error


def _location(answer: Answer) -> str:
    return shown_url(answer.headers.get("location", "nowhere"))[:DETAIL_MAX]


def _problem_of(answer: Answer) -> errors.RegistryError:
    """The error that a body says, as far as its status lets it be believed."""
    try:
        error = read_problem(answer.body, answer.status)
        if isinstance(error, errors.Conflict):
            checked(error.conflicts)
        if isinstance(error, errors.ContentMissing):
            for checksum in error.missing:
                check_checksum(checksum)
    except UNREADABLE:
        return errors.RegistryError(
            f"The service answered {answer.status}, and nothing that can be read.{answer.via}"
        )
    detail = error.detail
    if len(detail) > DETAIL_MAX:
        detail = detail[:DETAIL_MAX] + "..."
    is_refusal_of_a_failure = answer.status >= 500 and not isinstance(error, _FAILURES)
    if is_refusal_of_a_failure or isinstance(error, _OURS) or type(error) is errors.RegistryError:
        return errors.RegistryError(detail + answer.via)
    if isinstance(error, errors.Busy):
        error.retry_after_s = max(0, min(error.retry_after_s, RETRY_AFTER_MAX_S))
    error.detail, error.args = detail, (detail,)
    return error


_FAILURES = (errors.Busy, errors.Internal, errors.StorageUnavailable, errors.Unserveable)
"""What a status of 500 and above can mean. It says nothing of the request, so that nobody acts on
a refusal that comes with one."""

_OURS = (
    errors.DatabaseRefused,
    errors.DiscoveryUnavailable,
    errors.ServiceUnreachable,
    errors.SettingsError,
    errors.WrongProcess,
)
"""What only this side can say."""


def understood(answer: Answer, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except UNREADABLE as error:
        raise errors.ServiceUnreachable(
            "What answers there is no metadata registry, or one of another version: "
            f"{str(error)[:DETAIL_MAX]}{answer.via}"
        ) from None
