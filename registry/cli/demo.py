"""`metadata-registry demo`: a small lively fleet, to look around in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated

import typer

from registry.core.stopping import Stopped
from registry.errors import Refused, SettingsError

STOP_S = 30.0
OURS = ("--lease-grace-s", "20", "--sweep-interval-s", "2", "--upload-grace-s", "60")
"""Short times, so that something happens while somebody looks."""


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep everything here, and go on with it next time. Default: a temporary one.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Listen here; 0: on a free port.")
    ] = 8090,
) -> None:
    """Serve a registry with a small fleet of made-up workers, until Ctrl-C.

    Models and LoRAs, workers that restart, drain, lapse and disagree: so that the pages, the audit
    and the journal have something in them. It has a database of its own, listens on this machine
    only, and leaves nothing behind unless it is given a directory.
    """
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    with ExitStack() as stack:
        if directory is None:
            name = TemporaryDirectory(prefix="metadata-registry-demo-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(name))
        folder = directory.absolute()
        database = folder / "registry.db"
        _check(folder, database)
        (folder / "models").mkdir(parents=True, exist_ok=True)
        (folder / "demo").touch()
        url, service = stack.enter_context(_service(folder, database, port))
        from registry.cli.demo_fleet import Fleet
        from registry.client.client import RegistryClient
        from registry.client.retries import RetryPolicy

        client = stack.enter_context(RegistryClient(url, retries=RetryPolicy(attempts=1)))
        fleet = Fleet(client, folder / "models")
        try:
            fleet.arrive()
            print(f"\nOpen {url} in a browser. Ctrl-C ends it.")
            print(f"Its database is sqlite:///{database}", flush=True)
            while service.poll() is None:
                fleet.live()
        except (KeyboardInterrupt, Stopped):
            return
    raise Refused(f"The service has ended with code {service.returncode}; see above why.")


def _check(folder: Path, database: Path) -> None:
    """Raise SettingsError for a directory whose registry is none of ours."""
    if database.exists() and not (folder / "demo").exists():
        raise SettingsError(
            f"{folder} has a registry that no demo made. Name another directory, or none."
        )


@contextmanager
def _service(
    folder: Path, database: Path, port: int
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service, and where it is, while the block runs."""
    command = [sys.executable, "-m", "registry", "serve", "--port", str(port), *OURS]
    command += ["--database-url", f"sqlite:///{database}"]
    command += ["--artifact-root", str(folder / "models"), "--log-level", "error"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    # In a session of its own: Ctrl-C is for us, and twice told it would not end in peace.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=ours, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield _address(process, process.stdout), process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[str], output: IO[str]) -> str:
    """Where the service listens; what it says is shown."""
    for line in output:
        print(line, end="", flush=True)
        if line.startswith("listening on "):
            threading.Thread(target=output.read, daemon=True).start()
            return line.split()[-1]
    raise SettingsError(f"The service did not start (code {process.wait()}); see above why.")
