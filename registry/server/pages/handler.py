"""A page as the router has it: what makes it is loaded when the first page is asked for.

Most services serve files and are asked for pages rarely or never: loading what makes them takes a
tenth of a start.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from registry.server.pages.running import pages_of


class PageHandler:
    """The handler of a page: a function of a module beside this one."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self.__name__ = name

    async def __call__(self, request: Request) -> Response:
        handler = await pages_of(request).loaded(self._module, self.__name__)
        return await handler(request)
