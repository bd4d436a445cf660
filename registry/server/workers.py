"""Several processes that serve one address: uvicorn's supervisor, mended where it falls short."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uvicorn.supervisors import Multiprocess

from registry.server.http1.protocol import Config

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers share the values of their metrics; `prometheus_client` reads it."""

_METRICS_NAME = "metadata-registry-metrics-"
_STARTUP_FAILURE = 3

log = logging.getLogger("registry")


class Workers(Multiprocess):
    """The parent of the worker processes.

    SIGHUP is passed on if the workers can `reload`, and ends the service otherwise. When it
    stops, nobody can connect any more, workers answer what they have accepted, and those that do
    not end within `stop_s` are killed.
    """

    def __init__(
        self, config: Config, *, sockets: list[socket.socket], stop_s: float, reload: bool
    ) -> None:
        super().__init__(config, sockets)
        self._stop_s = stop_s
        self._reload = reload
        self.interrupted = False
        """Whether SIGINT ended the service."""

    @property
    def failed(self) -> bool:
        """Whether the service ended because a worker could not start."""
        return any(process.exitcode == _STARTUP_FAILURE for process in self.processes)

    def handle_int(self) -> None:
        self.interrupted = True
        super().handle_int()

    def handle_hup(self) -> None:
        if not self._reload:
            self.handle_term()
            return
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)

    def keep_subprocess_alive(self) -> None:
        before = [process.pid for process in self.processes]
        super().keep_subprocess_alive()
        after = {process.pid for process in self.processes}
        for pid in before:
            if pid not in after:
                _forget_gauges(pid)

    def terminate_all(self) -> None:
        for listener in self.sockets:
            listener.close()
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + self._stop_s
        for process in self.processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.process.is_alive():
                log.error("worker %s did not stop in time and was killed", process.pid)
                process.kill()
                process.join()


def stop_with_parent() -> None:
    """Stop this worker process when its parent is gone, so that nobody keeps the port."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        log.error("the parent process is gone; this worker stops")
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=wait, name="registry-parent", daemon=True).start()


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Gives the workers a private directory for the values of their metrics.

    It lies in memory where the system has such a place, so that a full disk cannot harm a worker
    that counts. It goes when the block ends, and so do those that killed services have left.
    """
    place = Path("/dev/shm")
    base = place if os.access(place, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    _remove_abandoned(base)
    directory = Path(tempfile.mkdtemp(prefix=_METRICS_NAME, dir=base))
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.environ[METRICS_VARIABLE] = str(directory)
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(base: Path) -> None:
    """Remove the directories that no living process has locked."""
    for directory in base.glob(f"{_METRICS_NAME}*"):
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # Another user's, or gone meanwhile.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _forget_gauges(pid: int | None) -> None:
    """Remove what a process that is gone had to say about now; its counts stay."""
    for left in Path(os.environ[METRICS_VARIABLE]).glob(f"gauge_live*_{pid}.db"):
        left.unlink(missing_ok=True)
