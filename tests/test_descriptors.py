"""Open files: limits count what a connection takes, and who runs out of them says so, no more."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import trustme

from registry.config import Settings
from registry.core.records import ArtifactKey, Owner
from registry.server.process import limits_of
from tests.support import Server, in_place, wait_for

KEY = ArtifactKey("model", "_base", "large.bin")
SMALL = ArtifactKey("small", "_base", "config.json")
OWNER, OTHER = (Owner("descriptors", "backend", "generate", number) for number in (1, 2))
LARGE = bytes(range(256)) * (24 << 10)  # 6 MiB


def may_open(soft: int, hard: int | None = None) -> Callable[[], None]:
    """For a new process: how many files it may have open."""
    limits = (soft, soft if hard is None else hard)
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# What is said at the start


@contextlib.contextmanager
def lowered(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_by_two_for_each_connection() -> None:
    with lowered(256):
        limits = limits_of(Settings(max_connections=500))
        assert limits.max_connections == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2 * 500 + 128


HARD = {64: 2, 100: 20, 128: 32, 256: 64, 1024: 448, 1128: 500, 4096: 500}
"""How many connections there are where no more files than so many may be open."""


@pytest.mark.parametrize("hard", HARD)
def test_connections_are_as_many_as_files_may_be_open_for(hard: int) -> None:
    script = (
        "from registry.config import Settings; from registry.server.process import limits_of; "
        "print(limits_of(Settings(max_connections=500)).max_connections)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=may_open(hard),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == HARD[hard]
    assert ("ulimit -n" in done.stderr) == (HARD[hard] < 500)


def test_too_few_files_for_the_service_itself_are_refused_at_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "registry", "serve", "--port", "0"],
        preexec_fn=may_open(40),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "may open 40 files only" in done.stderr
    assert "ulimit -n" in done.stderr


# What happens then


@contextlib.contextmanager
def readers(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that ask for a large file and take nothing of it."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.settimeout(10)
            peer.connect(server.address)
            stack.enter_context(peer)
            with contextlib.suppress(OSError):  # Refused already.
                peer.sendall(f"GET /v1/metadata/{KEY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            found.append(peer)
        yield found


@pytest.mark.parametrize("files", [64, 200])
def test_more_readers_than_files_may_be_open_for_accuse_nobody(
    serve: Callable[..., Server], tmp_path: Path, files: int
) -> None:
    """Each takes two: the connection, and the file that is streamed."""
    root = tmp_path / "models"
    root.mkdir()
    (root / KEY.filename).write_bytes(LARGE)
    (root / SMALL.filename).write_bytes(b"{}")
    server = serve(
        artifact_root=root,
        content_cache_bytes=1 << 20,
        before_start=may_open(files),
        log_level="info",
    )
    assert "ulimit -n" in server.log
    assert server.register(OWNER, [in_place(KEY, root / KEY.filename)]).status_code == 200
    with readers(server, files) as peers:
        statuses = []
        for peer in peers:
            with contextlib.suppress(OSError):
                statuses.append(peer.recv(64)[9:12])
        assert set(statuses) <= {b"200", b"503", b""}
        assert {b"200", b"503"} <= set(statuses)
        for _ in range(5):
            answer = server.register(OTHER, [in_place(SMALL, root / SMALL.filename)])
            assert answer.status_code == 200, answer.text
        assert server.client.get("/health").status_code == 200
        assert "as many as this process bears" in server.log
    wait_for(lambda: server.fetch(KEY).content == LARGE)
    kinds = {event["kind"] for event in server.client.get("/v1/events").json()["events"]}
    assert kinds & {"drifted", "missing"} == set()
    assert "Traceback" not in server.log


def test_who_is_refused_can_read_why_and_ask_in_vain(serve: Callable[..., Server]) -> None:
    server = serve(max_connections=2)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(server.connect())  # The other one is the client of `server`.
        peer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200" in peer.recv(100)
        for _ in range(30):
            peer = stack.enter_context(server.connect())
            peer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
            said = b""
            while part := peer.recv(1000):
                said += part
            assert said.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in said.lower()
            peer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert peer.recv(1000) == b""
        wait_for(lambda: "as many as this process bears" in server.log)
    assert server.log.count("as many as this process bears") == 1


# Memory


def leave_memory(server: Server, size: int) -> None:
    """From now on a service may map so many bytes more than it has mapped."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    mapped = next(int(line.split()[1]) for line in status.splitlines() if "VmSize" in line) << 10
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (mapped + size, mapped + size))


