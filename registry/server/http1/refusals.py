"""Answers of the connection, where no application is asked: what came is no request, or too
much."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus

import httptools

from registry import errors
from registry.server.http import problem, shortage

TOO_MANY_CONNECTIONS = (
    "This service has as many connections open as it bears (max_connections). Try again shortly."
)

log = logging.getLogger("registry.http")


def cause_of(error: httptools.HttpParserError | MemoryError) -> errors.RegistryError:
    """What is wrong where the parser gave up, or where a function that it called raised."""
    cause = error if isinstance(error, MemoryError) else error.__context__
    if isinstance(cause, errors.RegistryError):
        return cause
    if cause is None or isinstance(cause, httptools.HttpParserError):
        return errors.Malformed()
    lacking = shortage(cause)
    if lacking is None:
        log.error("a request failed at its head", exc_info=cause)
    return lacking or errors.Internal()


def raw_answer(
    error: errors.RegistryError,
    request_id: str,
    default_headers: Iterable[tuple[bytes, bytes]],
    *,
    with_body: bool = True,
) -> tuple[int, bytes]:
    """A problem as it is sent, and its status. The connection is closed behind it."""
    response = problem(error, request_id)
    status = response.status_code
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in (*default_headers, *response.raw_headers)]
    lines += [b"x-request-id: " + request_id.encode(), b"connection: close", b""]
    lines += [bytes(response.body) if with_body else b""]
    return status, b"\r\n".join(lines)
