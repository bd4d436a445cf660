"""`metadata-registry serve`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from registry.cli.environment import strangers_named
from registry.cli.flags import takes_settings
from registry.config import load
from registry.core import logs


@takes_settings
def serve(config: Path | None = None, **flags: Any) -> None:
    """Serve the registry over HTTP, until SIGINT or SIGTERM.

    An older schema is brought up to date first, after a backup next to the database file. SIGHUP
    reads the token file and the certificate again. Every flag is also a variable
    (--lease-grace-s is REGISTRY_LEASE_GRACE_S) and a key of the TOML file (lease_grace_s); the flag
    wins over the variable, and that over the file.
    """
    settings = load(flags, os.environ, config)
    strangers = strangers_named(known_too=True)
    logs.set_up(settings.log_level, settings.log_format)
    if strangers is not None:
        logging.getLogger("registry").warning("variables %s", strangers)
    from registry.server.process import run

    run(settings)
