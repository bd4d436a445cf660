"""`/metrics` and `/health` of a mirror, for Prometheus and for probes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from registry.core import background
from registry.errors import SystemFailure
from registry.mirror.status import MirrorReport

CONNECTIONS_MAX = 32
SILENCE_MAX_S = 5.0
REQUEST_MAX_S = 10.0

Value = int | float


class StatusServer:
    """Answers in threads of its own until it is closed.

    Args:
        report: tells how the mirror is doing.

    Raises:
        SystemFailure: the address cannot be used.
    """

    def __init__(self, host: str, port: int, report: Callable[[], MirrorReport]) -> None:
        def answer(path: str) -> tuple[int, str, str] | None:
            found = report()
            if path == "/health":
                body = json.dumps(health_of(found))
                return (503 if found.problems else 200), "application/json", body
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", metrics_of(found)
            return None

        handler = type("StatusHandler", (_StatusHandler,), {"answer": staticmethod(answer)})
        try:
            self._server = _Listener((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise SystemFailure(
                f"{host}:{port} cannot be listened on: {reason}. Choose another --host or --port."
            ) from None
        shown_host = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown_host}:{self._server.server_port}"
        background.begin(self._server.serve_forever, "registry-mirror-status")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # Whoever sends a byte now and then is sent away as well.
        ending = threading.Timer(REQUEST_MAX_S, self._cut, (request,))
        ending.daemon = True
        ending.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            ending.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone."""

    @staticmethod
    def _cut(request: socket.socket) -> None:
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _StatusHandler(BaseHTTPRequestHandler):
    timeout = SILENCE_MAX_S
    server_version, sys_version = "metadata-registry-mirror", ""

    @staticmethod
    def answer(path: str) -> tuple[int, str, str] | None:
        raise NotImplementedError

    def do_GET(self) -> None:
        found = self.answer(self.path.partition("?")[0])
        status, content_type, body = found or (404, "text/plain", "There is /metrics and /health.")
        content = body.encode()
        self.send_response_only(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Probes are no news."""


def health_of(report: MirrorReport) -> dict[str, Any]:
    """What `/health` says."""
    counts = report.counts
    return {
        "status": "failing" if report.problems else "ok",
        "problems": report.problems,
        "discovery_age_s": _rounded(report.discovery_age_s),
        "registry_age_s": _rounded(report.registry_age_s),
        "cards": counts.cards,
        "mirrored": counts.mirrored,
        "left_alone": counts.left_alone,
        "failed": counts.failed,
        "lingering": counts.lingering,
        "passed_on": counts.passed_on,
        "held_back": report.held_back,
        "revisions": counts.revisions,
        "fetched_files": report.fetched_files,
        "fetched_bytes": report.fetched_bytes,
    }


def metrics_of(report: MirrorReport) -> str:
    """What `/metrics` says, in Prometheus' text format."""
    lines: list[str] = []
    for name, kind, what, value in _metrics(report):
        full = f"metadata_registry_mirror_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} {kind}", f"{full} {_number(value)}"]
    return "\n".join([*lines, ""])


def _metrics(report: MirrorReport) -> list[tuple[str, str, str, Value]]:
    counts = report.counts
    never = float("inf")
    return [
        ("healthy", "gauge", "Whether store and registry answer.", int(not report.problems)),
        ("cards", "gauge", "Live cards that are followed.", counts.cards),
        ("mirrored_cards", "gauge", "Cards whose files the registry holds.", counts.mirrored),
        ("left_alone_cards", "gauge", "Cards of the registry's own workers.", counts.left_alone),
        ("failed_cards", "gauge", "Cards that cannot be mirrored just now.", counts.failed),
        ("lingering_owners", "gauge", "Owners that are kept without a card.", counts.lingering),
        ("passed_on_cards", "gauge", "Cards in the second store.", counts.passed_on),
        ("held_back_owners", "gauge", "Owners that only the brake keeps.", report.held_back),
        ("revisions", "gauge", "Cards whose files conflict with another's.", counts.revisions),
        ("fetched_files_total", "counter", "Files fetched.", report.fetched_files),
        ("fetched_bytes_total", "counter", "Bytes fetched.", report.fetched_bytes),
        ("unlogged_total", "counter", "Log lines for cards that were left out.", report.unsaid),
        (
            *("discovery_age_seconds", "gauge", "Since the store answered last."),
            never if report.discovery_age_s is None else round(report.discovery_age_s, 3),
        ),
        (
            *("registry_age_seconds", "gauge", "Since the registry answered last."),
            never if report.registry_age_s is None else round(report.registry_age_s, 3),
        ),
    ]


def _rounded(age_s: float | None) -> float | None:
    return None if age_s is None else round(age_s, 1)


def _number(value: Value) -> str:
    return "+Inf" if value == float("inf") else str(value)
