"""Running the service: checks before the first request, then uvicorn."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from registry.config import RESOLVED_VARIABLE, Settings
from registry.content.places import bounded_root
from registry.content.roots import ArtifactRoots
from registry.core import malloc
from registry.core.settings_files import read_file
from registry.errors import SettingsError
from registry.server import logs, tokens
from registry.server.auth import is_loopback
from registry.server.http1.door import Server
from registry.server.http1.protocol import Config, Limits
from registry.server.workers import METRICS_VARIABLE, Workers, shared_metrics, stop_with_parent
from registry.store import opening

# The application is imported when it is made: how metrics are kept is decided by the environment
# at that moment (registry/metrics.py).
if TYPE_CHECKING:
    from registry.server.read_path import Serving

BACKLOG = 2048
KEEP_ALIVE_S = 75
SHUTDOWN_S = 20
WORKERS_STOP_S = SHUTDOWN_S + 15
YOUNG_MAX = 10_000
"""Objects that may be made before the garbage collector looks for cycles among them: those of some
twenty requests at once, of which nearly all are gone by then."""
DESCRIPTORS_EACH = 2
"""A connection, and the file that is streamed through it or the upload that is kept for it."""

OTHER_DESCRIPTORS = 128
"""Open files of a process beside those of its connections: the database's in every thread, files
that are hashed, metrics, a backup."""

FEW_DESCRIPTORS = 64
"""With fewer than twice OTHER_DESCRIPTORS there are fewer threads at work than there could be. With
fewer than this nothing goes."""

COULD_NOT_RUN = 2

log = logging.getLogger("registry")


def run(settings: Settings) -> None:
    """Bring the database up to date, then serve until a signal.

    The last line of the start, on standard output, is `listening on http://HOST:PORT`. SIGTERM
    and SIGINT end the service: what was accepted is answered, for at most 20 s. SIGHUP makes it
    read the token file again; without one it ends the service as well.

    Raises:
        SettingsError: a setting cannot work here: address, port, artifact root, tokens, TLS.
        DatabaseRefused: the database cannot be used; the message says why and what to do.
    """
    logs.set_up(settings.log_level, settings.log_format)
    check_access(settings)
    check_tls(settings)
    check_secrets(settings)
    limits = limits_of(settings)
    opening.prepare(settings.database_url, notify=log.info)
    listener = listen(settings.host, settings.port)
    scheme = "http" if settings.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}\n")
    sys.stdout.flush()
    options = uvicorn_options()
    options["ssl_certfile"], options["ssl_keyfile"] = settings.tls_certificate, settings.tls_key
    if settings.workers == 1:
        _serve_alone(settings, limits, options, listener)
    else:
        _serve_with_workers(settings, limits, options, listener)


def _serve_alone(
    settings: Settings, limits: Limits, options: dict[str, Any], listener: socket.socket
) -> None:
    signal.signal(signal.SIGTERM, _stopped)
    # With a token file the application listens to it from its start on.
    signal.signal(signal.SIGHUP, _hung_up if settings.token_file is None else signal.SIG_IGN)
    os.environ.pop(METRICS_VARIABLE, None)
    from registry.server.app import create_app

    app = create_app(settings)
    _settle()
    try:
        Server(Config(app, limits, **options)).run(sockets=[listener])
    except SystemExit as end:
        sys.exit(COULD_NOT_RUN if end.code else 0)


def _stopped(_signal: int, _frame: object) -> NoReturn:
    """Ending on request is no failure. uvicorn raises the signal again when it has stopped."""
    raise SystemExit(0)


def _hung_up(_signal: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def _serve_with_workers(
    settings: Settings, limits: Limits, options: dict[str, Any], listener: socket.socket
) -> None:
    os.environ[RESOLVED_VARIABLE] = settings.to_json()
    config = Config(
        "registry.server.process:app_of_worker",
        limits,
        factory=True,
        workers=settings.workers,
        **options,
    )
    with shared_metrics():
        workers = Workers(
            config,
            sockets=[listener],
            stop_s=WORKERS_STOP_S,
            reload=settings.token_file is not None,
        )
        workers.run()
    if workers.failed:
        sys.exit(COULD_NOT_RUN)
    if workers.interrupted:
        raise KeyboardInterrupt


def app_of_worker() -> Serving:
    """The application of one worker process, with the settings of its parent."""
    settings = Settings.from_json(os.environ[RESOLVED_VARIABLE])
    logs.set_up(settings.log_level, settings.log_format)
    stop_with_parent()
    if settings.token_file is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from registry.server.app import create_app

    app = create_app(settings)
    _settle()
    return app


def _settle() -> None:
    """Let freed memory go, and keep what is there now, modules above all, out of the garbage
    collector's rounds.

    It stays until the end, and going through it again and again took a fifth of the time of
    small requests.
    """
    malloc.give_back()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, *gc.get_threshold()[1:])


def uvicorn_options() -> dict[str, Any]:
    """How uvicorn runs the application."""
    return {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "lifespan": "on",
        "ws": "none",
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "backlog": BACKLOG,
    }


# Checks before the first request


def check_access(settings: Settings) -> None:
    """Raise SettingsError for an address that others can reach while everybody may write."""
    if settings.token_file is not None:
        tokens.load(Path(settings.token_file))
    elif settings.require_read_token:
        raise SettingsError(
            "require_read_token asks readers for a token, but there is no token file. Give one "
            "with --token-file."
        )
    elif not is_loopback(settings.host) and not settings.insecure:
        raise SettingsError(
            f"host is {settings.host}, which others can reach, and without a token file everybody "
            "may change everything. Make a token with `metadata-registry token new --role admin "
            "--token-file FILE` and give that file with --token-file; or listen on 127.0.0.1; or, "
            "where nobody else can reach the address, say --insecure."
        )
    if (
        settings.token_file is not None
        and settings.tls_certificate is None
        and not is_loopback(settings.host)
    ):
        log.warning(
            "tokens travel unencrypted to %s: give --tls-certificate, or put a proxy that speaks "
            "TLS in front",
            settings.host,
        )


def check_tls(settings: Settings) -> None:
    """Raise SettingsError unless the certificate and its key can be used, if there are any."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        if key is not None:
            raise SettingsError(
                "tls_key is given without a certificate. Give one with --tls-certificate."
            )
        return
    # OpenSSL would wait for a FIFO, and read a device.
    read_file(Path(certificate), "tls_certificate")
    if key is not None:
        read_file(Path(key), "tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one.
        raise SettingsError(
            f"The certificate {certificate} with the key {key or certificate} cannot be used: "
            f"{error.strerror or error}. tls_certificate must be a PEM file with the certificate "
            "and its chain, tls_key one with its private key, without a password."
        ) from error


def _no_password() -> str:
    """Answers where OpenSSL would ask at the terminal."""
    return ""


def check_secrets(settings: Settings) -> None:
    """Raise SettingsError for an artifact root that is none, or that writers could read a secret
    of this service below."""
    roots = ArtifactRoots(settings.artifact_roots, bounded_root(settings.file_timeout_s))
    secrets = {
        "token_file": settings.token_file,
        "tls_key": settings.tls_key or settings.tls_certificate,
    }
    for name, path in secrets.items():
        if path is not None and roots.allow(os.path.realpath(path)):
            raise SettingsError(
                f"{name} is {path}, below an artifact root: whoever may register files there could "
                "have it served. Move it, or name smaller artifact roots."
            )


def limits_of(settings: Settings) -> Limits:
    """What a process bears, after its limit of open files was raised as far as is needed.

    Raises:
        SettingsError: this user may not even open the few files that the service itself needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_EACH * settings.max_connections + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connections = settings.max_connections
    if soft != resource.RLIM_INFINITY and soft < needed:
        if soft < FEW_DESCRIPTORS:
            raise SettingsError(
                f"This user may open {soft} files only; the service needs {FEW_DESCRIPTORS} at "
                "least, and two more for each connection. Raise the hard limit (ulimit -n)."
            )
        own = min(OTHER_DESCRIPTORS, max(FEW_DESCRIPTORS - 2 * DESCRIPTORS_EACH, soft // 2))
        connections = min(connections, (soft - own) // DESCRIPTORS_EACH)
        log.warning(
            "at most %d connections instead of %d: this user may open %d files only, and each "
            "takes two (ulimit -n)",
            connections,
            settings.max_connections,
            soft,
        )
    return Limits(connections, settings.max_header_bytes, settings.body_timeout_s)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        SettingsError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Is another registry running? "
            "Choose another --port."
        ) from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener
