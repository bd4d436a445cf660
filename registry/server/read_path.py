"""The read path: `GET /v1/metadata/...`, in front of the router.

A request takes one point read, one `lstat` if the file is in place, and prebuilt messages. It
splits the raw path, so that an encoded slash stays inside of its segment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from registry import errors
from registry.content.cache import Body
from registry.content.streams import Stream
from registry.core.memo import Memo
from registry.server.access_log import log as access_log
from registry.server.access_log import tell, tell_refused
from registry.server.auth import Access
from registry.server.file_answers import (
    SLICE_BYTES,
    Interrupted,
    Sent,
    is_plain,
    locate,
    plain_headers,
    serve_file,
)
from registry.server.file_keys import PREFIX, ROUTES, Path, path_of
from registry.server.http import ClientGone, Headers, problem, problem_for, request_id_for
from registry.server.metrics import UNMATCHED, Metrics, method_label
from registry.server.proxy.refusals import not_a_proxy, target_of
from registry.server.short_way import ShortWay
from registry.store.reads.lookup import GroupLocator, Location

if TYPE_CHECKING:
    from registry.server.proxy.proxy import FileProxy
    from registry.service.registry import Registry
log = logging.getLogger("registry.http")
READING = ("GET", "HEAD")
PROXIED = "proxy"
"""The route of requests for URLs of others, in metrics and in the log."""

REMEMBERED_BYTES = 8 << 20
"""Memory for the paths that files were asked for under."""

VAIN_BYTES = 2 << 20
"""The same for those that were asked for in vain, of which there is no end."""

OUTCOMES = {"not_registered": "not_registered", "unserveable": "unserveable", "internal": "failed"}
"""How a read that was answered with an error is counted, by the error's code."""


Plain = tuple[bytes, bytes | bytearray]
"""The headers and the bytes of a 200."""


