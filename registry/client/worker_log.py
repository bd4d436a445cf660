"""The log of a worker."""

from __future__ import annotations

import logging
from contextlib import suppress

log = logging.getLogger("registry.worker")


def log_safely(level: int, message: str, *arguments: object, exc_info: bool = False) -> None:
    """Log something where a handler that raises must not get in the way of what comes next."""
    with suppress(BaseException):
        log.log(level, message, *arguments, exc_info=exc_info)
