"""Who may call what: bearer tokens, roles for each route, and browsers that are kept from writing.

    no token file               whoever reaches the service may do everything; it listens on
                                loopback only, unless it is told otherwise
    a token file                changes need a token, reads need none
    --require-read-token        reads need one as well; /live and /health never do

A browser signs in to the pages with the token as the password of HTTP Basic. Pages show more to
administrators, so a token is heeded there even where none is needed.

A web page from elsewhere can make its visitor's browser send requests to a service that only the
visitor's machine can reach. What a browser sends along gives such a request away: one that would
change anything is refused for its `Origin` or `Sec-Fetch-Site`, and any for the `Host` that the
browser believes to talk to (hosts.py).
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.config import Settings
from registry.core.text import shown
from registry.errors import Forbidden, ProxyUnauthenticated, SettingsError, Unauthenticated
from registry.server import tokens
from registry.server.hosts import Hosts, is_loopback
from registry.server.tokens import EVERYTHING, Grant, Role, Tokens

OPEN = frozenset({"/live", "/health"})
"""What needs no token, ever."""

WRITES = frozenset(
    {
        ("POST", "/v1/registrations"),
        ("PUT", "/v1/blobs/{checksum}"),
        ("DELETE", "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}"),
        ("POST", "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}/renew"),
        ("POST", "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}/drain"),
        ("POST", "/v1/renewals"),
    }
)
"""What the role `write` may do. Every other change is an administrator's."""

ADMINISTRATION = frozenset({"/ui/sql", "/v1/sql"})
"""What shows everything: for administrators only, and never for others on a service without tokens
that they can reach."""

SAFE_METHODS = frozenset({"GET", "HEAD"})

log = logging.getLogger("registry.access")


def role_needed(method: str, path: str) -> Role | None:
    """The least role that a route asks for, or None: everybody may."""
    if path in OPEN:
        return None
    if (method, path) in WRITES:
        return Role.WRITE
    if path in ADMINISTRATION:
        return Role.ADMIN
    return Role.READ if method in SAFE_METHODS else Role.ADMIN


def is_page(path: str) -> bool:
    """Whether a path is one of the pages for people. Browsers sign in there."""
    return path == "/" or path.startswith("/ui/")


def grant_of(request: Request) -> Grant:
    """What the caller may do."""
    return cast(Grant, request.scope["grant"])


def actor_of(request: Request) -> str | None:
    """The caller's name for the journal, or None: nobody asked who it is."""
    return grant_of(request).name


