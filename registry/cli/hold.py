"""Being a worker until a signal comes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from registry.cli.exit_codes import COULD_NOT_RUN, INTERRUPTED
from registry.cli.output import ProgressBar
from registry.client.worker import OnProblem, Worker
from registry.core import stopping
from registry.core.logs import TextFormatter, handler_of
from registry.core.progress import OnProgress
from registry.core.records import Owner
from registry.discovery.cards import Card
from registry.errors import RegistryError, Superseded

DETACH_MAX_S = 20.0
"""How long detaching may take after a signal; whoever sent it may kill after 30 s."""

log = logging.getLogger("registry")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal came."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def hold(
    start: Callable[[OnProblem], Worker],
    attach: Callable[[Worker, OnProgress], Card],
    show: Callable[[Card], None],
) -> None:
    """Attach, show the card, and hold it until a signal comes or another worker takes over.

    The first signal detaches, which takes 20 s at most; a second one ends the process at once.

    Raises:
        Superseded: a newer instance of the worker has taken its place.
        RegistryError: it could not be attached, or not be detached.
    """
    ended = threading.Event()

    def note(owner: Owner, error: RegistryError) -> None:
        if isinstance(error, Superseded):
            ended.set()

    _show_log()
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        stopping.release(_bound())
        begun = start(note)
    except _Stopped as stopped:
        _end(stopped)
    came: _Stopped | None = None
    with begun as worker:
        try:
            with ProgressBar() as progress:
                card = attach(worker, progress)
            show(card)
            ended.wait()
        except _Stopped as stopped:
            came = stopped
    if came is not None:
        _end(came)
    if worker.superseded is not None:
        raise worker.superseded


def _end(stopped: _Stopped) -> NoReturn:
    """End as a service does: it is no failure to be told to."""
    log.info("detached, as %s came", signal.Signals(stopped.number).name)
    raise typer.Exit(INTERRUPTED if stopped.number == signal.SIGINT else 0)


def _show_log() -> None:
    """Have the worker say on standard error what it meets with and how it goes on."""
    handler = handler_of(sys.stderr)  # A lease is not to lapse for want of a reader.
    handler.setFormatter(TextFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, _end_at_once)
    stopping.end_in_time()
    raise _Stopped(number)


def _bound() -> stopping.Bound:
    return stopping.Bound(
        DETACH_MAX_S,
        COULD_NOT_RUN,
        f"could not detach within {DETACH_MAX_S:g} s. The registry releases the files when the "
        "lease and its grace are over.",
        SIGNALS,
    )


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """Process 1 of a container is not ended by a signal that it leaves alone."""
    os._exit(stopping.exit_code_of(number))
