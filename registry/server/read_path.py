"""The read path: `GET /v1/metadata/...`, in front of the router.

A request takes one point read, one `lstat` if the file is in place, and prebuilt messages. It
splits the raw path, so that an encoded slash stays inside of its segment.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import errors
from registry.content.cache import Body
from registry.content.streams import Stream
from registry.core.memo import Memo
from registry.core.records import ArtifactKey, Owner
from registry.server.access_log import log as access_log
from registry.server.access_log import tell, tell_refused
from registry.server.auth import Access
from registry.server.http import ClientGone, Headers, problem, problem_for, request_id_for
from registry.server.metrics import UNMATCHED, Metrics, method_label
from registry.server.ranges import Range, find_ranges
from registry.store.reads.lookup import Location

if TYPE_CHECKING:
    from registry.service.registry import Registry

PREFIX = b"/v1/metadata/"
SLICE_BYTES = 1 << 20

MEDIA_TYPES = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "txt": "text/plain; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "jinja": "text/plain; charset=utf-8",
    "jinja2": "text/plain; charset=utf-8",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "toml": "application/toml",
}
"""Content-Type by extension. What is unknown, or could run in a browser, is octet-stream."""

OCTET_STREAM = "application/octet-stream"

log = logging.getLogger("registry.http")

Key = tuple[str, ...]
"""(slug, suffix, filename), or the same behind (namespace, component, endpoint)."""

Path = tuple[Key, str, str]
"""What a raw path names: the key, its Content-Type, and the route."""

READING = ("GET", "HEAD")
REMEMBERED_BYTES = 8 << 20
"""Memory for the paths that files were asked for under."""

ROUTES = {
    3: "/v1/metadata/{slug}/{suffix}/{filename}",
    6: "/v1/metadata/{namespace}/{component}/{endpoint}/{slug}/{suffix}/{filename}",
}
"""The routes by how many segments their keys have."""

OUTCOMES = {"not_registered": "not_registered", "unserveable": "unserveable", "internal": "failed"}
"""How a read that was answered with an error is counted, by the error's code."""


