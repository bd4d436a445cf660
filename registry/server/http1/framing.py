"""Bodies of requests that ask for another protocol, which is not spoken here.

The parser takes it that such a request is followed by the other protocol, and stops at the end of
its head. Whoever ignores the wish has to read the body nevertheless (RFC 9110, section 7.8), or
would take it for the next request. So a fresh parser reads on, which is told how long the body is.
"""

from __future__ import annotations

from typing import Any

import httptools

from registry.server.http import Headers

_FRAMING = (b"content-length", b"transfer-encoding")


def framing_of(parser: Any, headers: Headers) -> bytes | None:
    """The head of a request without its wish for another protocol, as far as it says how the
    request ends; None: the parser reads on by itself, or nothing follows."""
    if not parser.should_upgrade() or parser.get_method() == b"CONNECT":
        return None
    framing = [(name, value) for name, value in headers if name in _FRAMING]
    if not framing:
        return None
    version = parser.get_http_version().encode()
    lines = [parser.get_method() + b" / HTTP/" + version, b"host: -"]
    lines += [name + b": " + value for name, value in framing]
    lines += [] if parser.should_keep_alive() else [b"connection: close"]
    return b"\r\n".join([*lines, b"", b""])


def make_parser(connection: Any) -> Any:
    """A parser for a connection, as uvicorn makes it: what is pipelined behind the last request
    does not keep that one from being answered."""
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
