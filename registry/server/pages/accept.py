"""Whether a request asks for a page, and is of one that is meant for people."""

from __future__ import annotations

from starlette.types import Scope

from registry.server.auth import is_page

HTML = frozenset({"text/html", "application/xhtml+xml"})
JSON = frozenset({"application/json", "application/*"})


def asks_for_page(scope: Scope) -> bool:
    """Whether a refusal is to be a page: a browser asked for one of the pages."""
    return is_page(scope["path"]) and wants_html(scope)


def wants_html(scope: Scope) -> bool:
    """Whether HTML is named in Accept, and not less wanted than JSON. Programs name neither, or
    only JSON, or everything."""
    html, json = 0.0, 0.0
    for name, value in scope["headers"]:
        if name == b"accept":
            for part in value.decode("latin-1").split(","):
                kind, _, rest = part.partition(";")
                if kind.strip().lower() in HTML:
                    html = max(html, _quality(rest))
                elif kind.strip().lower() in JSON:
                    json = max(json, _quality(rest))
    return html > 0 and html >= json


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
