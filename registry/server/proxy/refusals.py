"""What is answered to requests for whole URLs of others, whether this is a proxy or not."""

from __future__ import annotations

from starlette.types import Scope

from registry.core.text import shown
from registry.errors import Forbidden
from registry.server.file_keys import PREFIX

READING = ("GET", "HEAD")


def check_is_read(scope: Scope) -> None:
    """Raise Forbidden for what no proxy does here, with or without `--proxy-for`."""
    is_file = scope["raw_path"].startswith(PREFIX) and not scope["query_string"]
    if scope["method"] not in READING or not is_file:
        raise Forbidden(
            f"The request is for {target_of(scope)}, as if this were a proxy for it. Here only GET "
            "and HEAD of /v1/metadata/... go on to others. Ask for a path of this service instead, "
            "or name the host with --allowed-host if it is one of its own."
        )


def not_a_proxy(scope: Scope) -> Forbidden:
    """What somebody is told who takes this service for a proxy, which it is not."""
    check_is_read(scope)
    return Forbidden(
        f"The request is for {target_of(scope)}, as if this were a proxy for it. Start the service "
        "with --proxy-for DISCOVERY, or ask for the path alone."
    )


def target_of(scope: Scope) -> str:
    """The URL that a request is for."""
    return shown(scope["foreign_url"].decode("latin-1"))
