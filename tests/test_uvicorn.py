"""What of uvicorn's is overridden is what it was written against."""

from __future__ import annotations

import hashlib
import inspect
import re
import tomllib
from collections.abc import Iterator

import pytest
import uvicorn

from registry.server.http1.config import Config, Flow
from registry.server.http1.door import Server
from registry.server.http1.ending import EndingConnection
from registry.server.http1.protocol import HttpConnection
from registry.server.process import BoundedServer
from tests.support import ROOT

OURS = (HttpConnection, EndingConnection, Flow, Config, Server, BoundedServer)
READ_AS = {
    "Config.__init__": "98e927ea97a7",
    "FlowControl.resume_reading": "a0429d30857e",
    "HttpToolsProtocol.__init__": "4f0899941034",
    "HttpToolsProtocol._start_asgi_task": "9c08c2571ae9",
    "HttpToolsProtocol.connection_lost": "c91a4c9bf2e2",
    "HttpToolsProtocol.connection_made": "6efb565ff3d3",
    "HttpToolsProtocol.data_received": "010a7ae59a5d",
    "HttpToolsProtocol.eof_received": "5652627579a0",
    "HttpToolsProtocol.on_body": "dba9c32aeba3",
    "HttpToolsProtocol.on_header": "65d62c044f61",
    "HttpToolsProtocol.on_headers_complete": "1ea8589acfad",
    "HttpToolsProtocol.on_message_begin": "96d377fdc7c2",
    "HttpToolsProtocol.on_message_complete": "1fbad42dc31f",
    "HttpToolsProtocol.on_url": "37be44e962b0",
    "HttpToolsProtocol.on_response_complete": "64e254f28e38",
    "Server.__init__": "c150b55284f7",
    "Server.capture_signals": "e1bbcd4770d1",
    "Server.handle_exit": "553276efa26e",
    "Server.run": "239e0133d430",
    "Server.startup": "2aa1d70a244b",
}
"""Each method of uvicorn's that is overridden, and a digest of its text when it was last read."""


def overridden() -> Iterator[tuple[str, str]]:
    for ours in OURS:
        theirs = [each for each in ours.__mro__ if each.__module__.startswith("uvicorn.")]
        for name, value in vars(ours).items():
            base = next((each for each in theirs if name in vars(each)), None)
            if base is not None and inspect.isfunction(value):
                text = inspect.getsource(inspect.unwrap(vars(base)[name]))
                yield f"{base.__qualname__}.{name}", hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(("method", "digest"), sorted(set(overridden())))
def test_a_method_that_is_overridden_is_as_it_was_when_it_was_read(
    method: str, digest: str
) -> None:
    assert READ_AS.get(method) == digest, (
        f"The text of uvicorn's {method} is another than the one that registry/server/http1 was "
        "written against. Read both again, mend ours, then put the new digest here."
    )


def test_no_method_is_named_that_is_not_overridden() -> None:
    assert READ_AS.keys() == {method for method, _ in overridden()}


def test_only_the_minor_version_that_was_read_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    [needed] = [
        each
        for each in tomllib.loads(text)["project"]["dependencies"]
        if each.startswith("uvicorn")
    ]
    major, minor = map(int, uvicorn.__version__.split(".")[:2])
    assert re.search(r"[<>=].*", needed)[0] == f">={major}.{minor},<{major}.{minor + 1}"  # type: ignore[index]
