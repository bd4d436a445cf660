"""What a process runs out of: open files, memory, threads; and peers that hold what it has."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import ssl
import time
from pathlib import Path

import trustme

from attacks.arena import (
    NO_ANSWER,
    Caller,
    CannotTry,
    Findings,
    Load,
    check_nobody_is_accused,
    fetch,
    in_threads,
    limited,
    line,
    register,
    service,
    upload,
)
from registry.core.hashing import checksum_of
from tests.support import Server, wait_for

FILES = (64, 128, 300, 1200)
MIB = 1 << 20
LARGE = b"GET /v1/metadata/m/_base/large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n"
ROOM_MIB = (32, 96)
"""Beyond what the service has mapped once it serves."""
MEMORY_S = 15
THREADS_S = 6


def descriptors(folder: Path, findings: Findings) -> None:
    """More readers of streams than files may be open for, and writers beside them."""
    for files in FILES:
        place, root = folder / str(files), folder / str(files) / "root"
        root.mkdir(parents=True)
        large = os.urandom(6 * MIB)
        (root / "large.bin").write_bytes(large)
        (root / "small.json").write_bytes(b"{}")
        flags = {"artifact_root": root, "content_cache_bytes": MIB}
        with service(place, findings, before_start=limited(NOFILE=files), **flags) as server:
            caller = Caller(server)
            status, said = register(caller, 1, line("m", "large.bin", path=root / "large.bin"))
            findings.check(status == 200, f"a registration is answered {status}: {said!r}")
            with contextlib.ExitStack() as peers:
                for _ in range(files):
                    peer = peers.enter_context(socket.socket())
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    peer.settimeout(10)
                    with contextlib.suppress(OSError):
                        peer.connect(server.address)
                        peer.sendall(LARGE)
                        status = int(peer.recv(64)[9:12] or b"0")
                        findings.count(f"readers {status or 'cut off'}")
                        findings.check(status in (0, 200, 503), f"a reader gets {status}")
                for number in range(10):
                    lines = line("s", "small.json", path=root / "small.json")
                    status, said = register(caller, 2 + number, lines)
                    findings.check(status in (200, 503), f"a registration gets {status}: {said!r}")
            caller.close()
            wait_for(lambda server=server, large=large: _is_served(server, large), 30)  # type: ignore[misc]
            check_nobody_is_accused(Caller(server), findings)


def _is_served(server: Server, content: bytes) -> bool:
    caller = Caller(server)
    try:
        return fetch(caller, "m", "large.bin") == (200, content)
    except NO_ANSWER:
        return False
    finally:
        caller.close()


def memory(folder: Path, findings: Findings) -> None:
    """`ulimit -v` a little above what the service has mapped: nothing acknowledged is lost, nobody
    is accused, no 500, and it serves again when the load is gone."""
    with Server(folder / "measured.db") as server:
        mapped = _mapped_bytes(server)
    for room in ROOM_MIB:
        place = folder / str(room)
        place.mkdir()
        _short_of_memory(place, findings, mapped + room * MIB)


def _short_of_memory(place: Path, findings: Findings, limit: int) -> None:
    root = place / "root"
    root.mkdir()
    contents = {f"{number}.bin": os.urandom(number * 3 * MIB) for number in range(1, 9)}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    server = Server(place / "registry.db", artifact_root=root, before_start=limited(AS=limit))
    try:
        caller = Caller(server)
        held: set[str] = set()
        for name in contents:
            status, said = register(
                caller, 10**9 + len(held), line(f"f-{name[0]}", name, path=root / name)
            )
            findings.check(status in (200, 503), f"a registration gets {status}: {said[:200]!r}")
            held |= {name} if status == 200 else set()
        until = time.monotonic() + MEMORY_S

        def use(number: int) -> None:
            mine, rng = Caller(server), random.Random(number)
            while time.monotonic() < until and server.process.poll() is None:
                name = rng.choice(list(contents))
                try:
                    if number % 3 == 0:
                        status, said = upload(mine, os.urandom(rng.randrange(1, 24) * MIB))
                    elif number % 3 == 1:
                        status, said = fetch(mine, f"f-{name[0]}", name)
                        if status == 200:
                            findings.check(
                                checksum_of(said) == checksum_of(contents[name]), "wrong bytes"
                            )
                    else:
                        lines = [line("many", f"{rng.random()}.json", b"{}") for _ in range(900)]
                        status, said = register(mine, number, *lines)
                except NO_ANSWER as error:
                    findings.count("cut off")
                    findings.check(not isinstance(error, TimeoutError), "no answer within 30 s")
                    continue
                findings.count(f"answers {status}")
                known = (200, 201, 404, 409, 424, 429, 503)
                findings.check(status in known, f"an answer is {status}: {said[:300]!r}")

        load = Load(server, findings, callers=4)
        with load.going_on():
            in_threads(12, use)
        dead = server.process.poll()
        findings.check(dead is None, f"the process died ({dead}): {server.log[-1500:]}")
        if dead is None:
            for name in held:
                got = _in_the_end(server, f"f-{name[0]}", name)
                findings.check(got == contents[name], "a file is not served when the load is gone")
            status, said = register(Caller(server), 7, line("after", "a.json", path=root / "1.bin"))
            findings.check(status == 200, f"afterwards a registration is {status}: {said[:200]!r}")
            check_nobody_is_accused(Caller(server), findings)
            findings.check(Caller(server).call("GET", "/health")[0] == 200, "it is not healthy")
            findings.check(server.stop() == 0, "it does not end well")
        findings.check("cannot run" not in server.log, "a thread ended")
    finally:
        server.kill()
    findings.count("tracebacks in logs", server.log.count("Traceback"))
    load.check(place / "registry.db")


def _in_the_end(server: Server, slug: str, name: str) -> bytes:
    """What is served within some seconds."""
    for _ in range(20):
        with contextlib.suppress(*NO_ANSWER):
            status, content = fetch(Caller(server), slug, name)
            if status == 200:
                return content
        time.sleep(0.5)
    return b""


def _mapped_bytes(server: Server, which: str = "VmPeak") -> int:
    """Virtual memory of a service, which is what `ulimit -v` bounds."""
    for each in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if each.startswith(which):
            return int(each.split()[1]) << 10
    raise CannotTry(f"/proc tells no {which}")


def threads(folder: Path, findings: Findings) -> None:
    """No thread can be started any more once the service serves: there is no room for a stack."""
    root = folder / "root"
    root.mkdir()
    (root / "a.json").write_bytes(b"{}")
    with service(folder, findings, artifact_root=root) as server:
        limit = _mapped_bytes(server, "VmSize") + 6 * MIB
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, limit))
        load = Load(server, findings, content_bytes=100)
        until = time.monotonic() + THREADS_S

        def place(number: int) -> None:
            caller = Caller(server)
            while time.monotonic() < until:
                made = line(f"p{number}", "a.json", path=root / "a.json")
                status, said = register(caller, 10**9 + number, made)
                findings.count(f"registrations in place {status}")
                findings.check(status in (200, 503), f"{status}: {said[:200]!r}")

        with load.going_on():
            in_threads(4, place)
        check_nobody_is_accused(Caller(server), findings)
    load.check(folder / "registry.db")


def silent_handshakes(folder: Path, findings: Findings) -> None:
    """Peers that connect to TLS and say nothing, drip, or talk nonsense."""
    authority = trustme.CA()
    pem = folder / "all.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    flags = {"tls_certificate": pem, "trust": trust, "max_connections": 64, "body_timeout_s": 3}
    with service(folder, findings, **flags) as server:
        with contextlib.ExitStack() as peers:
            for number in range(400):
                peer = peers.enter_context(socket.create_connection(server.address, 10))
                with contextlib.suppress(OSError):
                    peer.sendall(
                        (b"", b"\x16", b"\x16\x03\x01\x02\x00", os.urandom(300))[number % 4]
                    )
                findings.count("peers")
                open_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
                findings.check(open_files < 64 + 128, "more files are open than the limit allows")
            started = time.monotonic()
            wait_for(lambda: _answers(server), 30)
            findings.count("s until others are answered", round(time.monotonic() - started))
        findings.check(_answers(server), "others are not answered when the silent are gone")


def _answers(server: Server) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(server.address, 5) as plain,
            context.wrap_socket(plain) as peer,
        ):
            peer.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b" 200" in peer.recv(100)
    except OSError:
        return False