def test_sigterm_ends_a_service_that_cannot_start_a_thread(serve: Callable[..., Server]) -> None:
    """A thread takes 8 MiB of stack."""
    server = serve()
    leave_memory(server, 1 << 20)
    assert server.client.get("/live").status_code == 200
    assert server.stop() == 0


def test_what_does_not_fit_into_memory_is_streamed_whatever_the_budget_says(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """`ulimit -v`, as a container has it: the cache may not take more than there is."""
    (tmp_path / "models").mkdir()
    contents = {f"{number}.bin": os.urandom(32 << 20) for number in range(3)}
    for name, content in contents.items():
        (tmp_path / "models" / name).write_bytes(content)
    flags = {"artifact_root": tmp_path / "models", "content_cache_bytes": 1 << 30}
    server = serve(**flags)
    leave_memory(server, 56 << 20)
    keys = [ArtifactKey("memory", "_base", name) for name in contents]
    lines = [in_place(key, tmp_path / "models" / key.filename) for key in keys]
    assert server.register(OWNER, lines).status_code == 200
    for key in keys * 2:
        assert server.fetch(key).content == contents[key.filename]
    copy = os.urandom(1 << 20)
    assert server.upload(copy).status_code == 201
    assert server.client.get("/v1/audit").json()["counts"] == {}


# TLS


@pytest.fixture
def https(serve: Callable[..., Server], tmp_path: Path) -> Server:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return serve(
        tls_certificate=tmp_path / "all.pem", trust=trust, max_connections=8, body_timeout_s=2
    )


def answers(server: Server) -> bool:
    """Whether somebody who comes new is answered."""
    try:
        with httpx2.Client(verify=server.trust, timeout=10) as client:
            return client.get(f"{server.url}/live").status_code == 200
    except httpx2.TransportError:
        return False


HELLO = bytes.fromhex("160301020001000200")
"""The beginning of a handshake."""


@pytest.mark.parametrize("says", [b"", HELLO, b"\x16"], ids=["nothing", "a beginning", "a byte"])
def test_a_peer_without_a_handshake_counts_and_is_cut_off(https: Server, says: bytes) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(https.connect()) for _ in range(8)]
        for peer in peers:
            peer.sendall(says)
        wait_for(lambda: not answers(https))
        for peer in peers:
            peer.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while peer.recv(1024):  # Perhaps an alert; then the end.
                    pass
        # A peer sees its end a moment before its place is free.
        wait_for(lambda: answers(https))
    assert "as many as this process bears" in https.log


def test_a_handshake_that_drips_is_cut_off(https: Server) -> None:
    with https.connect() as peer:
        peer.settimeout(0.2)
        ended = False
        for byte in HELLO * 20:
            try:
                peer.sendall(bytes([byte]))
                ended = peer.recv(1024) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
            if ended:
                break
        assert ended


def test_what_is_no_handshake_gives_its_room_back_at_once(https: Server) -> None:
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, HELLO + b"\xff" * 512, b"") * 10:
        with https.connect() as peer:
            peer.sendall(nonsense)
            if nonsense:
                with contextlib.suppress(ConnectionError):
                    while peer.recv(1024):
                        pass
    wait_for(lambda: answers(https), 2)
    assert "Traceback" not in https.log


def test_the_end_waits_for_nobody_who_does_not_finish_a_handshake(https: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(https.connect())
        assert https.stop() == 0
