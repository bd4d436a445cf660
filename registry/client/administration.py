"""The calls of those who look after a registry, as those of `protocol`: without I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec

from registry.client.answers import Answer
from registry.client.protocol import Call, reader
from registry.core.checks import check_slug, check_suffix
from registry.core.records import Receipt
from registry.wire.json_encoding import encode
from registry.wire.listings import OwnersResponse
from registry.wire.reports import AuditResponse, LiveResponse, SqlResponse, SweptResponse
from registry.wire.requests import SqlRequest
from registry.wire.responses import ReceiptResponse

S = TypeVar("S", bound=msgspec.Struct)


def remove(slug: str, suffix: str) -> Call[Receipt]:
    """Drop a model's files, whoever holds them."""
    check_slug("slug", slug)
    check_suffix(suffix)
    read = reader(ReceiptResponse, ReceiptResponse.record)
    return Call("DELETE", f"/v1/artifacts/{slug}/{suffix}", read)


def audit(finding: str | None, discovery: bool) -> Call[AuditResponse]:
    """What is wrong, of one class or all; with what the service found in discovery."""
    params = {} if finding is None else {"class": finding}
    params |= {"discovery": "true"} if discovery else {}
    return Call("GET", "/v1/audit", _as_it_is(AuditResponse), params=params)


def rehearse_sweep(release_brake: bool) -> Call[SweptResponse]:
    """Whom a sweep would end now."""
    params = {"release_brake": "true"} if release_brake else {}
    return Call("GET", "/v1/sweep", _as_it_is(SweptResponse), params=params)


def sql(query: str, timeout_s: float, max_rows: int) -> Call[SqlResponse]:
    """What one statement answers that reads."""
    return Call(
        "POST",
        "/v1/sql",
        reader(SqlResponse, _even),
        headers={"content-type": "application/json"},
        body=encode(SqlRequest(query, timeout_s, max_rows)),
    )


@dataclass(frozen=True, slots=True)
class Greeting:
    """The version of a service, and its time in milliseconds, if it says so: whole seconds."""

    version: str
    at: int | None


def greet() -> Call[Greeting]:
    """Whether a registry answers at all. Needs no token."""
    read = reader(LiveResponse, lambda answer: answer.version)
    return Call("GET", "/live", lambda answer: Greeting(read(answer), _date_of(answer)))


def list_nothing() -> Call[None]:
    """A read that costs little: whether reads are allowed."""
    read = reader(OwnersResponse, lambda answer: None)
    return Call("GET", "/v1/owners", read, params={"limit": "1"})


def _date_of(answer: Answer) -> int | None:
    try:
        moment = parsedate_to_datetime(answer.headers["date"])
        return round(moment.timestamp() * 1000)
    except (KeyError, ValueError, OverflowError):
        return None


def _even(answer: SqlResponse) -> SqlResponse:
    """Raise ValueError for rows that are none."""
    for row in answer.rows:
        if len(row) != len(answer.columns):
            raise ValueError("a row does not fit the columns")
    return answer


def _as_it_is(answer_type: type[S]) -> Callable[[Answer], S]:
    return reader(answer_type, lambda answer: answer)
