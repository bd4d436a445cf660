"""Running the service: checks before the first request, then uvicorn."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from registry import __version__
from registry.config import Settings
from registry.content.places import bounded_root
from registry.content.roots import ArtifactRoots
from registry.core import logs, malloc, stopping
from registry.errors import RegistryError, SettingsError
from registry.server import supervisor, tokens
from registry.server.certificates import Certificate, certificate_of
from registry.server.compared import check_discovery, with_public_urls
from registry.server.hosts import Hosts, address_of, is_loopback
from registry.server.http1.config import Config
from registry.server.http1.door import Server
from registry.server.http1.watch import Limits
from registry.server.proxy import check_store
from registry.server.reloading import note_sighup
from registry.server.siblings import Parent
from registry.server.workers import COULD_NOT_START, Workers
from registry.store import opening

BACKLOG = 2048
KEEP_ALIVE_S = 75
SHUTDOWN_S = 20
GONE_S = SHUTDOWN_S + 5
"""After a signal, whatever hangs: who sent it may kill after 30 s."""
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

ENDING = (signal.SIGTERM, signal.SIGINT)

COULD_NOT_RUN = 2

END = stopping.Bound(
    GONE_S, COULD_NOT_RUN, f"something hangs, so that the end took more than {GONE_S} s"
)
"""After a signal, come what may."""

log = logging.getLogger("registry")


def run(settings: Settings) -> None:
    """Bring the database up to date, then serve until a signal.

    The address is taken first: who cannot have it has changed nothing. The last line of the
    start, on standard output, is `listening on http://HOST:PORT`. SIGTERM and SIGINT end the
    service, also while it starts: what was accepted is answered, for at most 20 s, and after 5 s
    more the process is gone whatever hangs. SIGHUP makes it read the token file and the certificate
    again; without either it ends the service as well, unless systemd started it.

    Raises:
        SettingsError: a setting cannot work here: address, port, artifact root, tokens, TLS,
            discovery.
        DatabaseRefused: the database cannot be used; the message says why and what to do.
        Refused: an older service that has the database open could not live with its upgrade.
    """
    if reloads(settings):
        note_sighup()
    elif supervisor.is_service():
        signal.signal(signal.SIGHUP, _nothing_to_read)
    else:
        signal.signal(signal.SIGHUP, _hung_up)
    logs.set_up(settings.log_level, settings.log_format)
    host, settings = settings.host, replace(settings, host=address_of(settings.host))
    check_access(settings)
    check_discovery(settings)
    certificate = certificate_of(settings)
    check_secrets(settings)
    check_store(settings.proxy_for)
    limits = limits_of(settings)
    if settings.allow_unsafe_storage:
        os.environ[opening.ALLOWED_BY] = "true"  # For the worker processes as well.
    with listen(settings.host, settings.port) as listener:
        settings = with_public_urls(settings, host, listener)
        opening.prepare(settings.database_url, notify=log.info)
        address = url_of(settings, listener)

        def tell() -> None:
            tell_start(settings, address)

        try:
            if settings.workers == 1:
                _serve_alone(settings, limits, listener, certificate, tell)
            else:
                _serve_with_workers(settings, limits, listener, tell)
        finally:
            log.info("the service has ended")
            logs.flush()


def _serve_alone(
    settings: Settings,
    limits: Limits,
    listener: socket.socket,
    certificate: Certificate | None,
    tell: Callable[[], None],
) -> None:
    from registry.server.app import create_app  # Not before: a parent of workers needs none of it.

    app = create_app(settings, certificate=certificate)
    _settle()
    stopping.release(END)
    try:
        config = Config(app, limits, **uvicorn_options(certificate))
        BoundedServer(config, tell).run(sockets=[listener])
    except stopping.Stopped:
        return  # uvicorn raises the signal again when it has stopped.
    except SystemExit as end:
        sys.exit(COULD_NOT_RUN if end.code else 0)


class BoundedServer(Server):
    """Ends in time after a signal, whatever hangs, and hears those that come before it listens."""

    def __init__(self, config: Config, when_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._when_ready()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; what was its handler before is called at the end."""
        self._heard: list[int] = []
        handlers = {each: signal.signal(each, self._hear) for each in ENDING}
        try:
            super().run(sockets)
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        for number in dict.fromkeys(self._heard):
            signal.raise_signal(number)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """As uvicorn's, which raises what it captured again at the end."""
        with super().capture_signals(), stopping.overhearing():
            for number in self._heard:
                self.handle_exit(number, None)
            yield

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._heard.append(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            stopping.end_within(*END[:3])
        super().handle_exit(sig, frame)


def _hung_up(_signal: int, _frame: object) -> None:
    log.info("SIGHUP came, and there is nothing to read again: the service ends")
    signal.raise_signal(signal.SIGTERM)


def _nothing_to_read(_signal: int, _frame: object) -> None:
    log.info("SIGHUP came, and there is neither a token file nor a certificate to read again")


def _serve_with_workers(
    settings: Settings, limits: Limits, listener: socket.socket, tell: Callable[[], None]
) -> None:
    workers = Workers(
        settings,
        limits,
        listener,
        stop_s=GONE_S + 1,
        reload=reloads(settings) or supervisor.is_service(),
        when_ready=tell,
    )
    workers.run()
    if workers.failed:
        sys.exit(COULD_NOT_RUN)
    if workers.interrupted:
        raise KeyboardInterrupt


def serve_as_worker(
    settings: Settings, limits: Limits, listener: socket.socket, parent: Parent
) -> None:
    """Serve as one of several processes, until SIGTERM."""
    note_sighup()
    stopping.watch(END._replace(numbers=(signal.SIGTERM,)))
    from registry.server.app import create_app

    try:
        certificate = certificate_of(settings)
        app = create_app(settings, parent, certificate)
    except RegistryError as error:
        log.error("the worker cannot serve: %s", error)
        sys.exit(COULD_NOT_START)
    _settle()
    config = Config(app, limits, **uvicorn_options(certificate))
    BoundedServer(config, parent.be_ready).run(sockets=[listener])


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


def reloads(settings: Settings) -> bool:
    """Whether there is something to be read again on SIGHUP."""
    return settings.token_file is not None or settings.tls_certificate is not None


def uvicorn_options(certificate: Certificate | None = None) -> dict[str, Any]:
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
        "ssl_context_factory": None if certificate is None else lambda *_: certificate.front,
    }


