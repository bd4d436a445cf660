"""The server processes that are measured: the registry and its references, on the server's core.

Each is a context manager that ends its process whatever happens; if this process is killed, the
kernel ends them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.machine import ROOT, SERVER_CORE, WORK
from tests.ports import free_port

START_S = 60
STOP_S = 20
LISTENING = "listening on "


@dataclass(frozen=True, slots=True)
class Program:
    """A running server."""

    pid: int
    host: str
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"


@contextmanager
def registry(
    database: Path | str,
    core: int | str = SERVER_CORE,
    *,
    changed: str | None = None,
    **flags: object,
) -> Iterator[Program]:
    """The service as users start it, on a file of SQLite or at a URL; it answers /health. `changed`
    is a program that changes something of it and runs it."""
    command = _serve(database, flags)
    if changed is not None:
        command[1:3] = ["-c", changed]
    with started(command, core) as (process, output):
        program = _listening(process, output)
        wait_for_health(program)
        yield program


def _serve(database: Path | str, flags: dict[str, object]) -> list[str]:
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    command = [sys.executable, "-m", "registry", "serve", "--port", "0", "--database-url", url]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return command


@contextmanager
def starting(database: Path) -> Iterator[tuple[Program, float]]:
    """The service, and the seconds from the start of its process to a healthy answer."""
    began = time.perf_counter()
    with started(_serve(database, {})) as (process, output):
        program = _listening(process, output)
        wait_for_health(program)
        yield program, time.perf_counter() - began


@contextmanager
def reference(kind: str, file: Path) -> Iterator[Program]:
    """One of the ASGI applications of references.py, under the registry's uvicorn options."""
    command = [sys.executable, "-m", "benchmarks.references", kind, str(file)]
    with started(command) as (process, output):
        yield _listening(process, output)


@contextmanager
def nginx(binary: str, directory: Path, *, keeps_open: bool = False) -> Iterator[Program]:
    """nginx with sendfile over a directory, one process; it may keep the files open."""
    port = free_port()
    folder = WORK / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(f"""
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    {"open_file_cache max=1000 inactive=60s;" if keeps_open else ""}
{temporary}
    server {{
        listen 127.0.0.1:{port};
        root {directory};
    }}
}}
""")
    command = [binary, "-e", "stderr", "-p", str(folder), "-c", str(configuration)]
    with started(command) as (process, _):
        program = Program(process.pid, "127.0.0.1", port)
        _wait(lambda: _connects(program), "nginx does not listen")
        yield program


@contextmanager
def started(
    command: Sequence[str], core: int | str = SERVER_CORE, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process on one core, or on those listed, that ends with the block, or with us."""
    prefix = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    if shutil.which("setpriv"):
        prefix += ["setpriv", "--pdeathsig", "KILL", "--"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "servers.log").open("a") as log:
        process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**clean, **environment},
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout as output:
            yield process, output
            process.terminate()
            process.wait(STOP_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)


def _listening(process: subprocess.Popen[str], output: IO[str]) -> Program:
    for line in output:
        if line.startswith(LISTENING):
            host, _, port = line.split()[-1].removeprefix("http://").rpartition(":")
            return Program(process.pid, host, int(port))
    raise RuntimeError("a server ended before it listened")


def wait_for_health(program: Program) -> None:
    """Wait until /health is 200."""
    _wait(lambda: _healthy(program), "the service does not become healthy")


def _wait(condition: object, otherwise: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.002)


def _healthy(program: Program) -> bool:
    try:
        with socket.create_connection(program.address, timeout=START_S) as connection:
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            )
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _connects(program: Program) -> bool:
    try:
        socket.create_connection(program.address, timeout=1).close()
    except OSError:
        return False
    return True
