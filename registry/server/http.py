"""Requests in, answers out: bodies within their limits, errors as problems, one status table."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import errors
from registry.content.budget import Room
from registry.core.checks import REQUEST_ID_PATTERN
from registry.core.text import shown
from registry.wire.json_encoding import encode
from registry.wire.problems import problem_of

if TYPE_CHECKING:
    from registry.core.events import Event
    from registry.service.registry import Registry

STATUS: dict[type[errors.RegistryError], int] = {
    errors.Invalid: 422,
    errors.Refused: 422,
    errors.ChecksumMismatch: 422,
    errors.FileUnreadable: 422,
    errors.PathNotAllowed: 403,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.PreconditionFailed: 412,
    errors.RangeNotSatisfiable: 416,
    errors.Conflict: 409,
    errors.ContentMissing: 424,
    errors.LeaseGone: 410,
    errors.Superseded: 410,
    errors.NotRegistered: 404,
    errors.UnknownOwner: 404,
    errors.Unserveable: 503,
    errors.UploadsPending: 429,
    errors.Busy: 503,
    errors.StorageUnavailable: 503,
    errors.DiscoveryUnavailable: 503,
    errors.Internal: 500,
    errors.Unauthenticated: 401,
    errors.ProxyUnauthenticated: 407,
    errors.OriginUnavailable: 502,
    errors.Forbidden: 403,
    errors.Malformed: 400,
    errors.RequestTimeout: 408,
    errors.HeadersTooLarge: 431,
}

RETRY_AFTER_S = {
    errors.UploadsPending: 60,
    errors.StorageUnavailable: 5,
    errors.Unserveable: 5,
    errors.DiscoveryUnavailable: 10,
}
CHALLENGE = 'Bearer realm="metadata-registry"'
PROXY_CHALLENGE = 'Basic realm="metadata-registry", Bearer realm="metadata-registry"'
INVALID_TOKEN = ', error="invalid_token"'
BODIES_MAX_BYTES = 256 << 20
SHORTAGE_RETRY_AFTER_S = 5
PAGE_DEFAULT = 100
PAGE_MAX = 1000

_is_request_id = re.compile(REQUEST_ID_PATTERN.encode()).fullmatch

log = logging.getLogger("registry.http")

T = TypeVar("T")

Headers = list[tuple[bytes, bytes]]
Refuse = Callable[[Scope, errors.RegistryError, str | None], Awaitable[Response]]


def registry_of(request: Request) -> Registry:
    """The service that the application was started with."""
    return cast("Registry", request.state.registry)


def request_id_of(request: Request) -> str | None:
    """The id that the answer and the journal carry."""
    return cast("str | None", request.scope.get("request_id"))


def answer(body: msgspec.Struct, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(encode(body), status, media_type="application/json")


def problem(
    error: errors.RegistryError, request_id: str | None = None, events: list[Event] | None = None
) -> Response:
    """An error as an answer."""
    status = STATUS.get(type(error), 500)
    headers = {"Cache-Control": "no-store"}
    retry_after_s = RETRY_AFTER_S.get(type(error))
    if isinstance(error, errors.Busy):
        retry_after_s = error.retry_after_s
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, errors.MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = CHALLENGE + (INVALID_TOKEN if error.was_given else "")
    if isinstance(error, errors.ProxyUnauthenticated):
        headers["Proxy-Authenticate"] = PROXY_CHALLENGE
    if isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    body = encode(problem_of(error, status, request_id, events))
    return Response(body, status, headers, media_type="application/problem+json")


async def read_json_body(request: Request, limit: int) -> bytes:
    """The body of a request that carries JSON.

    Raises:
        UnsupportedMediaType: it says that it is something else.
        TooLarge: it has more than `limit` bytes.
        Invalid: it ended before it was complete.
        Busy: there is no room for it beside the bodies of other requests.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise errors.UnsupportedMediaType(
            f"The content type is {shown(media_type)}; send the body as application/json."
        )
    parts = []
    bodies: Room = request.state.bodies
    with bodies.share() as share:
        async for part in body_parts(request, limit, "max_body_bytes"):
            parts.append(part)
            share.take(len(part))
            if share.taken_bytes > limit:
                raise errors.TooLarge(f"The body has more than {limit} bytes (max_body_bytes).")
        return b"".join(parts)


def room_for_bodies(limit: int) -> Room:
    """Room for the bodies that are read into memory at the same time, each of at most `limit`."""
    return Room(max(BODIES_MAX_BYTES, 2 * limit), lambda: errors.Busy(_NO_ROOM))


_NO_ROOM = "Too many request bodies are on their way in. Try again shortly."


async def read_optional_json_body(request: Request, limit: int) -> bytes:
    """As `read_json_body`, but a request without a body needs no content type."""
    if request.headers.get("content-length", "0") == "0" and not (
        "transfer-encoding" in request.headers or "content-type" in request.headers
    ):
        return b""
    return await read_json_body(request, limit)


async def body_parts(request: Request, limit: int, setting: str) -> AsyncIterator[bytes]:
    """The body of a request as it comes, refused at once if it says that it is too large.

    Raises:
        TooLarge: the Content-Length is above `limit`.
        Invalid: the body ended before it was complete.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise errors.TooLarge(
            f"The body has {length[:20]} bytes; at most {limit} ({setting}).",
            max_bytes=limit if setting == "max_blob_bytes" else None,
        )
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect as error:
        raise errors.Invalid("The request ended before its body was complete.") from error


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What a look at the registry comes to. Where it has to wait for others, it is given up when
    the client hangs up.

    Raises:
        ClientGone: it did.
    """
    if not registry_of(request).lookups.must_wait:
        return await work
    asked = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientGone
        return asked.result()
    finally:
        asked.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def page_limit(request: Request) -> int:
    """The `limit` of a list: 100 unless given, at most 1000.

    Raises:
        Invalid: it is no number from 1 to 1000.
    """
    text = request.query_params.get("limit", str(PAGE_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= PAGE_MAX:
        raise errors.Invalid(f"limit is {shown(text)}; it must be 1 to {PAGE_MAX}.")
    return int(text)


def check_query(request: Request, *known: str) -> None:
    """Raise Invalid for a query parameter that the call does not know, or that comes twice."""
    if not request.scope["query_string"]:
        return
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            raise errors.Invalid(
                f"There is no query parameter {shown(name)} here; there is "
                f"{', '.join(known) or 'none'}."
            )
        if names.count(name) > 1:
            raise errors.Invalid(f"The query parameter {name} is given twice; give it once.")


class RequestIds:
    """Gives every answer an X-Request-Id, and turns what was raised into a refusal.

    `check` raises what is to be answered instead of asking the application; `refuse` makes an
    answer of an error.
    """

    def __init__(self, app: ASGIApp, check: Callable[[Scope], None], refuse: Refuse) -> None:
        self._app = app
        self._check = check
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = request_id_for(scope["headers"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            pass
        except (Exception, asyncio.CancelledError) as error:
            ours = problem_for(error, request_id)
            if started:
                raise
            scope["problem"] = ours
            refusal = await self._refuse(scope, ours, request_id)
            await refusal(scope, receive, send_with_id)


class ClientGone(Exception):
    """Nobody is there any more to take the answer."""


def problem_for(error: BaseException, request_id: str) -> errors.RegistryError:
    """What is answered where this was raised. What nobody foresaw is logged under the id."""
    if isinstance(error, errors.RegistryError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return errors.StorageUnavailable(
            "The service stops, and did not wait for this request any longer. What it asked for "
            "may have been done; look, or repeat it when the service is back."
        )
    lacking = shortage(error)
    if lacking is not None:
        log.error("request %s failed: %r", request_id, error)
        return lacking
    log.error("request %s failed", request_id, exc_info=error)
    return errors.Internal()


def shortage(error: BaseException) -> errors.RegistryError | None:
    """The refusal where the process itself lacks memory, threads or files for a request; None: the
    error is another."""
    if isinstance(error, MemoryError):
        what = "memory"
    elif isinstance(error, RecursionError):
        what = "room on its stack"
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        what = "threads"
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        what = "memory" if error.errno == errno.ENOMEM else "open files"
    else:
        return None
    return errors.Busy(
        f"The service has not enough {what} for this request now. Try again in a moment; if that "
        "stays so, give it more, or lower max_connections.",
        retry_after_s=SHORTAGE_RETRY_AFTER_S,
    )


def request_id_for(headers: Headers) -> str:
    """The caller's id if it sent one that is fit to be shown, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _is_request_id(value):
            return value.decode("ascii")
    return f"{time.time_ns() // 1_000_000:011x}{_random.getrandbits(36):09x}"


# An id begins with the time, in milliseconds: what is changed together has its place in the index
# of the journal together, and a commit writes one page of it. Nobody is kept out by an id, so none
# has to be hard to guess; asking the system for each took as long as a tenth of a registration.
_random = random.Random()