class Access:
    """Admits callers, by the tokens of the token file if there is one.

    Raises:
        SettingsError: the token file is not as it should be.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = None if settings.token_file is None else Path(settings.token_file)
        self._tokens = None if self._file is None else tokens.load(self._file)
        self.readers_need_token = settings.require_read_token
        self._only_here = (
            self._tokens is None and not settings.insecure and is_loopback(settings.host)
        )
        self.hosts = Hosts(
            settings.host,
            settings.allowed_hosts,
            checks=self._only_here or bool(settings.allowed_hosts),
        )

    @property
    def has_file(self) -> bool:
        """Whether there is a token file."""
        return self._file is not None

    @property
    def files(self) -> str:
        """The token file."""
        return str(self._file)

    def read_again(self) -> Callable[[], None]:
        """Read the token file, in any thread. What comes of it is for the event loop: it takes the
        tokens. If the file is not as it should be, the old ones stay."""
        assert self._file is not None
        try:
            found = tokens.load(self._file)
        except SettingsError as error:
            return partial(log.error, "the tokens stay as they were: %s", error)
        return partial(self._take, found)

    def _take(self, found: Tokens) -> None:
        self._tokens = found
        log.info("read the tokens of %s again", self._file)

    def keep(self, reason: str) -> None:
        """Say why they were not read again."""
        log.warning("the tokens stay as they were: %s", reason)

    def admit(self, scope: Scope, needed: Role | None) -> Grant:
        """What the caller of a request may do, which is at least what is needed.

        Raises:
            Unauthenticated: a token is needed, and none was sent, or one that is not known.
            Forbidden: the token's role is not enough.
        """
        if self._tokens is None:
            return EVERYTHING
        if needed is None or (needed is Role.READ and not self.readers_need_token):
            return Grant(None, Role.READ)
        grant = self._tokens.find(_presented(scope))
        if grant is None:
            raise Unauthenticated(
                "The access token is not one that this service knows. Check that it was copied "
                "whole, or ask for a new one.",
                was_given=True,
            )
        return _sufficient(grant, needed)

    def admit_administrator(self, scope: Scope, needed: Role | None) -> Grant:
        """As `admit`. Without a token file it is for those on this machine only.

        Raises:
            Unauthenticated, Forbidden: as `admit`; or others can reach a service without tokens.
        """
        if self._tokens is None and not self._only_here:
            raise _open_to_others()
        return self.admit(scope, needed)

    def admit_visitor(self, scope: Scope, needed: Role | None) -> Grant:
        """As `admit`, of who looks at a page: with all that their token allows, if there is one.
        Without a token file everything is for those on this machine only.

        Raises:
            Unauthenticated: a token is needed, and none was sent, or one that is not known.
            Forbidden: the token's role is not enough, or others can reach a service without tokens.
        """
        if self._tokens is None:
            if self._only_here:
                return EVERYTHING
            if needed is Role.ADMIN:
                raise _open_to_others()
            return Grant(None, Role.READ)
        sent = _headers(scope, b"authorization")
        grants = [self._tokens.find(each) for each in _tokens_in(sent[0])] if len(sent) == 1 else []
        grant = next((each for each in grants if each is not None), None)
        if grant is None:
            if needed is Role.READ and not self.readers_need_token:
                return Grant(None, Role.READ)
            raise Unauthenticated(
                "This page needs an access token, and none was sent that this service knows.",
                was_given=bool(sent),
            )
        return _sufficient(grant, needed)

    def admit_reader(self, scope: Scope) -> None:
        """As `admit`, for the metadata files."""
        self.admit(scope, Role.READ)

    def admit_proxied(self, scope: Scope) -> None:
        """As `admit_reader`, for whom this is a proxy: the token is the password, or the user, of
        its address.

        Raises:
            ProxyUnauthenticated: reads need a token, and none was sent, or one that is not known.
        """
        if self._tokens is None or not self.readers_need_token:
            return
        sent = _headers(scope, b"proxy-authorization")
        if not sent:
            raise ProxyUnauthenticated
        if len(sent) > 1 or not any(map(self._tokens.find, _tokens_in(sent[0]))):
            raise ProxyUnauthenticated(
                "The access token in Proxy-Authorization is not one that this service knows. Check "
                "that it was copied whole into HTTP_PROXY=http://user:TOKEN@HOST:8090."
            )

    def check_site(self, scope: Scope) -> None:
        """Raise Forbidden for a change that a web page from elsewhere asks for."""
        host = (_headers(scope, b"host") or [""])[0].lower()
        for origin in _headers(scope, b"origin"):
            if not host or _netloc(origin) != host:
                raise Forbidden(
                    f"A page of {shown(origin)} may not change anything here, only the service's "
                    "own pages. Send the request from a program, without an Origin header."
                )
        for site in _headers(scope, b"sec-fetch-site"):
            if site.lower() not in ("none", "same-origin"):
                raise Forbidden(
                    "The browser says that this request comes from another site (Sec-Fetch-Site: "
                    f"{shown(site)}). Send it from a program."
                )

    def check_host(self, scope: Scope) -> None:
        """Raise Forbidden for a request, of whatever kind, that was sent to another's name."""
        if self.hosts.checks:
            for name, value in scope["headers"]:
                if name == b"host":
                    self.hosts.check(value)


def _open_to_others() -> Forbidden:
    return Forbidden(
        "This is for administrators, and this service, which others can reach, has no token file "
        "to know them by. Give it one with --token-file."
    )


def _sufficient(grant: Grant, needed: Role | None) -> Grant:
    """The grant, if its role is enough."""
    if needed is not None and not grant.role.includes(needed):
        raise Forbidden(
            f"The token {grant.name} has the role {grant.role}; this call needs {needed}. Use a "
            "token with that role, or ask for one."
        )
    return grant


def _headers(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def _netloc(origin: str) -> str:
    # Not by `urlsplit`, which remembers what it was given.
    return origin.partition("://")[2].lower()


def _presented(scope: Scope) -> str:
    """The bearer token of a request."""
    values = _headers(scope, b"authorization")
    if not values:
        raise Unauthenticated
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or len(values) > 1:
        raise Unauthenticated(
            "The Authorization header is none that this service understands. Send one, as "
            "Authorization: Bearer TOKEN.",
            was_given=True,
        )
    return token.strip()


def _tokens_in(authorization: str) -> list[str]:
    """What may be the token in an Authorization header of a browser, or of a proxy's client."""
    scheme, _, sent = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return [sent.strip()] if sent.strip() else []
    if scheme.lower() != "basic":
        return []
    try:
        user, _, password = base64.b64decode(sent.strip(), validate=True).decode().partition(":")
    except ValueError:
        return []
    return [unquote(each) for each in (password, user) if each]


class Guard:
    """Lets those through to a route who may call it."""

    def __init__(self, app: ASGIApp, access: Access, path: str) -> None:
        self._app = app
        self._access = access
        self._path = path
        self._admit = access.admit
        if is_page(path):
            self._admit = access.admit_visitor
        elif path in ADMINISTRATION:
            self._admit = access.admit_administrator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        grant = self._admit(scope, role_needed(method, self._path))
        if method not in SAFE_METHODS:
            self._access.check_site(scope)
            namespace = scope["path_params"].get("namespace")
            if namespace is not None:
                grant.check_namespace(namespace)
        scope["grant"] = grant
        await self._app(scope, receive, send)


def guarded(routes: Iterable[Route], access: Access) -> list[Route]:
    """The same routes, each behind a guard."""
    return [_guarded(route, access) for route in routes]


def _guarded(route: Route, access: Access) -> Route:
    behind = copy(route)
    behind.app = Guard(route.app, access, route.path)
    return behind
