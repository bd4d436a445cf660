"""The end of a service: what was accepted is answered, nobody new comes in, and it does end."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from registry.server.process import SHUTDOWN_S
from tests.exchanges import Line, request, traceback_of
from tests.support import Server, checksum, copied, sql, wait_for, workers_of

OWNER = Owner("shutdown", "backend", "generate", 1)
KEY = ArtifactKey("model", "_base", "config.json")
CONTENT = b"{}"
REASONABLE_S = 15
"""Well below the bound: what needs not wait is over by then, on a slow machine as well."""

alone_and_with_workers = pytest.mark.parametrize("workers", [1, 2])


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Writes wait while the block runs, or until it rolls back."""
    with sql(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def refuses_connections(server: Server) -> bool:
    try:
        socket.create_connection(server.address, timeout=5).close()
    except OSError:
        return True
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@alone_and_with_workers
def test_a_write_that_was_accepted_is_made_and_answered(
    serve: Callable[..., Server], workers: int
) -> None:
    server = serve(workers=workers, busy_timeout_s=30)
    assert server.upload(CONTENT).status_code == 201
    answers: list[httpx2.Response] = []
    with locked(server.database) as lock:
        writer = threading.Thread(
            target=lambda: answers.append(server.register(OWNER, [copied(KEY, CONTENT)]))
        )
        writer.start()
        wait_for(lambda: server.client.get("/live").status_code == 200)
        time.sleep(0.5)
        server.process.terminate()
        wait_for(lambda: refuses_connections(server))
        assert server.process.poll() is None
        lock.execute("ROLLBACK")
    writer.join()
    assert [answer.status_code for answer in answers] == [200]
    assert server.stop() == 0
    assert traceback_of(server) == ""
    with sql(server.database) as connection:
        assert connection.execute("SELECT slug FROM entries").fetchall() == [("model",)]


@alone_and_with_workers
def test_an_upload_that_began_may_end(serve: Callable[..., Server], workers: int) -> None:
    server = serve(workers=workers)
    with Line(server) as line:
        head = request(
            f"/v1/blobs/{checksum(CONTENT)}", f"Content-Length: {len(CONTENT)}", method="PUT"
        )
        line.send(head + CONTENT[:1])
        assert server.client.get("/live").status_code == 200
        time.sleep(0.5)
        server.process.terminate()
        wait_for(lambda: refuses_connections(server))
        line.send(CONTENT[1:])
        answer = line.read_answer()
        assert (answer.status_code, answer.headers["connection"]) == (201, "close")
    assert server.stop() == 0


def test_pipelined_requests_that_were_taken_in_are_answered(serve: Callable[..., Server]) -> None:
    server = serve(busy_timeout_s=30)
    owners = [Owner("shutdown", "backend", "generate", number) for number in range(5)]
    with Line(server) as line:
        with locked(server.database) as lock:
            line.send(b"".join(request(f"/v1/owners/{o}", method="DELETE") for o in owners))
            time.sleep(0.5)
            server.process.terminate()
            wait_for(lambda: refuses_connections(server))
            lock.execute("ROLLBACK")
        for owner in owners:
            answer = line.read_answer()
            assert answer.json()["owner"]["instance_id"] == str(owner.instance_id)
        assert line.read_rest() == b""
    assert server.stop() == 0


@alone_and_with_workers
def test_idle_connections_do_not_delay_the_end(serve: Callable[..., Server], workers: int) -> None:
    server = serve(workers=workers)
    with Line(server) as kept, Line(server) as silent, Line(server) as begun:
        kept.ask("/live")
        assert kept.read_answer().status_code == 200
        begun.send(b"GET /live HT")
        time.sleep(0.5)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < REASONABLE_S
        assert (kept.read_rest(), silent.read_rest(), begun.read_rest()) == (b"", b"", b"")


@alone_and_with_workers
def test_who_does_not_come_to_an_end_delays_it_for_a_bounded_time_only(
    serve: Callable[..., Server], workers: int
) -> None:
    server = serve(workers=workers, body_timeout_s=3600)
    with Line(server) as line:
        line.send(
            request(f"/v1/blobs/{checksum(CONTENT)}", "Content-Length: 1000", method="PUT") + b"x"
        )
        assert server.client.get("/live").status_code == 200
        time.sleep(0.5)
        started = time.monotonic()
        server.process.terminate()
        assert server.process.wait(SHUTDOWN_S + REASONABLE_S) == 0
        assert time.monotonic() - started > SHUTDOWN_S / 2
    server.stop()
    with sql(server.database) as connection:
        assert connection.execute("SELECT * FROM blobs").fetchall() == []


@alone_and_with_workers
def test_an_end_that_hangs_is_cut_short(serve: Callable[..., Server], workers: int) -> None:
    """Here a write waits for the lock for ten minutes; it might be a file system that hangs."""
    program = ["-c", "from registry.server import process; process.GONE_S = 1;"]
    program[1] += "process.SHUTDOWN_S = 1; from registry.__main__ import main; main()"
    server = serve(workers=workers, busy_timeout_s=600, program=program)
    with locked(server.database), socket.create_connection(server.address) as line:
        line.sendall(request(f"/v1/owners/{OWNER}", method="DELETE"))
        assert server.client.get("/live").status_code == 200
        server.process.terminate()
        code = server.process.wait(REASONABLE_S * 2)
    server.stop()
    assert code == (2 if workers == 1 else 0)
    assert ("something hangs" if workers == 1 else "did not stop in time") in server.log


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
@alone_and_with_workers
def test_ending_on_request_is_told_by_the_exit_code(
    serve: Callable[..., Server], workers: int, number: signal.Signals, code: int
) -> None:
    server = serve(workers=workers)
    server.process.send_signal(number)
    assert server.process.wait(REASONABLE_S) == code
    server.stop()
    assert traceback_of(server) == ""


def test_a_worker_that_was_killed_is_replaced(serve: Callable[..., Server]) -> None:
    server = serve(workers=2)
    first, second = workers_of(server)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: first not in workers_of(server) and len(workers_of(server)) == 2)
    assert second in workers_of(server)
    for _ in range(20):
        assert httpx2.get(f"{server.url}/live").status_code == 200


def test_workers_end_when_their_parent_was_killed(serve: Callable[..., Server]) -> None:
    server = serve(workers=2)
    workers = workers_of(server)
    assert len(workers) == 2
    server.process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in workers))
    wait_for(lambda: refuses_connections(server))


def test_a_worker_that_hangs_is_killed(serve: Callable[..., Server]) -> None:
    server = serve(workers=2)
    hanging = workers_of(server)[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.1)
        wait_for(lambda: not is_running(hanging), within_s=60)
    finally:
        if is_running(hanging):
            os.kill(hanging, signal.SIGCONT)
    wait_for(lambda: len(workers_of(server)) == 2)
