"""What attacks share: a service, what it acknowledged, and what was found wrong."""

from __future__ import annotations

import http.client
import json
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from registry.core.hashing import checksum_of
from tests.support import Server, assert_sound, sql

SILENCE_S = 30
"""A call that is not answered for so long is wrong, whatever the service lacks."""

Answer = tuple[int, bytes]


class CannotTry(Exception):
    """This machine lacks what an attack needs."""


class Findings:
    """What an attack counted, and what it found wrong. For any thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, number: int = 1) -> None:
        """So many more of these."""
        with self._lock:
            self.counts[name] += number

    def fail(self, what: str) -> None:
        """Something is as it must never be."""
        with self._lock:
            self.wrong[what] += 1

    def check(self, holds: bool, otherwise: str) -> None:
        """It must hold."""
        if not holds:
            self.fail(otherwise)

    @property
    def line(self) -> str:
        """The figures in one line."""
        return ", ".join(f"{number} {name}" for name, number in self.counts.items())


class Caller:
    """A kept connection to a service, for one thread; opened again when it ends."""

    def __init__(self, server: Server, timeout_s: float = SILENCE_S) -> None:
        self._address = server.address
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """A request; its status and the body. OSError and HTTPException: there was no answer."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_s)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if not isinstance(body, bytes) and body is not None:
            sent["content-type"] = "application/json"
        try:
            self._connection.request(method, path, content, sent)
            answer = self._connection.getresponse()
            found = answer.status, answer.read()
        except BaseException:
            self.close()
            raise
        if answer.will_close:
            self.close()
        return found

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


NO_ANSWER = (OSError, http.client.HTTPException)


def owner(number: int) -> dict[str, Any]:
    """An owner as JSON."""
    return {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": str(number)}


def line(slug: str, filename: str, content: bytes | None = None, path: Path | None = None) -> Any:
    """A line of a manifest: a copy, or a file in place."""
    made: dict[str, Any] = {"slug": slug, "suffix": "_base", "filename": filename}
    if content is not None:
        made |= {"checksum": checksum_of(content), "size": len(content)}
    return made if path is None else made | {"path": str(path)}


def register(caller: Caller, number: int, *lines: Any, lease: float | None = None) -> Answer:
    """Register a manifest."""
    body = {"owner": owner(number), "lease_ttl_s": lease, "artifacts": list(lines)}
    return caller.call("POST", "/v1/registrations", body)


def upload(caller: Caller, content: bytes) -> Answer:
    """Upload content."""
    return caller.call("PUT", f"/v1/blobs/{checksum_of(content)}", content)


def fetch(caller: Caller, slug: str, filename: str, **headers: str) -> Answer:
    """Read a file."""
    return caller.call("GET", f"/v1/metadata/{slug}/_base/{filename}", **headers)


class Load:
    """Callers that register, each in a thread, and what was acknowledged to them.

    A write that is not answered with 200 is 409 or 503 with a known code, or was cut off with the
    process.
    """

    def __init__(
        self, server: Server, findings: Findings, *, callers: int = 8, content_bytes: int = 3000
    ) -> None:
        self._server = server
        self._findings = findings
        self._bytes = content_bytes
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(1, callers + 1)
        ]
        self.acknowledged: set[int] = set()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While the block runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def _work(self, number: int) -> None:
        caller, turn = Caller(self._server), 0
        while not self._stopping.is_set():
            turn += 1
            me = number * 1_000_000 + turn
            content = b"%d " % me + os.urandom(8) + b"x" * self._bytes
            try:
                status, said = upload(caller, content)
                if status in (200, 201):
                    status, said = register(caller, me, line(f"m{number}", f"{turn}.json", content))
            except NO_ANSWER as error:
                if isinstance(error, TimeoutError):
                    self._findings.fail(f"no answer within {SILENCE_S} s")
                time.sleep(0.02)
                continue
            if status == 200:
                self.acknowledged.add(me)
            elif status != 503:
                self._findings.fail(f"a write is answered {status}: {said[:150]!r}")
            else:
                time.sleep(0.02)
        caller.close()

    def check(self, path: Path) -> None:
        """Everything acknowledged is there, and the database is sound."""
        self._findings.count("acknowledged", len(self.acknowledged))
        with sql(path) as connection:
            rows = connection.execute(
                "SELECT instance_id FROM owners JOIN owner_refs ON owner_id = owners.id"
            )
            lost = self.acknowledged - {int(number) for (number,) in rows}
        self._findings.check(not lost, f"{len(lost)} acknowledged writes are lost")
        check_sound(path, self._findings)


def check_sound(path: Path, findings: Findings) -> None:
    """Nothing in the database contradicts itself."""
    try:
        assert_sound(path)
    except Exception as error:  # Damage shows in many ways.
        findings.fail(f"the database is not sound: {str(error)[:200]}")


def check_nobody_is_accused(caller: Caller, findings: Findings) -> None:
    """The journal says of no file that it changed or is gone."""
    _, said = caller.call("GET", "/v1/events?order=newest&limit=1000")
    kinds = Counter(event["kind"] for event in json.loads(said)["events"])
    for kind in ("drifted", "missing"):
        findings.check(not kinds[kind], f"a sound file is {kind} in the journal")


def check_log(server: Server, findings: Findings) -> None:
    """No traceback is in the log of a service."""
    start = server.log.find("Traceback")
    findings.check(start < 0, f"traceback in the log: {server.log[start : start + 3000]}")


def limited(**limits: int) -> Callable[[], None]:
    """For a new process: resource limits by name, as NOFILE or AS."""

    def apply() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return apply


@contextmanager
def service(folder: Path, findings: Findings, **flags: Any) -> Iterator[Server]:
    """A service that must end well when the block ends, and leave no traceback."""
    with Server(folder / "registry.db", **flags) as server:
        yield server
        if server.process.poll() is None:
            findings.check(server.stop() == 0, "the service does not end well on SIGTERM")
    check_log(server, findings)


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Do something in several threads at once, and wait for all."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def probe(server: Server, findings: Findings, within_s: float, **paths: str) -> None:
    """Each path is answered 200 in time, whatever else is going on."""
    for name, path in paths.items():
        caller = Caller(server, within_s)
        status: int | str = "nothing"
        with suppress(*NO_ANSWER):
            status = caller.call("GET", path)[0]
        findings.check(status == 200, f"{name} is answered {status} within {within_s:g} s")
        findings.count("probes")
        caller.close()
