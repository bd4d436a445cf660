"""A small server of one model's files that answers like a registry, or as badly as a test wants."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote

from registry.core.hashing import checksum_of
from registry.core.listings import Entry
from registry.core.records import ArtifactKey
from registry.wire.json_encoding import encode
from registry.wire.listings import ArtifactsResponse, EntryResponse

SLUG = "tiny"

Manner = Callable[["Request"], None]
"""How a file is answered for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a file."""

    filename: str
    range: str | None
    token: str | None


class Request:
    """A request for a file, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, content: bytes, asked: Asked) -> None:
        self.handler = handler
        self.content = content
        self.asked = asked

    @property
    def start(self) -> int:
        """The first byte that is wanted."""
        found = re.fullmatch(r"bytes=(\d+)-", self.asked.range or "bytes=0-")
        assert found is not None
        return int(found[1])

    def head(self, status: int, **headers: str | int) -> None:
        self.handler.send_response_only(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def send(self, content: bytes) -> None:
        self.handler.wfile.write(content)

    def cut(self) -> None:
        """End the connection."""
        self.handler.close_connection = True


def well(request: Request) -> None:
    """As a registry: with ETag and Range."""
    begin(request)
    request.send(request.content[request.start :])


def begin(request: Request) -> None:
    """The head of a good answer."""
    content, start = request.content, request.start
    etag = f'"{checksum_of(content)}"'
    if start:
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.head(206, ETag=etag, Content_Length=len(content) - start, Content_Range=span)
    else:
        request.head(200, ETag=etag, Content_Length=len(content))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class FileServer:
    """Serves `contents` under the slug `tiny`. `manners` say how, by file name."""

    def __init__(
        self, contents: Mapping[str, bytes], manners: Mapping[str, Manner] | None = None
    ) -> None:
        self.asked: list[Asked] = []
        self.manners = dict(manners or {})
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path.startswith("/v1/artifacts?"):
                    server._list(self, contents)
                    return
                filename = unquote(self.path.rpartition("/")[2])
                asked = Asked(filename, self.headers["range"], self.headers["authorization"])
                server.asked.append(asked)
                manner = server.manners.get(filename, well)
                manner(Request(self, contents.get(filename, b""), asked))

        self._server = _Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def times(self, filename: str) -> int:
        """How often a file was asked for."""
        return sum(asked.filename == filename for asked in self.asked)

    def _list(self, handler: BaseHTTPRequestHandler, contents: Mapping[str, bytes]) -> None:
        entries = [
            Entry(
                number,
                ArtifactKey(SLUG, "_base", name),
                checksum_of(content),
                len(content),
                generation=1,
                created_at=0,
                updated_at=0,
                holders=1,
            )
            for number, (name, content) in enumerate(contents.items())
        ]
        answer = ArtifactsResponse([EntryResponse.of(entry) for entry in entries], None)
        body = encode(answer)
        handler.send_response_only(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def __enter__(self) -> FileServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
