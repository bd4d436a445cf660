"""Peers that speak HTTP too slowly, too much at once, or wrongly."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import socket
import threading
import time
from pathlib import Path

from attacks.arena import Caller, Findings, in_threads, line, probe, register, service, upload
from tests.support import Server

DRIPPING_S = 12
PIPELINED = 100_000
MUTATED = 20_000
POST = b"POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
READ = b"GET /v1/metadata/m/_base/a.json HTTP/1.1\r\n"
PROBES = {"/live": "/live", "/health": "/health", "a file": "/v1/metadata/m/_base/a.json"}


def hold(server: Server) -> None:
    """One model."""
    caller = Caller(server)
    upload(caller, b"{}")
    upload(caller, os.urandom(4 << 20))
    register(caller, 1, line("m", "a.json", b"{}"))
    caller.close()


def dripping(folder: Path, findings: Findings) -> None:
    """Heads, bodies and uploads that come a byte at a time: others are answered, and these are cut
    off."""
    with service(folder, findings, body_timeout_s=4) as server:
        hold(server)
        starts = [
            b"GET /v1/metadata/m/_base/a.json HTTP/1.1\r\nHost: localhost\r\nX-Long: ",
            POST + b"Content-Length: 100000\r\n\r\n",
            b"PUT /v1/blobs/blake3:" + b"0" * 64 + b" HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\nG",
        ]
        open_peers = []
        for number in range(300):
            peer = socket.create_connection(server.address, 10)
            peer.sendall(starts[number % len(starts)])
            peer.setblocking(False)
            open_peers.append(peer)
            findings.count("peers")
        until, cut = time.monotonic() + DRIPPING_S, 0
        while time.monotonic() < until and open_peers:
            for peer in list(open_peers):
                try:
                    peer.send(b"a")
                    ended = bool(select.select([peer], [], [], 0)[0]) and peer.recv(65536) == b""
                except BlockingIOError:
                    ended = False
                except OSError:
                    ended = True
                if ended:
                    open_peers.remove(peer)
                    peer.close()
                    cut += 1
            probe(server, findings, 3, **PROBES)
            time.sleep(0.2)
        findings.count("cut off", cut)
        findings.check(not open_peers, f"{len(open_peers)} are not cut off in {DRIPPING_S} s")
        for peer in open_peers:
            peer.close()


def pipelines(folder: Path, findings: Findings) -> None:
    """Requests sent without a look at the answers: all are answered, in order."""
    targets = ["/live", "/v1/metadata/m/_base/a.json", "/v1/metadata/m/_base/none", "/v1/models"]
    with service(folder, findings) as server:
        hold(server)

        def pipeline(number: int) -> None:
            rng, share = random.Random(number), PIPELINED // 8
            ids = [f"{number}-{each}" for each in range(share)]
            asked = b"".join(
                f"GET {rng.choice(targets[:3] if each % 50 else targets)} HTTP/1.1\r\n"
                f"Host: localhost\r\nX-Request-Id: {each_id}\r\n\r\n".encode()
                for each, each_id in enumerate(ids)
            )
            with socket.create_connection(server.address, 60) as peer:
                sender = threading.Thread(target=peer.sendall, args=(asked,))
                sender.start()
                got = _read_answers(peer, share)
                sender.join()
            findings.count("requests", share)
            findings.check(len(got) == share, f"{share - len(got)} requests have no answer")
            named = [(each, found[1]) for each, found in zip(ids, got, strict=False) if found[1]]
            findings.check(all(a == b for a, b in named), "answers are out of order")
            wrong = {status for status, _ in got} - {200, 404}
            findings.check(not wrong, f"answers are {wrong}")

        in_threads(8, pipeline)
        probe(server, findings, 3, **PROBES)


_HEAD = re.compile(rb"HTTP/1\.1 (\d+)[^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL)


def _read_answers(peer: socket.socket, count: int) -> list[tuple[int, str | None]]:
    """The status and the request id of each answer, as far as they come."""
    found: list[tuple[int, str | None]] = []
    buffer, at = bytearray(), 0
    while len(found) < count:
        head = _HEAD.match(buffer, at)
        length = re.search(rb"(?i)content-length: (\d+)", head[2]) if head else None
        if head is None or length is None or len(buffer) < head.end() + int(length[1]):
            del buffer[:at]
            at = 0
            data = peer.recv(1 << 20)
            if not data:
                break
            buffer += data
            continue
        request_id = re.search(rb"(?i)x-request-id: (\S+)", head[2])
        found.append((int(head[1]), request_id[1].decode() if request_id else None))
        at = head.end() + int(length[1])
    return found


_BODY = json.dumps(
    {
        "owner": {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": "5"},
        "lease_ttl_s": 60,
        "worker_name": "w",
        "artifacts": [line("mutant", "a.json", b"{}")],
    }
).encode()
_SEEDS = [
    READ + b'Host: localhost\r\nRange: bytes=0-1\r\nIf-None-Match: "x"\r\n\r\n',
    POST + b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY,
    b"POST /v1/owners/n/c/e/5/_base/renew HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    b"DELETE /v1/owners/n/c/e/5/_base HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PUT /v1/blobs/blake3:" + b"0" * 64 + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
    b"chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"GET /v1/events?after=1&limit=10&owner=n/c/e/5/_base HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/artifacts/m/_base/a.json HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
]
_PIECES = [
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"%00",
        b"%2f",
        b"%",
        b"..",
        b"/",
        b"?",
        b"#",
        b":",
    ),
    *(b"\xff\xfe", "\u202e".encode(), b"-1", b"99999999999999999999", b"1e999", b"NaN", b"null"),
    *(b"[" * 500, b"{" * 500, b'"', b"\\u0000", b"\\ud800", b"Content-Length: 5\r\n", b"\x80"),
    *(b"Transfer-Encoding: chunked\r\n", b"Host: other\r\n", b"HTTP/1.0", b"HTTP/2.0", b"a" * 5000),
]


def mutated(rng: random.Random) -> bytes:
    """A request that was right before some pieces were changed, put in, taken out or repeated."""
    request = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(request) + 1)
        match rng.randrange(4):
            case 0:
                request[at:at] = rng.choice(_PIECES)
            case 1:
                del request[at : at + rng.randint(1, 20)]
            case 2:
                request[at : at + 1] = bytes([rng.randrange(256)])
            case _:
                request[at:at] = request[max(0, at - rng.randint(1, 60)) : at]
    return bytes(request)


def mutations(folder: Path, findings: Findings) -> None:
    """Requests that are nearly right: none is answered 500, and others are answered."""
    with service(folder, findings) as server:
        hold(server)

        def send(number: int) -> None:
            rng = random.Random()
            for _ in range(MUTATED // 8):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(server.address, 10) as peer,
                ):
                    request = mutated(rng)
                    peer.sendall(request)
                    peer.shutdown(socket.SHUT_WR)
                    peer.settimeout(20)
                    said = b""
                    while len(said) < 65536 and (part := peer.recv(65536)):
                        said += part
                    found = {int(each[1]) for each in _HEAD.finditer(said)}
                    findings.check(not found & {500}, f"500 to {request[:500]!r}")
                    findings.count("answered" if found else "not answered")

        in_threads(8, send)
        probe(server, findings, 3, **PROBES)
