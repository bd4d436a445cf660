"""What a service needs of this machine: settings, roots, files, tokens, address."""

from __future__ import annotations

import os
import resource
import stat
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from registry.cli.checks import (
    CheckLine,
    Lines,
    NamedCheck,
    failed,
    note,
    ok,
    skipped,
)
from registry.cli.text import counted
from registry.errors import RegistryError, SettingsError

if TYPE_CHECKING:
    from registry.config import Settings


def checks_here(settings: Settings) -> list[NamedCheck]:
    """The checks of this machine, but for that of the database."""
    roots = [
        NamedCheck("artifact_root", partial(_look_at_root, root))
        for root in settings.artifact_roots
    ]
    return [
        NamedCheck("open_files", lambda: [check_open_files(settings)]),
        *(roots or [NamedCheck("artifact_root", lambda: [_NO_ROOTS])]),
        NamedCheck("access", lambda: check_access(settings)),
        NamedCheck("certificate", lambda: [check_certificate(settings)]),
        NamedCheck("address", lambda: [check_address(settings)]),
        NamedCheck("pages", lambda: [check_pages()]),
    ]


_NO_ROOTS = ok(
    "artifact_root", "None is set: files are copied in, and none can be registered in place."
)


def _look_at_root(root: str) -> Lines:
    return [check_root(root)]


def check_root(root: str) -> CheckLine:
    """Whether the files below an artifact root can be served.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    todo = "Mount it, let the service's user read it, or leave out --artifact-root."
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            return failed("artifact_root", f"{root} is no directory.", todo)
        with os.scandir(root) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        return failed("artifact_root", f"{root}: {error.strerror}.", todo)
    if not os.access(root, os.X_OK):
        return failed("artifact_root", f"{root} may not be entered by this user.", todo)
    if is_empty:
        return note("artifact_root", f"{root} is empty.", "Is it the right one, and mounted?")
    return ok("artifact_root", f"{root} can be read.")


def check_open_files(settings: Settings) -> CheckLine:
    """Whether a process may have as many files open as its connections take."""
    from registry.server.process import DESCRIPTORS_EACH, FEW_DESCRIPTORS, OTHER_DESCRIPTORS

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_EACH * settings.max_connections + OTHER_DESCRIPTORS
    most = soft if hard != resource.RLIM_INFINITY and soft > hard else hard
    if resource.RLIM_INFINITY in (soft, hard) or most >= needed:
        return ok("open_files", f"A process may have the {needed} files open that it may need.")
    found = f"A process may have {most} files open; {settings.max_connections} connections take "
    found += f"{needed}."
    todo = "Raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower max_connections."
    return (failed if most < FEW_DESCRIPTORS else note)("open_files", found, todo)


def check_access(settings: Settings) -> Lines:
    """Whether those who can reach the service are kept from what is not theirs.

    Raises:
        SettingsError: they are not, or a secret could be served.
    """
    from registry.server import tokens
    from registry.server.compared import check_discovery
    from registry.server.process import check_access as check_settings
    from registry.server.process import check_secrets

    check_settings(settings)
    # Of a root that is not there its own check tells.
    there = tuple(root for root in settings.artifact_roots if os.path.isdir(root))
    check_secrets(replace(settings, artifact_roots=there))
    check_discovery(settings)
    if settings.token_file is None:
        who = "everybody" if settings.insecure else "whoever is on this machine"
        return [ok("access", f"There is no token file: {who} may do everything.")]
    grants = tokens.grants(Path(settings.token_file))
    reads = "reads need one" if settings.require_read_token else "reads need none"
    found = f"{settings.token_file} has {counted(len(grants), 'token')}; {reads}."
    if not any(grant.role is tokens.Role.ADMIN for grant in grants):
        todo = "Make one: `metadata-registry token new --role admin`."
        return [note("access", f"{found} None has the role admin.", todo)]
    return [ok("access", found)]


def check_certificate(settings: Settings) -> CheckLine:
    """Whether HTTPS can be spoken.

    Raises:
        SettingsError: the certificate cannot be used.
    """
    from registry.server.certificates import certificate_of

    certificate = certificate_of(settings)
    if certificate is None:
        return skipped("certificate", "None is set: plain HTTP.")
    warning = certificate.warning()
    if warning is not None:
        return note("certificate", f"{warning[0].upper()}{warning[1:]}.")
    return ok("certificate", f"{settings.tls_certificate} can be used.")


def check_address(settings: Settings) -> CheckLine:
    """Whether the service could listen where it is to, or does so already.

    Raises:
        SettingsError: it cannot.
    """
    from registry.server.hosts import address_of
    from registry.server.process import listen

    where = url_of(settings)
    try:
        listen(address_of(settings.host), settings.port).close()
    except SettingsError:
        if not _is_registry(where):
            raise
        return ok("address", f"A registry listens at {where} already.")
    return ok("address", f"{settings.host}, port {settings.port or 'any'}, is free.")


def url_of(settings: Settings) -> str:
    """Where a service with these settings would be asked from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{host}:{settings.port}"


def _is_registry(url: str) -> bool:
    from registry.client.administration import greet
    from registry.client.client import RegistryClient
    from registry.client.retries import RetryPolicy

    try:
        with RegistryClient(url, timeout_s=3, retries=RetryPolicy(attempts=1)) as client:
            client.send(greet())
    except RegistryError as error:
        return "CERTIFICATE_VERIFY_FAILED" in error.detail
    return True


def check_pages() -> CheckLine:
    """Whether a browser gets pages."""
    if find_spec("jinja2") is None:
        todo = "Install metadata-registry[web], if somebody is to look with a browser."
        return note("pages", "jinja2 is not installed: there are no pages for people.", todo)
    return ok("pages", "Pages for people can be shown.")
