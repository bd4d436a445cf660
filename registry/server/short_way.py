"""The short way to changes that workers ask for all the time, past scope, router and layers.

A registration or a renewal is little work. To make what an ASGI application is asked with, to be
asked by a router that tries one route after the other, and to pass through the layers that give
ids, count and catch took longer than the change itself. What is asked for here is plain: a small
body that says how long it is, of no browser, without a query. Everything else goes the long way,
where the same handlers are asked, with the same rules: admission, ids, counts and the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from registry.errors import RegistryError
from registry.server.access_log import tell_call
from registry.server.auth import Access, role_needed
from registry.server.changes import ChangeRequest, Changing
from registry.server.http import Headers, problem, problem_for, request_id_for
from registry.server.metrics import Metrics
from registry.server.openapi.spec import RequestSpec
from registry.server.tokens import Role
from registry.wire.json_encoding import encode

if TYPE_CHECKING:
    from registry.service.registry import Registry

BODY_BYTES = 16 << 10
"""Larger bodies are read by the application, which makes room for them."""

JSON = b"application/json"
LONG_WAY = frozenset(
    {b"expect", b"origin", b"sec-fetch-site", b"transfer-encoding", b"trailer", b"upgrade"}
)
"""Headers of requests that are not plain."""

_ODD = (b"%", b"?", b"#")
"""What makes a target more than a path as it stands."""


class ShortWay:
    """Knows which requests may go it, and begins with them."""

    def __init__(self, calls: Iterable[RequestSpec], access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics
        self._routes: dict[tuple[str, int], list[ShortRoute]] = {}
        """By the method, and by how many slashes the path has."""
        for call in calls:
            if isinstance(call.handler, Changing):
                key = call.method, call.path.count("/")
                self._routes.setdefault(key, []).append(ShortRoute(call, call.handler))

    def take(
        self, method: bytes, target: bytes, headers: Headers, state: Mapping[str, Any]
    ) -> ShortChange | None:
        """The change that a request asks for, of which the head has come.

        None: it has to go the long way, or is refused there.
        """
        named = self._route_of(method.decode("ascii"), target)
        registry: Registry = state["registry"]
        if named is None or not _is_plain(headers, named[0], registry.settings.max_body_bytes):
            return None
        route, parameters = named
        try:
            grant = self._access.admit({"headers": headers}, route.role)
            if "namespace" in parameters:
                grant.check_namespace(parameters["namespace"])
        except RegistryError:
            return None
        call = ChangeRequest(registry, grant, request_id_for(headers), parameters)
        return ShortChange(route, target, call, self._metrics)

    def _route_of(self, method: str, target: bytes) -> tuple[ShortRoute, Mapping[str, str]] | None:
        routes = self._routes.get((method, target.count(b"/")))
        if routes is None or not target.isascii() or any(odd in target for odd in _ODD):
            return None
        parts = target.decode("ascii").split("/")
        for route in routes:
            parameters = route.match(parts)
            if parameters is not None:
                return route, parameters
        return None


def _is_plain(headers: Headers, route: ShortRoute, body_max: int) -> bool:
    """Whether a request has nothing that is looked at on the long way only."""
    size, kind = b"0", None
    for name, value in headers:
        if name in LONG_WAY:
            return False
        if name == b"content-length":
            size = value
        elif name == b"content-type":
            if value != JSON:
                return False
            kind = value
    if not route.has_body:
        return size == b"0"
    return kind is not None and size.isdigit() and int(size[:9]) <= min(BODY_BYTES, body_max)


class ShortRoute:
    """A route of the table, as it is found here."""

    __slots__ = ("_literals", "_names", "change", "has_body", "method", "path", "role")

    def __init__(self, call: RequestSpec, handler: Changing) -> None:
        parts = call.path.split("/")
        self._literals = [(i, part) for i, part in enumerate(parts) if not part.startswith("{")]
        self._names = [(i, part[1:-1]) for i, part in enumerate(parts) if part.startswith("{")]
        self.change = handler.change
        self.has_body = handler.has_body
        self.method = call.method
        self.path = call.path
        self.role: Role | None = role_needed(call.method, call.path)

    def match(self, parts: list[str]) -> Mapping[str, str] | None:
        """The parts of a path by name, or None: it is not of this route."""
        for index, literal in self._literals:
            if parts[index] != literal:
                return None
        parameters = {name: parts[index] for index, name in self._names}
        return parameters if all(parameters.values()) else None


class ShortChange:
    """A change that was asked for. See `http1.config.AskedChange`."""

    __slots__ = (
        "_began",
        "_call",
        "_metrics",
        "_refusal",
        "_route",
        "_seconds",
        "_status",
        "_target",
    )

    def __init__(
        self, route: ShortRoute, target: bytes, call: ChangeRequest, metrics: Metrics
    ) -> None:
        self._route = route
        self._target = target
        self._call = call
        self._metrics = metrics
        self._began = time.perf_counter()
        self._seconds = 0.0
        self._status = 0
        self._refusal: RegistryError | None = None

    async def answer(self, body: bytes | bytearray) -> tuple[int, bytes, bytes]:
        """Make the change: the status, the headers and the body of the answer."""
        route, call = self._route, self._call
        request_id = call.request_id or ""
        try:
            call.body = body
            status, content = 200, encode(await route.change(call))
            headers = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(content)
        except (Exception, asyncio.CancelledError) as error:
            self._refusal = problem_for(error, request_id)
            response = problem(self._refusal, request_id)
            status, content = response.status_code, bytes(response.body)
            headers = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._status, self._seconds = status, time.perf_counter() - self._began
        return status, headers + b"x-request-id: %b\r\n" % request_id.encode(), content

    def tell(self) -> None:
        """Count it and log it, now that its caller waits no more."""
        route, call = self._route, self._call
        if self._status:
            self._metrics.answered(route.path, route.method, self._status, self._seconds)
            tell_call(
                route.method,
                self._target,
                route.path,
                self._status,
                self._seconds,
                self._refusal,
                call.request_id or "",
                call.actor,
            )