class Serving:
    """Answers GET and HEAD below /v1/metadata/, and passes everything else on."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access: Access) -> None:
        self._app = app
        self._tally = metrics.tally
        self._access = access
        self._asks_all = access.readers_need_token
        self.takes_host = access.hosts.takes
        self._paths: Memo[bytes, Path] = Memo(REMEMBERED_BYTES)
        self._tells_all = access_log.isEnabledFor(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["raw_path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        if self._tells_all:
            send = _Sent(send)
        try:
            self._access.check_host(scope)
            if self._asks_all:
                self._access.admit_reader(scope)
            registry: Registry = scope["state"]["registry"]
            method = scope["method"]
            if method not in READING:
                raise _not_allowed(method)
            if scope["query_string"]:
                raise _no_query()
            raw_path = scope["raw_path"]
            path = self._paths.get(raw_path) or path_of(raw_path)
            location, body = _locate(registry, path[0])
            if raw_path not in self._paths:
                self._paths.keep(raw_path, path, path[0], *path[0])
            await self._answer_with_care(path, location, body, scope, receive, send)
        except ClientGone:
            pass
        except Interrupted as interrupted:
            log.warning("cut off %s: %s", scope["path"], interrupted)
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(error, scope, receive, send)
        else:
            if isinstance(send, _Sent):
                tell(scope, _route_of(scope), send.status, None, level=logging.DEBUG)

    def at_once(
        self, target: bytes, headers: Headers, state: Mapping[str, Any]
    ) -> tuple[bytes, bytes | bytearray] | None:
        """The plain 200 to a GET of a small file that is in memory: its headers and the bytes.

        None: the answer takes more than that, and is given by a call. This is the way of nearly
        every read, so it is short: a look whether anything was committed since, an `lstat` if
        the file is in place, and headers that were put together before.
        """
        path = self._paths.get(target)
        if path is None or not _is_plain(headers):
            return None
        if self._asks_all or self._tells_all:
            return None
        key, content_type, route = path
        registry: Registry = state["registry"]
        try:
            location = registry.find(key)
        except errors.RegistryError:
            return None
        body = registry.ready(location) if location is not None else None
        if body is None or body.size > SLICE_BYTES:
            return None
        self._tally.read(route, "GET", 200, "memory", body.size)
        return plain_headers(body, content_type), body.content

    async def _answer_with_care(
        self,
        path: Path,
        location: Location,
        body: Body | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Everything but a plain 200 of small content that is in memory."""
        key, content_type, route = path
        sent = _Sent(send)
        try:
            await _serve_with_care(
                scope["state"]["registry"], key, content_type, location, body, scope, receive, sent
            )
        except Interrupted:
            sent.outcome = "interrupted"
            raise
        finally:
            if sent.status:
                self._tally.read(route, scope["method"], sent.status, sent.outcome, sent.size)

    async def _fail(self, error: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, under the request's id."""
        request_id = scope["request_id"] = request_id_for(scope["headers"])
        ours = problem_for(error, request_id)
        response, route = problem(ours, request_id), _route_of(scope)
        outcome = OUTCOMES.get(ours.code, "refused")
        self._tally.read(route, method_label(scope["method"]), response.status_code, outcome, 0)
        tell(scope, route, response.status_code, None, error=ours)
        response.headers["X-Request-Id"] = request_id
        await response(scope, receive, send)

    def refused(self, error: errors.RegistryError, status: int, request_id: str) -> None:
        """Count and log what the connection refused."""
        self._tally.requests[UNMATCHED, "other", status] += 1
        tell_refused(error, status, request_id)


def _route_of(scope: Scope) -> str:
    return ROUTES.get(scope["raw_path"].count(b"/", len(PREFIX)) + 1, UNMATCHED)


class _Sent:
    """Passes messages on, and notes what was sent and where the bytes came from."""

    __slots__ = ("_send", "outcome", "size", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.size = 0
        self.outcome = "failed"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)


class Interrupted(Exception):
    """The bytes changed or went while they were sent. The answer is left incomplete, which cuts
    the connection, so that nobody takes what was sent for the whole."""


def _not_allowed(method: str) -> errors.MethodNotAllowed:
    return errors.MethodNotAllowed(
        f"Metadata files are read with GET and HEAD, not {method}. Register them with "
        "POST /v1/registrations.",
        allowed=READING,
    )


def _no_query() -> errors.Invalid:
    return errors.Invalid("A metadata file has no query parameters. Ask for its path alone.")


def _not_registered(key: Key) -> errors.NotRegistered:
    return errors.NotRegistered(
        f"{'/'.join(key)} is not registered. GET /v1/artifacts lists what is."
    )


def path_of(raw_path: bytes) -> Path:
    """What a raw path names.

    Raises:
        NotRegistered: no key can look like this.
    """
    key = split(raw_path)
    return key, media_type(key[-1]), ROUTES[len(key)]


def split(raw_path: bytes) -> Key:
    """The key in a raw path: 3 segments, or 6 with the endpoint in front.

    Raises:
        NotRegistered: no key can look like this.
    """
    rest = raw_path[len(PREFIX) :]
    segments = rest.split(b"/")
    if len(segments) not in (3, 6):
        raise errors.NotRegistered(
            "A metadata file is at /v1/metadata/{slug}/{suffix}/{filename}, or with "
            "{namespace}/{component}/{endpoint} in front of the slug."
        )
    try:
        if b"%" in rest:
            segments = [unquote_to_bytes(segment) for segment in segments]
        key = tuple(segment.decode() for segment in segments)
        ArtifactKey(*key[-3:])
        if len(key) > 3:
            Owner(key[0], key[1], key[2], 0)
    except UnicodeDecodeError as error:
        raise errors.NotRegistered("The path is not UTF-8, as every key is.") from error
    except errors.Invalid as error:
        raise errors.NotRegistered(f"Nothing can be registered under this: {error}") from error
    return key


def media_type(filename: str) -> str:
    """The Content-Type of a file by its extension."""
    _, dot, extension = filename.rpartition(".")
    return MEDIA_TYPES.get(extension.lower(), OCTET_STREAM) if dot else OCTET_STREAM


def plain_headers(body: Body, content_type: str) -> bytes:
    """The headers of a plain 200 as they are sent, put together once for a content and a type."""
    built = body.headers.get(content_type)
    if built is None:
        headers = _headers(body.checksum, content_type, body.size)
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        built = body.headers[content_type] = b"".join([*lines, b"\r\n"])
    return built


def _headers(checksum: str, content_type: str, length: int) -> Headers:
    return [
        (b"etag", b'"' + checksum.encode() + b'"'),
        (b"content-length", str(length).encode()),
        (b"content-type", content_type.encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
    ]


CONDITIONS = frozenset((b"if-match", b"if-none-match", b"if-range", b"range"))
"""The headers that can make an answer other than a plain 200."""

_NOT_PLAIN = CONDITIONS | {b"content-length", b"transfer-encoding", b"expect", b"upgrade"}


def _is_plain(headers: Headers) -> bool:
    # A loop, since `all` with a generator takes four times as long.
    for name, _ in headers:  # noqa: SIM110
        if name in _NOT_PLAIN:
            return False
    return True


def conditions(headers: Headers) -> dict[bytes, str]:
    """The conditions in the headers of a request. Repeated ones are joined."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in CONDITIONS:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


async def _serve_with_care(
    registry: Registry,
    key: Key,
    content_type: str,
    location: Location,
    body: Body | None,
    scope: Scope,
    receive: Receive,
    send: _Sent,
) -> None:
    """Conditions in the order of RFC 9110, section 13.2.2, then the bytes from wherever."""
    wanted = conditions(scope["headers"])
    method = scope["method"]
    while True:
        etag = f'"{location.checksum}"'
        if b"if-match" in wanted and not _names(wanted[b"if-match"], etag, weak=False):
            raise errors.PreconditionFailed
        if b"if-none-match" in wanted and _names(wanted[b"if-none-match"], etag, weak=True):
            await _send_not_modified(location, content_type, send)
            return
        ranges = None
        if method == "GET" and b"range" in wanted and wanted.get(b"if-range", etag).strip() == etag:
            ranges = find_ranges(wanted[b"range"], location.size)
        source = body or await registry.open(key, location, ranges[0][0] if ranges else 0)
        if source is not None:
            break
        location, body = _locate(registry, key)
    send.outcome = _outcome_of(source, was_ready=body is not None)
    client = _Client()
    try:
        if isinstance(source, Body):
            source.pins += 1
        else:
            client.watch(receive)
        if ranges is None:
            headers = _headers(location.checksum, content_type, location.size)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _send_whole(source, method, send, client)
        else:
            await _send_ranges(source, ranges, location, content_type, send, client)
    finally:
        client.leave()
        if isinstance(source, Body):
            source.pins -= 1
        else:
            source.close()


async def _send_not_modified(location: Location, content_type: str, send: _Sent) -> None:
    headers = [h for h in _headers(location.checksum, content_type, 0) if h[0] in KEPT_BY_304]
    send.outcome = "not_modified"
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body"})


def _locate(registry: Registry, key: Key) -> tuple[Location, Body | None]:
    """Where a key's bytes are, and the bytes if they can be had without waiting."""
    location = registry.find(key)
    if location is None:
        raise _not_registered(key)
    return location, registry.ready(location)


class _Client:
    """Tells whether the client is still there, so that nothing is read for one that is not."""

    def __init__(self) -> None:
        self._departure: asyncio.Task[None] | None = None

    def watch(self, receive: Receive) -> None:
        self._departure = asyncio.create_task(_until_gone(receive))

    def check(self) -> None:
        """Raise ClientGone if it is."""
        if self._departure is not None and self._departure.done():
            raise ClientGone

    def leave(self) -> None:
        if self._departure is not None:
            self._departure.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _outcome_of(source: Body | Stream, *, was_ready: bool) -> str:
    if isinstance(source, Body):
        return "memory" if was_ready else "loaded"
    return "streamed"


KEPT_BY_304 = frozenset((b"etag", b"cache-control", b"x-content-type-options"))


def _names(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags names this one, by weak or by strong comparison."""
    if header.strip() == "*":
        return True
    tags = [tag.strip() for tag in header.split(",")]
    return etag in ([tag.removeprefix("W/") for tag in tags] if weak else tags)


async def _send_whole(source: Body | Stream, method: str, send: Send, client: _Client) -> None:
    if method == "HEAD":
        await send({"type": "http.response.body"})
    elif isinstance(source, Body):
        await _send_memory(memoryview(source.content), send)
    else:
        await _stream(source, (0, source.size), send, client)


async def _send_memory(content: memoryview, send: Send, *, more_body: bool = False) -> None:
    """Content in slices, so that it stays pinned until nearly all of it has left."""
    for start in range(0, len(content) or 1, SLICE_BYTES):
        part = content[start : start + SLICE_BYTES]
        more = more_body or start + SLICE_BYTES < len(content)
        await send({"type": "http.response.body", "body": part, "more_body": more})


async def _stream(
    source: Stream, wanted: Range, send: Send, client: _Client, *, more_body: bool = False
) -> None:
    """A range in parts, none of which leaves unless it is right (S12)."""
    offset, end = wanted
    while offset < end:
        client.check()
        part = await _read(source, offset, end)
        offset += len(part)
        more = more_body or offset < end
        await send({"type": "http.response.body", "body": part, "more_body": more})


async def _read(source: Stream, offset: int, end: int) -> bytes:
    try:
        part = await source.read(offset, end)
    except errors.RegistryError as error:
        raise Interrupted(str(error)) from error
    if not part:
        raise Interrupted("the bytes changed, or went, while they were sent")
    return part


async def _send_ranges(
    source: Body | Stream,
    ranges: list[Range],
    location: Location,
    content_type: str,
    send: Send,
    client: _Client,
) -> None:
    size = location.size
    if not ranges:
        raise errors.RangeNotSatisfiable(
            f"The file has {size} bytes; no range that was asked for begins within it.", size=size
        )
    if len(ranges) == 1:
        start, end = ranges[0]
        headers = _headers(location.checksum, content_type, end - start)
        headers.append((b"content-range", f"bytes {start}-{end - 1}/{size}".encode()))
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await _send_range(source, ranges[0], send, client, more_body=False)
        return
    boundary = secrets.token_hex(16)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
        f"Content-Range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode()
        for start, end in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + sum(end - start for start, end in ranges) + len(tail)
    media = f"multipart/byteranges; boundary={boundary}"
    headers = _headers(location.checksum, media, length)
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    for head, wanted in zip(heads, ranges, strict=True):
        await send({"type": "http.response.body", "body": head, "more_body": True})
        await _send_range(source, wanted, send, client, more_body=True)
    await send({"type": "http.response.body", "body": tail})


async def _send_range(
    source: Body | Stream, wanted: Range, send: Send, client: _Client, *, more_body: bool
) -> None:
    if isinstance(source, Body):
        start, end = wanted
        await _send_memory(memoryview(source.content)[start:end], send, more_body=more_body)
    else:
        await _stream(source, wanted, send, client, more_body=more_body)
