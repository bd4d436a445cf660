"""Registries, cards, caches and discovery directories that are not what they seem: whatever they
say, a client ends in time, with an error of ours, and touches nothing that is not its own."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from attacks.arena import Caller, Findings, fetch, line, register, service, upload
from registry.client import RegistryClient, Resolver, Worker
from registry.client.cache import BlobCache
from registry.client.resolver import FetchLimits
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.discovery import Kind, open_discovery
from registry.discovery.cards import Card
from registry.errors import RegistryError

CONTENT = b'{"model_type": "llama"}'
TIMEOUT_S = 2.0
DEADLINE_S = 5.0
PATIENCE_S = 25.0
"""How long a call may take in all, whatever its peer does: its time and that of a busy machine."""
MUTANTS = 250
OWNER = Owner("n", "c", "e", 1)
ONCE = RetryPolicy(attempts=1)

CALLS: dict[str, Callable[[RegistryClient], object]] = {
    "register": lambda client: client.register(OWNER, [], lease_ttl_s=60),
    "renew": lambda client: client.renew(OWNER),
    "drain": lambda client: client.drain(OWNER),
    "unregister": lambda client: client.unregister_for_owner(OWNER),
    "upload": lambda client: client.upload(checksum_of(CONTENT), CONTENT),
    "has_blob": lambda client: client.has_blob(checksum_of(CONTENT)),
    "owner": lambda client: client.owner(OWNER),
    "owners": lambda client: list(client.owners()),
    "artifacts": lambda client: list(client.artifacts()),
    "models": lambda client: list(client.models()),
    "events": lambda client: client.events(),
    "explain": lambda client: client.explain(ArtifactKey("m", "_base", "config.json")),
}
"""Every call of a client."""

Reply = Callable[[socket.socket, bytes], None]
"""What a peer does about a request."""


def says(body: bytes, status: str = "200 OK", *headers: str) -> Reply:
    """An answer."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    lines += [f"Content-Length: {len(body)}", "", ""]

    def reply(peer: socket.socket, _request: bytes) -> None:
        peer.sendall("\r\n".join(lines).encode() + body)

    return reply


def drips(start: bytes, piece: bytes, pause_s: float) -> Reply:
    """A beginning, and then a piece from time to time without end."""

    def reply(peer: socket.socket, _request: bytes) -> None:
        peer.sendall(start)
        while True:
            peer.sendall(piece)
            time.sleep(pause_s)

    return reply


def floods(start: bytes, piece: bytes) -> Reply:
    """More than anybody takes."""
    return drips(start, piece * 4096, 0)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SICK: dict[str, Reply] = {
    "nothing": lambda peer, request: None,
    "a body that drips": drips(_HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.3),
    "a chunked body that drips": drips(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.3
    ),
    "a head that drips": drips(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.3),
    "headers without end": floods(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n"),
    "1xx without end": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body without end": floods(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"8\r\n        \r\n"
    ),
    "a circle": says(b"", "302 Found", "Location: /v1/owners"),
    "another protocol": says(b"", "302 Found", "Location: file:///etc/passwd"),
    "not HTTP": lambda peer, request: peer.sendall(b"220 smtp ready\r\n" * 10),
    "binary": says(os.urandom(3000)),
    "deep": says(b"[" * 200_000),
    "deep objects": says(b'{"a":' * 100_000),
    "a number without end": says(b"1" * 1_000_000),
    "two lengths": says(b"{}", "200 OK", "Content-Length: 5"),
    "a negative length": lambda peer, request: peer.sendall(
        _HEAD + b"Content-Length: -5\r\n\r\n{}"
    ),
    "an odd status": says(b"{}", "999 Odd"),
    "an error that is none": says(b'{"code": 7, "detail": []}', "503 Busy", "Retry-After: 1e309"),
    "a wait for years": says(b'{"code": "busy"}', "503 Busy", "Retry-After: 99999999"),
    "a negative wait": says(b'{"code": "busy"}', "503 Busy", "Retry-After: -5"),
}

