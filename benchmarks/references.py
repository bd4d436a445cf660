"""The ASGI applications that the registry is compared with, under its own uvicorn options.

    python -m benchmarks.references bare FILE       the file's bytes as a constant answer
    python -m benchmarks.references starlette FILE  Starlette's FileResponse of the file

The constant answer carries the headers of the registry's, so that what is compared is the work
behind the answer and not the length of its head.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.core.hashing import checksum_of
from registry.server.process import listen, uvicorn_options


def bare(file: Path) -> ASGIApp:
    """One constant answer to whatever is asked."""
    content = file.read_bytes()
    start: Message = {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"etag", f'"{checksum_of(content)}"'.encode()),
            (b"content-length", str(len(content)).encode()),
            (b"content-type", b"application/json"),
            (b"accept-ranges", b"bytes"),
            (b"cache-control", b"no-cache"),
            (b"x-content-type-options", b"nosniff"),
        ],
    }
    body: Message = {"type": "http.response.body", "body": content}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send(body)

    return application


def starlette(file: Path) -> ASGIApp:
    """The file as Starlette serves files."""

    async def serve(_request: Request) -> Response:
        return FileResponse(file)

    return Starlette(routes=[Route("/{path:path}", serve)])


def main() -> None:
    """Serve until a signal; the first line printed says where."""
    kind, file = sys.argv[1], Path(sys.argv[2])
    application = {"bare": bare, "starlette": starlette}[kind](file)
    listener = listen("127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(application, **{**uvicorn_options(), "lifespan": "off"})
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
