"""HTML of templates: everything is escaped, and every answer says what a browser may do with it.

jinja2 comes with the extra `web`. Without it there are no pages, which is said in plain text.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from registry import __version__
from registry.core.text import printable
from registry.server.auth import grant_of
from registry.server.http import registry_of
from registry.server.pages import texts, urls
from registry.server.pages.advice import SEVERITIES
from registry.server.pages.running import pages_of
from registry.server.tokens import Role

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MISSING = (
    f"This is metadata-registry {__version__}, and it runs. Its pages for people need jinja2:\n\n"
    "    pip install 'metadata-registry[web]'\n\n"
    "then start the service again. Programs need nothing more: /openapi.json describes the calls, "
    "and /docs is the same to be read.\n"
)


class PagesMissing(Exception):
    """jinja2 is not installed."""


async def page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page for whoever asks. `title` and `here`, the place in the navigation, are in context.

    It is made in a thread, one page at a time: the first one loads jinja2 and the templates, and
    a long table takes a while. Files are served meanwhile.
    """
    grant = grant_of(request)
    context |= {
        "now": registry_of(request).database.clock(),
        "viewer": grant.name,
        "may_see_paths": may_see_paths(request),
    }
    return await pages_of(request).render(partial(html, template, status, **context))


def html(template: str, status: int = 200, **context: Any) -> Response:
    """A page for nobody in particular; in plain text, what is missing for it."""
    context = {"now": None, "viewer": None, "may_see_paths": False, "here": None} | context
    try:
        environment = _environment()
    except PagesMissing:
        return Response(MISSING, status, HEADERS, media_type="text/plain")
    content = environment.get_template(template).render(context)
    headers = {**HEADERS, "Content-Security-Policy": policy()}
    return Response(content, status, headers, media_type="text/html")


def may_see_paths(request: Request) -> bool:
    """Whether the caller may see where files are on disk, and ask in SQL: an administrator, or
    anybody on the machine itself where no tokens are asked for."""
    return grant_of(request).role is Role.ADMIN


@functools.cache
def policy() -> str:
    """The Content-Security-Policy of every page: its own style, its own forms, nothing else."""
    digest = base64.b64encode(sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


@functools.cache
def _style() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    """The templates.

    Raises:
        PagesMissing: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

        from registry.server.pages import markup
    except ImportError as error:
        raise PagesMissing from error

    def shown(value: Any) -> Any:
        """What a template puts out, but for the HTML that it makes itself."""
        return (
            printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        )

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    helpers: tuple[Callable[..., Any], ...] = (*texts.HELPERS, *urls.HELPERS, *markup.HELPERS)
    environment.globals |= {each.__name__: each for each in helpers}
    environment.globals |= {"version": __version__, "style": Markup(_style())}
    environment.globals["severities"] = SEVERITIES
    environment.filters["as_lines"] = lambda text: Markup("\n").join(
        map(printable, text.splitlines())
    )
    return environment