def url_of(settings: Settings, listener: socket.socket) -> str:
    """`http://HOST:PORT`."""
    scheme = "http" if settings.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def tell_start(settings: Settings, address: str) -> None:
    """Say what is served, in the log, and where, on standard output as well."""
    log.info(
        "serving",
        extra=logs.fields(
            address=address,
            database=opening.place_of(settings.database_url),
            artifact_roots=os.pathsep.join(settings.artifact_roots) or "none: copies only",
            tokens=settings.token_file or "none: everybody may do everything",
            workers=settings.workers,
            version=__version__,
            pid=os.getpid(),
        ),
    )
    logs.flush()
    try:
        os.write(sys.stdout.fileno(), f"listening on {address}\n".encode())
    except (OSError, ValueError, AttributeError):  # It is full, or closed.
        log.warning("standard output cannot be written; listening on %s", address)
    supervisor.tell_ready()


# Checks before the first request


def check_access(settings: Settings) -> None:
    """Raise SettingsError for an address that others can reach while everybody may write, and for
    an allowed host that is none."""
    Hosts(settings.host, settings.allowed_hosts, checks=True)
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
        where = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        raise SettingsError(
            f"Cannot listen on {where}: {error.strerror}. {_way_out(error)}"
        ) from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def _way_out(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "No such name is known here. Give an address, as --host 127.0.0.1."
    if error.errno == errno.EADDRNOTAVAIL:
        return "This machine has no such address. Give one of its own with --host."
    if error.errno == errno.EACCES:
        return "This user may not have that port. Choose a --port above 1023."
    return "Is another registry running? Choose another --port."
