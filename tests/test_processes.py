"""Several processes on one SQLite file: two services with two workers each, and two programs with
the in-process registry. Nobody is refused, nothing is lost, and what is gone is gone for all."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx2
import pytest

from registry import MetadataArtifactRegistry
from registry.core.records import ArtifactKey, Outcome, Owner
from registry.errors import NotRegistered
from tests.support import (
    Server,
    assert_sound,
    checksum,
    copied,
    in_place,
    opened_by,
    owner_body,
    sql,
)

SERVICES = 2
WORKERS = 2
PROGRAMS = 2
THREADS = 4
"""Clients of each service."""
ROUNDS = 12
BUSY_TIMEOUT_S = 60
"""So that a machine that is slow for other reasons is none here."""
CONNECTIONS_MAX = 200
"""To each service, until each of its workers has one."""

SHARED = ArtifactKey("shared", "_base", "config.json")

# A clean process that has the registry loaded, from which others are forked at once.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["registry.service.embedded", "alembic.command", "registry.store.sqlite.migrate"]
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "shared.json").write_bytes(b"shared")
    return folder


@pytest.fixture
def services(database_path: Path, root: Path) -> Iterator[list[Server]]:
    """Started one after the other; both on the same new file."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Server(
                    database_path,
                    workers=WORKERS,
                    artifact_root=root,
                    busy_timeout_s=BUSY_TIMEOUT_S,
                    from_nothing=True,
                )
            )
            for _ in range(SERVICES)
        ]


def key_of(owner: Owner) -> ArtifactKey:
    """The key that an owner has for itself."""
    return ArtifactKey(f"own-{owner.component}-{owner.instance_id}", "_base", "config.json")


def rewrite(root: Path, owner: Owner, number: int) -> Path:
    """Content that the owner's key has never had, in a file of its own."""
    path = root / f"{owner.component}-{owner.instance_id}-{number}.json"
    path.write_bytes(f"{owner} {number}".encode())
    return path


# Under load


def use_program(url: str, root: Path, number: int) -> None:
    """What each of the in-process programs does, from several threads."""
    with MetadataArtifactRegistry(url, busy_timeout_s=BUSY_TIMEOUT_S) as registry:

        def work(thread: int) -> None:
            owner = Owner("ns", "program", "generate", number * THREADS + thread)
            for round_number in range(ROUNDS):
                path = rewrite(root, owner, round_number)
                outcome = registry.register(owner, *parts(key_of(owner)), path)
                assert outcome is (Outcome.REPLACED if round_number else Outcome.CREATED)
                registry.register(owner, *parts(SHARED), root / "shared.json")
                assert registry.read(*parts(key_of(owner))) == path.read_bytes()
            if thread % 2:
                assert registry.unregister_for_owner(owner).released == 2

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, range(THREADS)))


def use_service(server: Server, root: Path, number: int) -> None:
    """The same over HTTP, and with copies."""
    owner = Owner("ns", "service", "generate", number)
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for round_number in range(ROUNDS):
            path = rewrite(root, owner, round_number)
            content = path.read_bytes()
            if round_number % 2:
                call(client, "PUT", f"/v1/blobs/{checksum(content)}", content=content)
                line = copied(key_of(owner), content)
            else:
                line = in_place(key_of(owner), path)
            lines = [line, in_place(SHARED, root / "shared.json")]
            body = {"owner": owner_body(owner), "lease_ttl_s": None, "artifacts": lines}
            answer = call(client, "POST", "/v1/registrations", json=body)
            assert answer["artifacts"][0]["outcome"] == ("replaced" if round_number else "created")
            key = key_of(owner)
            assert client.get(f"/v1/metadata/{key}").content == content
        if number % 2:
            assert call(client, "DELETE", f"/v1/owners/{owner}")["released"] == 2


def call(client: httpx2.Client, method: str, path: str, **request: Any) -> Any:
    answer = client.request(method, path, **request)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def parts(key: ArtifactKey) -> tuple[str, str, str]:
    return key.slug, key.suffix, key.filename


@contextmanager
def programs(count: int) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(count, mp_context=processes) as pool:
        yield pool


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    return [future.result(60) for future in futures]


def test_four_processes_write_at_once_and_nothing_is_refused_or_lost(
    services: list[Server], database_path: Path, root: Path
) -> None:
    """Every key was replaced once for each round but the first, which its generation tells: a
    lost update would leave a smaller one."""
    url = f"sqlite:///{database_path}"
    clients = SERVICES * THREADS
    with programs(PROGRAMS) as pool, ThreadPoolExecutor(clients) as threads:
        running: list[Future[Any]] = []
        running += [pool.submit(use_program, url, root, number) for number in range(PROGRAMS)]
        running += [
            threads.submit(use_service, services[number % SERVICES], root, number)
            for number in range(clients)
        ]
        results(running)
    expected = {
        key_of(Owner("ns", component, "generate", number)): ROUNDS
        for component, count in (("program", PROGRAMS * THREADS), ("service", clients))
        for number in range(0, count, 2)
    }
    with sql(database_path) as connection:
        rows = connection.execute("SELECT slug, suffix, filename, generation FROM entries")
        found = {ArtifactKey(*row[:3]): row[3] for row in rows}
        holders = connection.execute(
            "SELECT count(*) FROM holders WHERE slug = ?", [SHARED.slug]
        ).fetchall()
        replaced = connection.execute(
            "SELECT count(*) FROM events WHERE kind = 'replaced'"
        ).fetchall()
    assert found == {**expected, SHARED: 1}
    assert holders == [(len(expected),)]
    assert replaced == [(2 * len(expected) * (ROUNDS - 1),)]
    for server in services:
        for key in expected:
            assert server.fetch(key).status_code == 200
        assert "Traceback" not in server.log
        assert "locked" not in server.log


# At once


@contextmanager
def readers(services: Sequence[Server]) -> Iterator[list[Callable[[ArtifactKey], bytes | None]]]:
    """Ways to read a key: connections to every worker of every service."""
    with ExitStack() as stack:

        def connect(server: Server) -> Callable[[ArtifactKey], bytes | None]:
            client = stack.enter_context(httpx2.Client(base_url=server.url, timeout=60))

            def read(key: ArtifactKey) -> bytes | None:
                answer = client.get(f"/v1/metadata/{key}")
                assert answer.status_code in (200, 404), answer.text
                return answer.content if answer.status_code == 200 else None

            read(SHARED)
            return read

        found = []
        for server in services:
            for _ in range(CONNECTIONS_MAX):
                found.append(connect(server))
                if len(workers_in_touch(server)) == WORKERS:
                    break
            else:
                raise AssertionError("one worker took every connection")
        yield found


def workers_in_touch(server: Server) -> set[int]:
    """The processes of a service that hold a connection of ours, as the kernel knows them."""
    port = f":{server.address[1]:04X}"
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in table if row[1].endswith(port) and row[3] == "01"}
    return {
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if session_of(process) == server.process.pid and sockets_of(process) & ours
    }


def session_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return None  # It has ended.


def sockets_of(process: Path) -> set[str]:
    return set(opened_by(int(process.name)))


class Program:
    """A process with the in-process registry, told what to do over a pipe."""

    def __init__(self, url: str) -> None:
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=serve_pipe, args=(url, theirs))
        self._process.start()
        theirs.close()

    def __call__(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        assert self._pipe.poll(60)
        return self._pipe.recv()

    def read(self, key: ArtifactKey) -> bytes | None:
        found = self("read", *parts(key))
        assert found is None or isinstance(found, bytes)
        return found

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(60)
        self._pipe.close()
        assert self._process.exitcode == 0


def serve_pipe(url: str, pipe: Any) -> None:
    with MetadataArtifactRegistry(url, busy_timeout_s=BUSY_TIMEOUT_S) as registry:
        while (message := pipe.recv()) is not None:
            method, arguments = message
            try:
                pipe.send(getattr(registry, method)(*arguments))
            except NotRegistered:
                pipe.send(None)
    pipe.close()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux for the workers")
def test_what_one_process_registers_or_removes_the_others_see_at_once(
    services: list[Server], database_path: Path, root: Path
) -> None:
    """Every process has just read the key and remembers it, when another one takes it away."""
    key = ArtifactKey("coming-and-going", "_base", "config.json")
    path = root / "shared.json"
    content = path.read_bytes()
    owner = Owner("ns", "backend", "generate", 1)

    def register_by_service(server: Server) -> None:
        assert server.register(owner, [in_place(key, path)]).status_code == 200

    def unregister_by_service(server: Server) -> None:
        assert server.unregister(owner).status_code == 200

    def remove_by_service(server: Server) -> None:
        answer = server.client.delete(f"/v1/artifacts/{key.slug}/{key.suffix}")
        assert answer.json()["released"] == 1

    def register_by_program(program: Program) -> None:
        assert program("register", owner, *parts(key), str(path)) is Outcome.CREATED

    def unregister_by_program(program: Program) -> None:
        assert program("unregister_for_owner", owner).released == 1

    with ExitStack() as stack:
        several = [Program(f"sqlite:///{database_path}") for _ in range(PROGRAMS)]
        for program in several:
            stack.callback(program.close)
        everybody = stack.enter_context(readers(services))
        everybody += [program.read for program in several]
        one, two = services
        steps: list[tuple[Callable[[], None], Callable[[], None]]] = [
            (lambda: register_by_service(one), lambda: unregister_by_service(one)),
            (lambda: register_by_service(one), lambda: unregister_by_service(two)),
            (lambda: register_by_service(two), lambda: unregister_by_program(several[0])),
            (lambda: register_by_program(several[0]), lambda: remove_by_service(one)),
            (lambda: register_by_program(several[1]), lambda: unregister_by_program(several[0])),
        ]
        for come, leave in steps * 3:
            come()
            assert [read(key) for read in everybody] == [content] * len(everybody)
            leave()
            assert [read(key) for read in everybody] == [None] * len(everybody)


# Opening


def open_at_once(url: str, start: Barrier, path: str, number: int) -> int:
    start.wait(60)
    with MetadataArtifactRegistry(url, busy_timeout_s=BUSY_TIMEOUT_S) as registry:
        registry.register(Owner("ns", "backend", "generate", number), *parts(SHARED), path)
        return len(registry)


def test_twenty_processes_open_one_new_file_at_once(database_path: Path, root: Path) -> None:
    """One of them makes the schema; the others find it made."""
    url = f"sqlite:///{database_path}"
    with processes.Manager() as manager, programs(20) as pool:
        start = manager.Barrier(20)
        path = str(root / "shared.json")
        opened = [pool.submit(open_at_once, url, start, path, number) for number in range(20)]
        assert results(opened) == [1] * 20
    with sql(database_path) as connection:
        assert connection.execute("SELECT count(*) FROM holders").fetchone() == (20,)
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    assert_sound(database_path)
