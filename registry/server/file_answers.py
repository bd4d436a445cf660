"""The answer to a read of a file: conditions, ranges, headers, then the bytes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from registry import errors
from registry.content.cache import Body
from registry.content.streams import Stream
from registry.server.file_keys import Key
from registry.server.http import ClientGone, Headers
from registry.server.ranges import Range, find_ranges
from registry.store.reads.lookup import Location

SLICE_BYTES = 1 << 20

if TYPE_CHECKING:
    from registry.service.registry import Registry


class Sent:
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


def _not_registered(key: Key) -> errors.NotRegistered:
    return errors.NotRegistered(
        f"{'/'.join(key)} is not registered. GET /v1/artifacts lists what is."
    )


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


def is_plain(headers: Headers) -> bool:
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


async def serve_file(
    registry: Registry,
    key: Key,
    content_type: str,
    location: Location,
    body: Body | Stream | None,
    scope: Scope,
    receive: Receive,
    send: Sent,
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
        location, body = await locate(registry, key)
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


async def _send_not_modified(location: Location, content_type: str, send: Sent) -> None:
    headers = [h for h in _headers(location.checksum, content_type, 0) if h[0] in KEPT_BY_304]
    send.outcome = "not_modified"
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body"})


async def locate(
    registry: Registry, key: Key, begun: Awaitable[Location | None] | None = None
) -> tuple[Location, Body | None]:
    """Where a key's bytes are, and the bytes if they can be had without waiting. `begun` is a
    look-up of it that was begun before."""
    location = await (begun or registry.keys.find(key))
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
