"""HTTP as it is on the wire, for what a client library would hide, repair or refuse to send; and
the checks that tests of the service share."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from registry.core.records import ArtifactKey, Owner
from tests.places import Dump, Place, SQLitePlace, as_place, dump_of
from tests.support import Server

_numbers = itertools.count(1)


def new_slug() -> str:
    """A slug that no other test has, so that tests can share a service."""
    return f"model-{next(_numbers)}"


def worker(
    slug: str, instance_id: int = 1, endpoint: str = "generate", lora_slug: str | None = None
) -> Owner:
    """An owner in the namespace of a slug, so that it is no other test's."""
    return Owner(slug, "backend", endpoint, instance_id, lora_slug)


def key_of(slug: str, filename: str = "config.json", suffix: str = "_base") -> ArtifactKey:
    return ArtifactKey(slug, suffix, filename)


@contextmanager
def running(
    where: Path | Place,
    start: Callable[[Callable[[], Server]], Server] = lambda server: server(),
    **flags: Any,
) -> Iterator[Server]:
    """A service for the tests of a module, on a database or on one that is made in a folder. It is
    checked when they are over."""
    place = where if isinstance(where, Place) else SQLitePlace(where / "registry.db")
    with start(lambda: Server(place, **flags)) as server:
        yield server
    place.assert_sound()
    assert traceback_of(server) == ""


def traceback_of(server: Server, since: int = 0) -> str:
    """The first traceback in the log of a service, from a place in it on: there should be none."""
    return "".join(server.log[since:].partition("Traceback")[1:])[:5000]


def settle(server: Server) -> None:
    """Wait for what earlier requests left to be written: the writer keeps the order."""
    assert server.unregister(Owner("nobody", "nobody", "nobody", 0)).json()["released"] == 0


def rows_of(where: Path | Place) -> Dump:
    """Every row of every table, but the settings, which a running service keeps up to date."""
    return {table: rows for table, rows in dump_of(where).items() if table != "settings"}


def journal(where: Path | Place, *kinds: str, **columns: str) -> list[dict[str, Any]]:
    """The events of these kinds, oldest first, with these values in their columns."""
    with as_place(where).sql() as connection:
        cursor = connection.execute("SELECT * FROM events ORDER BY id")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return [
        row
        for row in rows
        if (not kinds or row["kind"] in kinds)
        and all(row[name] == value for name, value in columns.items())
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came. `complete` is False if the connection was cut within its body."""

    status_code: int
    headers: dict[str, str]
    content: bytes
    complete: bool = True

    def json(self) -> Any:
        return json.loads(self.content)


class Line:
    """One connection: requests go out as they are given, answers are read in order.

    A small `receive_buffer_bytes` makes a slow reader: the service cannot run far ahead of it.
    """

    def __init__(self, server: Server, *, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(60)
        self.socket.connect(server.address)
        self._buffer = b""

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, target: str, *headers: str, method: str = "GET") -> None:
        """Send a request without a body."""
        self.send(request(target, *headers, method=method))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer; its body comes next."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            assert data, f"the connection ended before an answer: {self._buffer!r}"
            self._buffer += data
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header comes twice: {lines}"
        return int(first.split()[1]), headers

    def read(self, length: int) -> bytes:
        """The next bytes of a body; fewer if the connection was cut."""
        parts = [self._buffer[:length]]
        self._buffer = self._buffer[length:]
        missing = length - len(parts[0])
        while missing:
            try:
                part = self.socket.recv(min(missing, 1 << 20))
            except ConnectionResetError:
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def read_answer(self, method: str = "GET") -> Answer:
        """The next whole answer."""
        status, headers = self.read_head()
        length = int(headers.get("content-length", "0"))
        if method == "HEAD" or status == 304:
            length = 0
        content = self.read(length)
        return Answer(status, headers, content, len(content) == length)

    def read_rest(self) -> bytes:
        """What comes until the connection ends."""
        return self.read(1 << 62)


def request(target: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def problem_of(answer: httpx2.Response | Answer, status: int, code: str) -> dict[str, Any]:
    """The problem in an answer, once it is the documented one."""
    found = (answer.status_code, answer.headers["content-type"])
    assert found == (status, "application/problem+json"), answer.content
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert all(isinstance(problem[name], str) and problem[name] for name in TEXTS), problem
    return problem


TEXTS = ("type", "title", "detail")
