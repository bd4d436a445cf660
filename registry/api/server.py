"""Running the service: checks before the first request, then uvicorn."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys

import uvicorn
from uvicorn.supervisors import Multiprocess

from registry.api.app import create_app
from registry.api.serving import Serving
from registry.config import RESOLVED_VARIABLE, Settings
from registry.db import schema
from registry.errors import SettingsError
from registry.files import ArtifactRoots

BACKLOG = 2048
KEEP_ALIVE_S = 75
SHUTDOWN_S = 20

log = logging.getLogger("registry")


def run(settings: Settings) -> None:
    """Bring the database up to date, then serve until a signal.

    The last line of the start, on standard output, is `listening on http://HOST:PORT`.

    Raises:
        SettingsError: a setting cannot work here: address, port, artifact root.
        DatabaseRefused: the database cannot be used; the message says why and what to do.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    check_address(settings)
    ArtifactRoots(settings.artifact_roots)
    schema.prepare(settings.database_url, notify=log.info)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}\n")
    sys.stdout.flush()
    options = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
        "ws": "none",
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "backlog": BACKLOG,
    }
    if settings.workers == 1:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), **options))  # type: ignore[arg-type]
        server.run(sockets=[listener])
        return
    os.environ[RESOLVED_VARIABLE] = settings.to_json()
    config = uvicorn.Config(
        "registry.api.server:app_of_worker",
        factory=True,
        workers=settings.workers,
        **options,  # type: ignore[arg-type]
    )
    Multiprocess(config, sockets=[listener]).run()


def app_of_worker() -> Serving:
    """The application of one worker process, with the settings of its parent."""
    settings = Settings.from_json(os.environ[RESOLVED_VARIABLE])
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    return create_app(settings)


def check_address(settings: Settings) -> None:
    """Raise SettingsError for an address that others can reach."""
    host = settings.host
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SettingsError(
            f"host is {host}: this version asks for no tokens, so it listens on loopback only. "
            "Use 127.0.0.1, and a proxy that asks who is there in front of it."
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Is another "
            "registry running? Choose another --port."
        ) from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener
