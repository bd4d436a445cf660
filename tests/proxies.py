"""A proxy in front of a real service that loses requests and answers, or makes them wait."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Rule:
    """What happens to requests of a method whose path begins with a prefix.

    `before` is called before the request is forwarded, `after` when the service has answered. With
    `loses_request` it is not forwarded, with `loses_answer` the caller gets none: the connection
    ends. `answer` is given without asking the service; with `drips`, an answer without end is. The
    first `skip` requests pass unharmed, and after `times` more the rule is over.
    """

    method: str
    prefix: str
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    loses_request: bool = False
    loses_answer: bool = False
    answer: Answer | None = None
    drips: bool = False
    skip: int = 0
    times: int = 1 << 30
    met: threading.Event = field(default_factory=threading.Event)


def busy() -> Answer:
    """503 as the service gives it when its write queue is full."""
    problem = {"type": "t", "title": "t", "status": 503, "detail": "busy", "code": "busy"}
    body = json.dumps(problem | {"retry_after_s": 0}).encode()
    return 503, {"content-type": "application/problem+json"}, body


class Proxy:
    """Forwards to `upstream`, which may be changed, and notes what was asked."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.asked: list[tuple[str, str]] = []
        self.rules: list[Rule] = []
        self._ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

            def serve(self) -> None:
                proxy._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def rule(self, rule: Rule) -> Rule:
        """Add a rule; the first that fits is followed."""
        self.rules.append(rule)
        return rule

    def count(self, method: str, prefix: str) -> int:
        return sum(m == method and path.startswith(prefix) for m, path in self.asked)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", "0")))
        self.asked.append((handler.command, handler.path))
        rule = self._find_rule(handler)
        rule.before()
        if rule.drips:
            rule.met.set()
            self._drip(handler)
            return
        answer = rule.answer
        if not rule.loses_request and answer is None:
            answer = self._forward(handler, body)
        rule.after()
        rule.met.set()
        if answer is None or rule.loses_answer:
            handler.close_connection = True
            return
        status, headers, content = answer
        handler.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                handler.send_header(name, value)
        handler.send_header("content-length", headers.get("content-length", str(len(content))))
        handler.end_headers()
        handler.wfile.write(content)

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a byte at a time, for as long as the caller listens."""
        handler.send_response_only(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not self._ended.wait(0.05):
            handler.wfile.write(b" ")

    def _find_rule(self, handler: BaseHTTPRequestHandler) -> Rule:
        for rule in self.rules:
            if rule.method == handler.command and handler.path.startswith(rule.prefix):
                if rule.skip:
                    rule.skip -= 1
                    break
                rule.times -= 1
                if not rule.times:
                    self.rules.remove(rule)
                return rule
        return Rule("", "")

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> Answer | None:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=60)
        try:
            headers = dict(handler.headers.items())
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
