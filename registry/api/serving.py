"""The read path: `GET /v1/metadata/...`, in front of the router.

A request takes one point read, one `lstat` if the file is in place, and prebuilt messages. It
splits the raw path, so that an encoded slash stays inside of its segment.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import errors
from registry.api.http import problem
from registry.api.ranges import Range, find_ranges
from registry.contents import Body
from registry.db.locator import Location
from registry.holdings import CHUNK_BYTES, Hasher, Stream

if TYPE_CHECKING:
    from registry.service import Registry

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

Headers = list[tuple[bytes, bytes]]


class Serving:
    """Answers GET and HEAD below /v1/metadata/, and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["raw_path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            await _serve(scope["state"]["registry"], scope, send)
        except errors.RegistryError as error:
            await problem(error)(scope, receive, send)
        except Interrupted as interrupted:
            log.warning("cut off %s: %s", scope["path"], interrupted)
        except Exception:
            log.exception("GET of %s failed", scope["path"])
            await problem(errors.Internal())(scope, receive, send)


class Interrupted(Exception):
    """The bytes changed or went while they were sent. The answer is left incomplete, which cuts
    the connection, so that nobody takes what was sent for the whole."""


async def _serve(registry: Registry, scope: Scope, send: Send) -> None:
    method = scope["method"]
    if method != "GET" and method != "HEAD":
        raise errors.MethodNotAllowed(
            f"Metadata files are read with GET and HEAD, not {method}. Register them with "
            "POST /v1/registrations.",
            allowed=("GET", "HEAD"),
        )
    key = split(scope["raw_path"])
    location = registry.find(key)
    if location is None:
        raise errors.NotRegistered(
            f"{'/'.join(key)} is not registered. GET /v1/artifacts lists what is."
        )
    body = registry.ready(location)
    wanted = conditions(scope["headers"])
    if wanted is None and body is not None and len(body.content) <= SLICE_BYTES:
        start, whole = whole_answer(body, media_type(key[-1]))
        await send(start)
        await send(whole)
        return
    await _serve_with_care(registry, key, location, body, wanted or {}, scope, send)


def split(raw_path: bytes) -> tuple[str, ...]:
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
        return tuple(segment.decode() for segment in segments)
    except UnicodeDecodeError as error:
        raise errors.NotRegistered("The path is not UTF-8, as every key is.") from error


def media_type(filename: str) -> str:
    """The Content-Type of a file by its extension."""
    _, dot, extension = filename.rpartition(".")
    return MEDIA_TYPES.get(extension.lower(), OCTET_STREAM) if dot else OCTET_STREAM


def whole_answer(body: Body, content_type: str) -> tuple[Message, Message]:
    """The two messages of a plain 200, built once for a content and a type."""
    built = body.answers.get(content_type)
    if built is None:
        headers = _headers(body.checksum, content_type, len(body.content))
        built = body.answers[content_type] = (
            {"type": "http.response.start", "status": 200, "headers": headers},
            {"type": "http.response.body", "body": body.content},
        )
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


def conditions(headers: Headers) -> dict[bytes, str] | None:
    """The headers that make an answer other than a plain 200, or None. Repeated ones are joined."""
    found: dict[bytes, str] | None = None
    for name, value in headers:
        if name in CONDITIONS:
            found = found if found is not None else {}
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


async def _serve_with_care(
    registry: Registry,
    key: tuple[str, ...],
    location: Location,
    body: Body | None,
    wanted: dict[bytes, str],
    scope: Scope,
    send: Send,
) -> None:
    """Conditions in the order of RFC 9110, section 13.2.2, then the bytes from wherever."""
    etag = f'"{location.checksum}"'
    if b"if-match" in wanted and not _names(wanted[b"if-match"], etag, weak=False):
        raise errors.PreconditionFailed
    content_type = media_type(key[-1])
    if b"if-none-match" in wanted and _names(wanted[b"if-none-match"], etag, weak=True):
        headers = [h for h in _headers(location.checksum, content_type, 0) if h[0] in KEPT_BY_304]
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body"})
        return
    source = body or await registry.open(key, location)
    try:
        if isinstance(source, Body):
            source.pins += 1
        ranges = None
        same = wanted.get(b"if-range", etag).strip() == etag
        if scope["method"] == "GET" and b"range" in wanted and same:
            ranges = find_ranges(wanted[b"range"], location.size)
        if ranges is None:
            headers = _headers(location.checksum, content_type, location.size)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _send_whole(source, scope["method"], send)
        else:
            await _send_ranges(source, ranges, location, content_type, send)
    finally:
        if isinstance(source, Body):
            source.pins -= 1
        else:
            source.close()


KEPT_BY_304 = frozenset((b"etag", b"cache-control", b"x-content-type-options"))


def _names(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags names this one, by weak or by strong comparison."""
    if header.strip() == "*":
        return True
    tags = [tag.strip() for tag in header.split(",")]
    return etag in ([tag.removeprefix("W/") for tag in tags] if weak else tags)


async def _send_whole(source: Body | Stream, method: str, send: Send) -> None:
    if method == "HEAD":
        await send({"type": "http.response.body"})
    elif isinstance(source, Body):
        await _send_memory(memoryview(source.content), send)
    else:
        await _stream(source, (0, source.size), send, hasher=Hasher())


async def _send_memory(content: memoryview, send: Send, *, more_body: bool = False) -> None:
    """Content in slices, so that it stays pinned until nearly all of it has left."""
    for start in range(0, len(content) or 1, SLICE_BYTES):
        part = content[start : start + SLICE_BYTES]
        more = more_body or start + SLICE_BYTES < len(content)
        await send({"type": "http.response.body", "body": part, "more_body": more})


async def _stream(
    source: Stream,
    wanted: Range,
    send: Send,
    *,
    hasher: Hasher | None = None,
    more_body: bool = False,
) -> None:
    """A range in chunks. The last one leaves only if nothing changed meanwhile (S12)."""
    offset, end = wanted
    while True:
        part = await _read(source, offset, min(CHUNK_BYTES, end - offset))
        offset += len(part)
        if hasher is not None:
            hasher.update(part)
        if offset == end:
            break
        await send({"type": "http.response.body", "body": part, "more_body": True})
    wrong = hasher is not None and hasher.checksum != source.checksum
    if wrong or not await source.unchanged():
        raise Interrupted("the bytes changed while they were sent")
    await send({"type": "http.response.body", "body": part, "more_body": more_body})


async def _read(source: Stream, offset: int, length: int) -> bytes:
    try:
        part = await source.read(offset, length)
    except (errors.RegistryError, OSError) as error:
        raise Interrupted(str(error)) from error
    if not part:
        raise Interrupted("the bytes went while they were sent")
    return part


async def _send_ranges(
    source: Body | Stream, ranges: list[Range], location: Location, content_type: str, send: Send
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
        await _send_range(source, ranges[0], send, more_body=False)
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
        await _send_range(source, wanted, send, more_body=True)
    await send({"type": "http.response.body", "body": tail})


async def _send_range(source: Body | Stream, wanted: Range, send: Send, *, more_body: bool) -> None:
    if isinstance(source, Body):
        start, end = wanted
        await _send_memory(memoryview(source.content)[start:end], send, more_body=more_body)
    else:
        await _stream(source, wanted, send, more_body=more_body)