ABSURD: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1 << 70,
        1e308,
        -1e308,
        "",
        "x" * 100_000,
        "\0",
        "..",
        "/etc/passwd",
        "\ud800",
    ),
    *(
        [],
        {},
        [[]],
        "blake3:../../../../etc/passwd",
        "blake3:" + "f" * 64,
        "2026-13-45T99:99:99.999Z",
    ),
    *(
        "9999-12-31T23:59:59.999Z",
        "1e999",
        "http://[::1/",
        "javascript:alert(1)",
        "a" * 256,
        float("nan"),
    ),
]


@contextmanager
def peer_that(reply: Callable[[], Reply]) -> Iterator[str]:
    """The URL of something that listens, and does to each request what `reply` says by then."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    closing = threading.Event()

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            while request := peer.recv(1 << 20):
                reply()(peer, request)

    def accept() -> None:
        while not closing.is_set():
            with suppress(OSError):
                peer, _ = listener.accept()
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        closing.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def ends_well(findings: Findings, name: str, call: Callable[[], object]) -> None:
    """A call ends in time, in success or with an error of ours."""
    ended: list[str] = []

    def run() -> None:
        try:
            call()
            ended.append("believed")
        except RegistryError:
            ended.append("errors")
        except BaseException as error:
            ended.append("exceptions")
            findings.fail(f"{name}: {type(error).__name__}: {str(error)[:100]}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    findings.check(not thread.is_alive(), f"{name}: no end within {PATIENCE_S:g} s")
    findings.count(ended[0] if ended else "without end")


def called_at(url: str, call: Callable[[RegistryClient], object]) -> None:
    """Make a call of a client."""
    with RegistryClient(url, timeout_s=TIMEOUT_S, retries=ONCE) as client:
        call(client)


def hostile_registry(folder: Path, findings: Findings) -> None:
    """A registry whose answers drip, flood, lie and make no sense."""
    current: list[Reply] = [SICK["nothing"]]
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    os.utime(victim, (1, 1))

    def resolve(url: str, number: int) -> object:
        cache = BlobCache(folder / f"cache{number}")
        limits = FetchLimits(deadline_s=DEADLINE_S, total_max_bytes=1 << 20)
        return Resolver(url, cache=cache, limits=limits, retries=ONCE).fetch(
            "m", to=folder / f"to{number}"
        )

    with peer_that(lambda: current[0]) as url:
        for name, reply in SICK.items():
            current[0] = reply
            threads = []
            for called, call in CALLS.items():
                work = partial(called_at, url, call)
                threads.append(
                    threading.Thread(target=ends_well, args=(findings, f"{called}, {name}", work))
                )
            resolver = threading.Thread(
                target=ends_well, args=(findings, f"fetch, {name}", lambda: resolve(url, 0))
            )
            for thread in [*threads, resolver]:
                thread.start()
            for thread in [*threads, resolver]:
                thread.join()
        rng = random.Random()
        answers = _true_answers(folder, findings)
        for number in range(MUTANTS):
            called = rng.choice(list(answers))
            mutant = _mutant(rng, answers[called], victim)
            current[0] = says(json.dumps(mutant).encode())
            shown = json.dumps(mutant)[:200]
            ends_well(findings, f"{called}, {shown}", partial(called_at, url, CALLS[called]))
            if called == "artifacts":
                ends_well(findings, f"fetch, {shown}", partial(resolve, url, 1 + number))
    findings.check(os.stat(victim).st_atime == 1, "a file of the user was opened")
    findings.check(victim.read_bytes() == b"mine", "a file of the user was written")


def _true_answers(folder: Path, findings: Findings) -> dict[str, Any]:
    """What a real registry answers, to be changed."""
    place = folder / "true"
    place.mkdir()
    paths = {
        "owner": "/v1/owners/n/c/e/1/_base",
        "owners": "/v1/owners",
        "artifacts": "/v1/artifacts",
        "models": "/v1/models",
        "events": "/v1/events",
        "explain": "/v1/artifacts/m/_base/config.json",
    }
    with service(place, findings) as server:
        caller = Caller(server)
        upload(caller, CONTENT)
        _, registered = register(caller, 1, line("m", "config.json", CONTENT), lease=60)
        found = {name: json.loads(caller.call("GET", path)[1]) for name, path in paths.items()}
        found["register"] = json.loads(registered)
        found["renew"] = json.loads(caller.call("POST", "/v1/owners/n/c/e/1/_base/renew", b"")[1])
    return found


def _mutant(rng: random.Random, answer: Any, victim: Path) -> Any:
    """The answer with one or two values that are absurd, missing or too many."""
    made = json.loads(json.dumps(answer))
    for _ in range(rng.randint(1, 2)):
        spot, key = _some_place(rng, made)
        if spot is None:
            return rng.choice(ABSURD[:10])
        absurd = rng.choice([*ABSURD, f"blake3:{victim}", str(victim)])
        if isinstance(spot, dict) and rng.random() < 0.15:
            del spot[key]
        else:
            spot[key] = absurd if isinstance(absurd, str | int | float) else json.loads("[]")
    return made


def _some_place(rng: random.Random, node: Any) -> tuple[Any, Any]:
    """A random place within an answer."""
    places: list[tuple[Any, Any]] = []

    def walk(each: Any) -> None:
        items = each.items() if isinstance(each, dict) else enumerate(each)
        for key, value in list(items):
            places.append((each, key))
            if isinstance(value, dict | list):
                walk(value)

    if isinstance(node, dict | list):
        walk(node)
    return rng.choice(places) if places else (None, None)


def hostile_cards(folder: Path, findings: Findings) -> None:
    """Cards with absurd files."""
    rng = random.Random()
    good = {
        "display_name": "m",
        "model_info": {"hf_config_json": {"path": "http://127.0.0.1:9/config.json"}},
        "tokenizer": {
            "hf_tokenizer_json": {
                "path": "http://127.0.0.1:9/tokenizer.json",
                "checksum": checksum_of(CONTENT),
                "size": len(CONTENT),
            }
        },
    }
    for number in range(MUTANTS):
        mutant = _mutant(rng, good, folder / "victim")
        if not isinstance(mutant, dict):
            continue

        def use(mutant: dict[str, Any] = mutant, number: int = number) -> object:
            card = Card(mutant)
            cache = BlobCache(folder / f"cache{number}")
            limits = FetchLimits(deadline_s=DEADLINE_S)
            resolver = Resolver(cache=cache, limits=limits, retries=ONCE)
            return resolver.fetch_card(card, to=folder / f"to{number}")

        ends_well(findings, f"card {json.dumps(mutant)[:200]}", use)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a FIFO": lambda path, victim: os.mkfifo(path),
    "a link": lambda path, victim: path.symlink_to(victim),
    "a link to itself": lambda path, victim: path.symlink_to(path.name),
    "a link to a device": lambda path, victim: path.symlink_to("/dev/zero"),
    "a directory": lambda path, victim: path.mkdir(),
    "wrong bytes": lambda path, victim: path.write_bytes(b"x" * len(CONTENT)),
    "a terabyte": lambda path, victim: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
}
"""What somebody may have put where a client expects a file."""


def hostile_cache(folder: Path, findings: Findings) -> None:
    """Things in the place of cached files, of partial ones, and of the target."""
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    os.utime(victim, (1, 1))
    name = checksum_of(CONTENT).removeprefix("blake3:")
    with service(folder, findings) as server:
        caller = Caller(server)
        upload(caller, CONTENT)
        register(caller, 1, line("m", "config.json", CONTENT))
        for where in ("blobs", "partial", "to"):
            for what, plant in PLANTED.items():
                place = folder / f"{where} {what}"
                for each in ("blobs", "partial", "to"):
                    (place / each).mkdir(parents=True)
                planted = place / where / ("config.json" if where == "to" else name)
                plant(planted, victim)

                def get(place: Path = place) -> None:
                    cache = BlobCache(place)
                    limits = FetchLimits(deadline_s=DEADLINE_S)
                    resolver = Resolver(server.url, cache=cache, limits=limits, retries=ONCE)
                    [file] = resolver.fetch("m", to=place / "to")
                    findings.check(file.path.read_bytes() == CONTENT, "wrong bytes were kept")

                ends_well(findings, f"{what} in {where}", get)
    findings.check(victim.read_bytes() == b"mine", "a file of the user was written")
    findings.check(os.stat(victim).st_mtime == 1, "a file of the user was touched")


def hostile_discovery(folder: Path, findings: Findings) -> None:
    """A discovery directory in which others put whatever they like: a listing ends, and has the
    record that is one."""
    victim = folder / "victim"
    victim.write_bytes(b"{}")
    url = f"file://{folder}/kv"
    (folder / "model").mkdir()
    (folder / "model/config.json").write_bytes(CONTENT)
    with service(folder, findings) as server, Worker(server.url, OWNER, discovery=url) as worker:
        worker.attach(folder / "model", name="Org/Model")
        store = open_discovery(url)
        [mine] = store.list(Kind.MODEL)
        places = [path.parent for path in (folder / "kv").rglob("*") if path.is_file()]
        for place in dict.fromkeys(places):
            for number, (_, plant) in enumerate(PLANTED.items()):
                for planted in (f"n%2Fc%2Fe%2F{number + 2:x}", f"odd{number}", f"{number}.tmp"):
                    with suppress(FileExistsError):
                        plant(place / planted, victim)
                        findings.count("planted")
            for number in range(200):
                (place / f"n%2Fc%2Fe%2F{number + 256:x}").write_bytes(os.urandom(200))
        for kind in Kind:
            ends_well(findings, f"list {kind}", partial(store.list, kind))
        listed = store.list(Kind.MODEL)
        findings.check(mine.key in [each.key for each in listed], "a good record is not listed")
        findings.count("records", len(listed))
        ends_well(findings, "detach", lambda: worker.detach())
        store.close()


def heartbeat(folder: Path, findings: Findings) -> None:
    """A proxy that drips or lies in some of its answers to renewals: the model stays registered,
    and `close` returns."""
    (folder / "model").mkdir()
    (folder / "model/config.json").write_bytes(CONTENT)
    sick = [SICK["a body that drips"], SICK["headers without end"], SICK["deep"], SICK["nothing"]]
    for number in (1e308, -1, "x"):
        lease = {"ttl_s": number, "expires_at": "9999-12-31T23:59:59.999Z"}
        said = {"owner": line_owner(), "lease": lease, "refs": 1}
        sick.append(says(json.dumps(said).encode()))
    rng, flags = random.Random(), {"lease_grace_s": 2, "sweep_interval_s": 0.5}
    with service(folder, findings, **flags) as server:

        def pass_on(peer: socket.socket, request: bytes) -> None:
            if b"/renew" in request.partition(b"\r\n")[0] and rng.random() < 0.4:
                findings.count("sick answers")
                rng.choice(sick)(peer, request)
                return
            head, _, body = request.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            while length is not None and len(body) < int(length[1]):
                more = peer.recv(1 << 20)
                request, body = request + more, body + more
            with socket.create_connection(server.address, 10) as there:
                there.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                while part := there.recv(1 << 20):
                    peer.sendall(part)
            peer.close()

        def complain(*_: object) -> None:
            raise RuntimeError("a mistake of the engine's")

        with peer_that(lambda: pass_on) as url:
            worker = Worker(url, OWNER, lease_ttl_s=6, on_problem=complain, timeout_s=5)
            worker.attach(folder / "model", name="m")
            until = time.monotonic() + 40
            while time.monotonic() < until:
                status, _ = fetch(Caller(server), "m", "config.json")
                findings.count(f"looks {status}")
                findings.check(status == 200, f"the files of a live model are {status}")
                time.sleep(1)
            ends_well(findings, "close", worker.close)


def line_owner() -> dict[str, Any]:
    """The worker as JSON."""
    return {
        "namespace": "n",
        "component": "c",
        "endpoint": "e",
        "instance_id": "1",
        "lora_slug": None,
    }