class Serving:
    """Answers GET and HEAD below /v1/metadata/, and passes everything else on."""

    def __init__(
        self,
        app: ASGIApp,
        short_way: ShortWay,
        metrics: Metrics,
        access: Access,
        proxy: FileProxy | None = None,
    ) -> None:
        self._app = app
        self._proxy = proxy
        self.take = short_way.take
        self._tally = metrics.tally
        self._access = access
        self._asks_all = access.readers_need_token
        self.takes_host = access.hosts.takes
        self.owns_authority = access.hosts.owns
        self._paths: Memo[bytes, Path] = Memo(REMEMBERED_BYTES)
        self._vain: Memo[bytes, Path] = Memo(VAIN_BYTES)
        self._tells_all = access_log.isEnabledFor(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_foreign = "foreign_url" in scope
        if not is_foreign and (scope["type"] != "http" or not scope["raw_path"].startswith(PREFIX)):
            await self._app(scope, receive, send)
            return
        if self._tells_all:
            send = Sent(send)
        try:
            await (self._pass_on if is_foreign else self._serve)(scope, receive, send)
        except ClientGone:
            pass
        except Interrupted as interrupted:
            log.warning("cut off %s: %s", scope["path"], interrupted)
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(error, scope, receive, send)
        else:
            if isinstance(send, Sent):
                tell(scope, _route_of(scope), send.status, None, level=logging.DEBUG)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file that is held here."""
        self._access.check_host(scope)
        if self._asks_all:
            self._access.admit_reader(scope)
        registry: Registry = scope["state"]["registry"]
        method = scope["method"]
        if method not in READING:
            raise _not_allowed(method)
        if scope["query_string"]:
            raise _no_query()
        raw_path = scope["raw_path"]
        path = self._paths.get(raw_path) or self._path_of(raw_path)
        soon: _Soon | None = scope.pop("soon", None)
        location, body = await locate(registry, path[0], None if soon is None else soon.location())
        if raw_path not in self._paths:
            self._paths.keep(raw_path, path, path[0], *path[0])
        await self._answer(path, location, body, scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file of the worker whose URL was asked for."""
        scope["path"] = target_of(scope)  # For the log.
        if self._proxy is None:
            raise not_a_proxy(scope)
        address = self._proxy.admit(scope)
        registry: Registry = scope["state"]["registry"]
        key, content_type, _ = path_of(scope["raw_path"])
        location, source = await self._proxy.find(address, key, registry)
        try:
            path = (key, content_type, PROXIED)
            await self._answer(path, location, source, scope, receive, send)
        finally:
            if isinstance(source, Stream):
                source.close()

    def at_once(
        self, target: bytes, headers: Headers, state: Mapping[str, Any]
    ) -> Plain | _Soon | None:
        """The plain 200 to a GET of a small file that is in memory: its headers and the bytes; or,
        where a look-up has to be waited for, what will have it.

        None: the answer takes more than that, and is given by a call. This is the way of nearly
        every read, so it is short: a look whether anything was committed since, or a part in a
        query, an `lstat` if the file is in place, and headers that were put together before.
        """
        path = self._paths.get(target)
        if path is None or not is_plain(headers):
            return None
        if self._asks_all or self._tells_all:
            return None
        registry: Registry = state["registry"]
        if registry.keys.together is not None:
            return _Soon(self, path, registry, registry.keys.together)
        locator = registry.keys.at_once
        if locator is None:
            return None
        try:
            location = locator.find(path[0])
        except errors.RegistryError:
            return None
        return None if location is None else self.plain(path, location, registry)

    def plain(self, path: Path, location: Location, registry: Registry) -> Plain | None:
        """The plain 200 to a GET of located content, if that is small and in memory."""
        _, content_type, route = path
        body = registry.ready(location)
        if body is None or body.size > SLICE_BYTES:
            return None
        self._tally.read(route, "GET", 200, "memory", body.size)
        return plain_headers(body, content_type), body.content

    def _path_of(self, raw_path: bytes) -> Path:
        """What a raw path names under which nothing was found so far."""
        path = self._vain.get(raw_path)
        if path is None:
            path = path_of(raw_path)
            self._vain.keep(raw_path, path, path[0], *path[0])
        return path

    async def _answer(
        self,
        path: Path,
        location: Location,
        body: Body | Stream | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Everything but a plain 200 of small content that is in memory."""
        key, content_type, route = path
        sent = Sent(send)
        try:
            await serve_file(
                scope["state"]["registry"], key, content_type, location, body, scope, receive, sent
            )
        except Interrupted:
            sent.outcome = "interrupted"
            raise
        finally:
            if sent.status:
                self._tally.read(route, scope["method"], sent.status, sent.outcome, sent.size)

    async def _fail(self, error: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, under the request's id."""
        request_id = scope["request_id"] = request_id_for(scope["headers"])
        ours = problem_for(error, request_id)
        response, route = problem(ours, request_id), _route_of(scope)
        outcome = OUTCOMES.get(ours.code, "refused")
        self._tally.read(route, method_label(scope["method"]), response.status_code, outcome, 0)
        tell(scope, route, response.status_code, None, error=ours)
        response.raw_headers.append((b"x-request-id", request_id.encode()))
        await response(scope, receive, send)

    def refused(self, error: errors.RegistryError, status: int, request_id: str) -> None:
        """Count and log what the connection refused."""
        self._tally.requests[UNMATCHED, "other", status] += 1
        tell_refused(error, status, request_id)


class _Soon:
    """A read that waits for its look-up, together with others. See `http1.config.Soon`."""

    __slots__ = ("_locator", "_path", "_registry", "_serving", "coming")

    def __init__(
        self, serving: Serving, path: Path, registry: Registry, locator: GroupLocator
    ) -> None:
        self._serving = serving
        self._path = path
        self._registry = registry
        self._locator = locator
        self.coming = locator.begin(path[0])

    def answer(self) -> Plain | None:
        location = self._locator.location_of(self._path[0], self.coming.result())
        if location is None:
            return None
        return self._serving.plain(self._path, location, self._registry)

    async def location(self) -> Location | None:
        """Where the bytes are, or None: nobody holds the key."""
        return self._locator.location_of(self._path[0], await self.coming)


def _route_of(scope: Scope) -> str:
    if "foreign_url" in scope:
        return PROXIED
    return ROUTES.get(scope["raw_path"].count(b"/", len(PREFIX)) + 1, UNMATCHED)


def _not_allowed(method: str) -> errors.MethodNotAllowed:
    return errors.MethodNotAllowed(
        f"Metadata files are read with GET and HEAD, not {method}. Register them with "
        "POST /v1/registrations.",
        allowed=READING,
    )


def _no_query() -> errors.Invalid:
    return errors.Invalid("A metadata file has no query parameters. Ask for its path alone.")
