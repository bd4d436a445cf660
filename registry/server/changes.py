"""A change that is asked for, as its handler takes it, by whichever way through HTTP it came.

Most come by the short way (short_way.py), the others through Starlette's router. Both lead to the
same handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from registry.server.auth import grant_of
from registry.server.http import answer, read_json_body, registry_of, request_id_of
from registry.server.tokens import Grant

if TYPE_CHECKING:
    from registry.service.registry import Registry


@dataclass(slots=True)
class ChangeRequest:
    """What is asked for, and by whom. `parameters` are the parts of the path, by name."""

    registry: Registry
    grant: Grant
    request_id: str | None
    parameters: Mapping[str, str]
    body: bytes | bytearray = b""

    @property
    def actor(self) -> str | None:
        """The caller's name for the journal, or None: nobody asked who it is."""
        return self.grant.name


class ChangeHandler(Protocol):
    """Makes a change and returns what is answered with 200."""

    __name__: str

    def __call__(self, asked: ChangeRequest, /) -> Awaitable[msgspec.Struct]:
        """Raises: RegistryError: what is answered instead."""
        ...


class Changing:
    """A handler of the router that has a change made."""

    def __init__(self, change: ChangeHandler, *, has_body: bool = False) -> None:
        self.change = change
        self.__name__ = change.__name__
        self.has_body = has_body
        """Whether it is asked for with a body of JSON."""

    async def __call__(self, request: Request) -> Response:
        registry = registry_of(request)
        body = b""
        if self.has_body:
            body = await read_json_body(request, registry.settings.max_body_bytes)
        asked = ChangeRequest(
            registry, grant_of(request), request_id_of(request), request.path_params, body
        )
        return answer(await self.change(asked))
