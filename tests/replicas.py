"""Several service processes on one database in PostgreSQL, and who uses all of them at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psycopg

from registry.core.findings import Severity
from registry.core.records import ArtifactKey, Owner
from registry.store.opening import open_database
from registry.store.postgresql.address import conninfo_of
from registry.store.reads.audit import find_leaks
from registry.store.reads.verify import verify
from tests.support import FAULTS, Server, copied, owner_body

CONTENT = b'{"model_type": "tiny"}'
FIXED = ArtifactKey("fixed", "_base", "config.json")
FIXED_OWNER = Owner("ns", "backend", "fixed", 1)
ANSWERS_WITHIN_S = 60.0
PAUSE_S = 0.05
PRAGMAS = ("integrity", "foreign_keys")

Held = dict[int, set[str]]
"""What owners hold: names of files, by instance id."""


def start(url: str, **flags: Any) -> Server:
    """A service process on a database in PostgreSQL."""
    return Server(url, **flags)


def assert_sound_at(url: str) -> None:
    """Fail if anything in the database contradicts itself, or the audit finds anything."""
    with psycopg.connect(conninfo_of(url)) as connection:
        for name, query in FAULTS.items():
            if name not in PRAGMAS:
                assert connection.execute(query.encode()).fetchall() == [], name
    database = open_database(url)
    try:
        with database.read() as conn:
            found = find_leaks(conn)
        # Those who lapsed when no replica was left to sweep are no fault.
        faults = [each for each in found if each.severity is not Severity.NOTE]
        assert [each for each in faults if each.kind != "lapsed_lease"] == []
        assert list(verify(database)) == []
    finally:
        database.close()


def set_fixed(server: Server) -> None:
    """Register what every reader asks for, and upload what every writer registers."""
    answer = server.register_copies(FIXED_OWNER, {FIXED: CONTENT}, lease_ttl_s=None)
    assert answer.status_code == 200, answer.text


@dataclass
class Answer:
    """What a caller was told."""

    method: str
    began: float
    ended: float
    status: int
    detail: str = ""


@dataclass
class Callers:
    """Owners who register and unregister through any of several services, and readers.

    Whoever is refused with 503, or loses his connection, repeats the request, at another service,
    until it is done: so everybody knows what he holds. Whatever else comes is a fault.
    """

    urls: list[str]
    writers: int = 32
    readers: int = 4
    loses_connections: bool = False
    acknowledged: list[tuple[int, str]] = field(default_factory=list)
    held: Held = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lost: int = 0
    """Requests whose connection broke."""

    def __enter__(self) -> Callers:
        self._is_ending = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        self._thread.join()

    def wait_for_more(self, number: int) -> None:
        """Until as many more writes were acknowledged."""
        target = len(self.acknowledged) + number
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while len(self.acknowledged) < target and not self.faults:
            assert time.monotonic() < deadline, "nothing is acknowledged any more"
            time.sleep(0.005)

    def first_success_after(self, moment: float, *methods: str) -> float:
        """Seconds until the first answer to a request that began after a moment."""
        return min(
            each.ended - moment
            for each in self.answers
            if each.began > moment and each.status == 200 and each.method in methods
        )

    def check(self, url: str) -> None:
        """Nothing acknowledged is missing, nobody holds more than he knows of, and nobody was told
        anything but success, or 503 with Retry-After."""
        assert self.faults == []
        with psycopg.connect(conninfo_of(url)) as connection:
            journal = Counter(
                connection.execute(
                    "SELECT instance_id::int, filename FROM events WHERE kind = 'registered'"
                ).fetchall()
            )
            rows = connection.execute(
                "SELECT instance_id::int, filename FROM owner_refs "
                "JOIN entries e ON e.id = entry_id JOIN owners o ON o.id = owner_id "
                "WHERE o.endpoint = 'generate'"
            ).fetchall()
        assert [each for each in self.acknowledged if journal[each] != 1] == []
        found: Held = {number: set() for number in self.held}
        for number, name in rows:
            found[number].add(name)
        assert found == self.held
        assert_sound_at(url)

    # The callers

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=ANSWERS_WITHIN_S, limits=limits) as self._client:
            await asyncio.gather(
                *(self._write(number) for number in range(self.writers)),
                *(self._read() for _ in range(self.readers)),
            )

    async def _write(self, number: int) -> None:
        rng, names = random.Random(), itertools.count()
        owner, held = Owner("ns", "backend", "generate", number), set[str]()
        self.held[number] = held
        while not self._is_ending and not self.faults:
            if held and rng.random() < 0.1:
                await self._until_done("DELETE", f"/v1/owners/{owner}")
                held.clear()
                continue
            name = f"{number}-{next(names)}.json"
            artifacts = [copied(ArtifactKey(f"model-{number}", "_base", name), CONTENT)]
            body = {"owner": owner_body(owner), "lease_ttl_s": None, "artifacts": artifacts}
            if await self._until_done("POST", "/v1/registrations", json=body):
                held.add(name)
                self.acknowledged.append((number, name))

    async def _read(self) -> None:
        while not self._is_ending and not self.faults:
            await self._until_done("GET", f"/v1/metadata/{FIXED}")
            await asyncio.sleep(0.01)

    async def _until_done(self, method: str, path: str, **request: Any) -> bool:
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                answer = await self._client.request(
                    method, random.choice(self.urls) + path, **request
                )
            except httpx2.TransportError as error:
                self.lost += 1
                if not self.loses_connections:
                    self.faults.append(f"{method} {path}: {error!r}")
                    return False
                await asyncio.sleep(PAUSE_S)
                continue
            ended, status = time.monotonic(), answer.status_code
            self.answers.append(
                Answer(method, began, ended, status, answer.text if status != 200 else "")
            )
            if status == 200:
                return True
            if status != 503 or "retry-after" not in answer.headers:
                self.faults.append(f"{method} {path}: {status} {answer.text}")
                return False
            await asyncio.sleep(PAUSE_S)
        self.faults.append(f"{method} {path} was not done within {ANSWERS_WITHIN_S} s")
        return False


def wait_for_success(call: Callable[[], httpx2.Response], within_s: float) -> float:
    """Call until it works, which it must within a bound; 503 is all that may come before. How many
    seconds it took."""
    began = time.monotonic()
    while True:
        answer = call()
        if answer.status_code == 200:
            return time.monotonic() - began
        assert_refused(answer)
        assert time.monotonic() - began < within_s, answer.text
        time.sleep(PAUSE_S)


def assert_refused(answer: httpx2.Response, *said: str) -> None:
    """Fail unless a caller was told to repeat it, and why."""
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert int(answer.headers["retry-after"]) > 0
    detail = answer.json()["detail"]
    assert all(each in detail for each in said), detail
