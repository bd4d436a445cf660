"""What is elsewhere: the service, a token for it, its public URLs, the discovery store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from registry import __version__
from registry.cli.checks import CheckLine, Lines, failed, note, ok, skipped
from registry.cli.checks_database import compare_clocks
from registry.cli.text import counted
from registry.errors import Forbidden, RegistryError, ServiceUnreachable, Unauthenticated

if TYPE_CHECKING:
    from registry.client.client import RegistryClient
    from registry.config import Settings

PATIENCE_S = 5.0
DATE_MS = 1000
"""What a time of HTTP may be late: it has whole seconds."""


def _client(url: str, token: str | None = None, ca_file: str | None = None) -> RegistryClient:
    from registry.client.client import RegistryClient
    from registry.client.retries import RetryPolicy

    once = RetryPolicy(attempts=1)
    return RegistryClient(url, token=token, ca_file=ca_file, timeout_s=PATIENCE_S, retries=once)


def check_service(url: str, token: str | None, ca_file: str | None, *, is_given: bool) -> Lines:
    """The lines `service`, `service_clock` and `token`. One that was not named need not run.

    Raises:
        SettingsError: the URL or the token is none.
    """
    from registry.client.administration import greet

    with _client(url, token, ca_file) as client:
        before = time.time_ns() // 1_000_000
        try:
            greeting = client.send(greet())
        except ServiceUnreachable as error:
            others = [skipped(each, "No service answers.") for each in ("service_clock", "token")]
            if is_given:
                return [failed("service", error.detail), *others]
            todo = "Start it with `metadata-registry serve`, or name another with --url."
            return [note("service", f"Nothing answers at {client.url}.", todo), *others]
        after = time.time_ns() // 1_000_000
        lines = [check_health(client, greeting.version)]
        if greeting.at is not None:
            span = (before - DATE_MS, after)
            lines.append(compare_clocks("service_clock", "the service", *span, greeting.at))
        return [*lines, check_token(client, is_given=token is not None)]


def check_health(client: RegistryClient, version: str) -> CheckLine:
    """Whether a service that answers can do its work."""
    health = client.health()
    wrong = [f"{name}: {said}" for name, said in health.checks.items() if said != "ok"]
    if health.status != "ok":
        return failed("service", f"{client.url} is not well. {'; '.join(wrong)}.")
    if health.warnings:
        said = "; ".join(f"{name}: {said}" for name, said in health.warnings.items())
        return note("service", f"{client.url} answers, and warns. {said}.")
    if version != __version__:
        found = f"{client.url} is version {version}, this program {__version__}."
        return note("service", found, "Use the same version where you can.")
    return ok("service", f"{client.url} answers, version {version}.")


def check_token(client: RegistryClient, *, is_given: bool) -> CheckLine:
    """Whether a service takes the token, or lets somebody without one in: a read is tried, and a
    change of nothing."""
    from registry.client.administration import list_nothing
    from registry.client.protocol import renew_many

    todo = "Set REGISTRY_TOKEN; an administrator makes one with `metadata-registry token new`."
    try:
        client.send(list_nothing())
    except Unauthenticated as error:
        return failed("token", error.detail, todo)
    try:
        client.send(renew_many([]))
    except Unauthenticated as error:
        if is_given:
            return failed("token", error.detail, todo)
        return note("token", "None is set: reads are open, changes need one.", todo)
    except Forbidden as error:
        return note("token", f"It is for reads. {error.detail}")
    return ok("token", "Changes are allowed" + (" with it." if is_given else " without one."))


def check_public_urls(urls: Sequence[str], ca_file: str | None, *, is_set: bool) -> Lines:
    """Whether the URLs under which frontends are to reach the service lead to one. Those that were
    only noted by a service need not, as it may be down."""
    if not urls:
        return [skipped("public_url", "None is set: cards name what workers are told.")]
    return [_check_public_url(url, ca_file, is_set=is_set) for url in urls]


def _check_public_url(url: str, ca_file: str | None, *, is_set: bool) -> CheckLine:
    from registry.client.administration import greet

    try:
        with _client(url, ca_file=ca_file) as client:
            greeting = client.send(greet())
    except RegistryError as error:
        todo = "Frontends cannot fetch from there: start the service, or see to the proxy and DNS."
        if is_set:
            return failed("public_url", error.detail, todo)
        return note("public_url", f"The service that ran last was at {url}: nothing answers there.")
    return ok("public_url", f"{url} leads to a registry, version {greeting.version}.")


def check_discovery(settings: Settings) -> CheckLine:
    """Whether the discovery store can be read, and has something in it.

    Raises:
        SettingsError: there is no such store.
        DiscoveryUnavailable: it cannot be read.
    """
    from registry.discovery import Kind, Scannable, open_discovery

    url = settings.discovery or settings.proxy_for
    if url is None:
        return skipped("discovery", "None is set.")
    store = open_discovery(url)
    try:
        records = store.scan if isinstance(store, Scannable) else store.list
        wanted = settings.discovery_namespaces
        count = sum(
            not wanted or record.key.owner.namespace in wanted for record in records(Kind.MODEL)
        )
    finally:
        store.close()
    if count == 0:
        todo = "Are workers up, and is it the store, and the namespace, that they publish to?"
        return note("discovery", "It can be read, and has no model card.", todo)
    return ok("discovery", f"It can be read: {counted(count, 'model card')}.")
