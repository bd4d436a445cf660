"""Holders' files: on mounts that hang, crawl or died, written through mappings, and where nobody
may look (S5, S12, S13)."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from attacks.arena import (
    NO_ANSWER,
    Caller,
    CannotTry,
    Findings,
    check_nobody_is_accused,
    fetch,
    in_threads,
    line,
    probe,
    register,
    service,
    upload,
)
from tests.support import Server, wait_for

SETTLED_S = 2.2
"""When the identity of a file is trusted."""
PROBES = {
    "/live": "/live",
    "a copy": "/v1/metadata/o/_base/copy.json",
    "a file of another root": "/v1/metadata/o/_base/here.json",
    "the list of models": "/v1/models",
}
MAPPED_S = 20
MIB = 1 << 20


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A directory that a process of ours serves, through FUSE."""
    if os.geteuid() or not shutil.which("bindfs") or not os.path.exists("/dev/fuse"):
        raise CannotTry("it needs root, bindfs and /dev/fuse")
    source, mount = folder / "source", folder / "mount"
    source.mkdir()
    mount.mkdir()
    for number in range(4):
        (source / f"there{number}.json").write_bytes(b"there %d" % number * 100)
    bindfs = subprocess.Popen(["bindfs", "-f", *options, source, mount])
    try:
        wait_for(lambda: os.path.ismount(mount), 10)
        yield mount, bindfs
    finally:
        with contextlib.suppress(ProcessLookupError):
            bindfs.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", mount], check=False, stderr=subprocess.DEVNULL)
        bindfs.terminate()
        bindfs.wait()


@contextmanager
def two_roots(folder: Path, findings: Findings, mount: Path, **flags: object) -> Iterator[Server]:
    """A service with files on a mount, in a place of its own disk, and copies."""
    here = folder / "here"
    here.mkdir()
    (here / "here.json").write_bytes(b"here")
    time.sleep(SETTLED_S)
    with service(folder, findings, artifact_root=[mount, here], **flags) as server:
        caller = Caller(server)
        upload(caller, b"copy")
        lines = [line("o", "copy.json", b"copy"), line("o", "here.json", path=here / "here.json")]
        held = [line("t", f"there{n}.json", path=mount / f"there{n}.json") for n in range(4)]
        for number, manifest in ((1, lines), (2, held)):
            status, said = register(caller, number, *manifest)
            findings.check(status == 200, f"a registration gets {status}: {said!r}")
        yield server


def ask(server: Server, count: int, mount: Path) -> list[socket.socket]:
    """Reads and registrations of files on the mount, whose answers nobody waits for."""
    peers = []
    for number in range(count):
        peer = socket.create_connection(server.address, 10)
        name = f"there{number % 4}.json"
        peer.sendall(
            f"GET /v1/metadata/t/_base/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        peers.append(peer)
        body = json.dumps(
            {
                "owner": {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 99},
                "artifacts": [line("x", name, path=mount / name)],
            }
        ).encode()
        peer = socket.create_connection(server.address, 10)
        head = f"POST /v1/registrations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        peer.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
        peers.append(peer)
    return peers


def hung_mount(folder: Path, findings: Findings) -> None:
    """A mount whose server is stopped, once with one reader of it and once with many."""
    for count in (1, 40):
        place = folder / str(count)
        place.mkdir()
        with (
            mounted(place) as (mount, bindfs),
            two_roots(place, findings, mount) as server,
            contextlib.ExitStack() as peers,
        ):
            bindfs.send_signal(signal.SIGSTOP)
            time.sleep(1.5)  # What the kernel knows of the files is trusted no longer than that.
            for peer in ask(server, count, mount):
                peers.enter_context(peer)
                findings.count("calls on the mount")
            for _ in range(3):
                probe(server, findings, 4, **PROBES)
                time.sleep(0.5)
            here = line("o2", "here.json", path=place / "here/here.json")
            status, said = register(Caller(server, 6), 3, here)
            findings.check(status == 200, f"a registration elsewhere gets {status}: {said!r}")
            check_nobody_is_accused(Caller(server), findings)
            if count > 1:
                started = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.process.wait(45)
                ended = server.process.poll() is not None
                findings.check(ended, "it does not end while a mount hangs")
                findings.count("s to the end", round(time.monotonic() - started))
                if not ended:
                    server.kill()


def slow_mount(folder: Path, findings: Findings) -> None:
    """A mount that is stopped for half of the time: what is asked for comes, or is 503."""
    with mounted(folder) as (mount, bindfs), two_roots(folder, findings, mount) as server:
        until = time.monotonic() + 15

        def read(number: int) -> None:
            caller = Caller(server)
            while time.monotonic() < until:
                status, said = fetch(caller, "t", f"there{number % 4}.json")
                findings.count(f"reads {status}")
                whole = b"there %d" % (number % 4) * 100
                findings.check(status == 503 or said == whole, f"a read gets {status}: {said!r}")

        def stop_and_go(_: int) -> None:
            while time.monotonic() < until:
                bindfs.send_signal(signal.SIGSTOP)
                time.sleep(0.4)
                bindfs.send_signal(signal.SIGCONT)
                time.sleep(0.4)

        def look(_: int) -> None:
            while time.monotonic() < until:
                probe(server, findings, 3, **PROBES)
                time.sleep(0.3)

        works = [read] * 6 + [stop_and_go, look]
        in_threads(len(works), lambda number: works[number](number))
        check_nobody_is_accused(Caller(server), findings)


def dead_mount(folder: Path, findings: Findings) -> None:
    """The process behind a mount is killed: no file of it is held to be changed or gone."""
    with mounted(folder) as (mount, bindfs), two_roots(folder, findings, mount) as server:
        bindfs.kill()
        bindfs.wait()
        for number in range(8):
            status, said = fetch(Caller(server), "t", f"there{number % 4}.json")
            findings.count(f"reads {status}")
            findings.check(status == 503, f"a read gets {status}: {said[:100]!r}")
            name = f"there{number % 4}.json"
            status, said = register(Caller(server), 50, line("x", name, path=mount / name))
            findings.count(f"registrations {status}")
            findings.check(status == 503, f"a registration gets {status}: {said!r}")
        probe(server, findings, 4, **PROBES)
        check_nobody_is_accused(Caller(server), findings)


def mapped_writers(folder: Path, findings: Findings) -> None:
    """Files that are written through mappings while they are read, whole and in ranges: what comes
    whole has the bytes of its ETag."""
    root = folder / "root"
    root.mkdir()
    whole = {f"{size}.bin": os.urandom(size) for size in (4000, 3 * MIB, 9 * MIB)}
    maps = {}
    for name, content in whole.items():
        (root / name).write_bytes(content)
        with (root / name).open("r+b") as file:
            maps[name] = mmap.mmap(file.fileno(), 0)
        maps[name][0:1] = content[0:1]
    time.sleep(SETTLED_S)
    with service(folder, findings, artifact_root=root, content_cache_bytes=MIB) as server:
        for number, name in enumerate(whole):
            register(Caller(server), number, line("m", name, path=root / name))
        until = time.monotonic() + MAPPED_S

        def write(_: int) -> None:
            rng = random.Random()
            while time.monotonic() < until:
                name = rng.choice(list(whole))
                at = rng.randrange(len(whole[name]))
                right = whole[name][at]
                maps[name][at] = right ^ 0xFF
                time.sleep(rng.random() * 0.05)
                maps[name][at] = right
                findings.count("mapped writes")
                time.sleep(rng.random() * 0.05)

        def read(number: int) -> None:
            rng, caller = random.Random(number), Caller(server)
            while time.monotonic() < until:
                name = rng.choice(list(whole))
                start = rng.randrange(len(whole[name]))
                end = min(len(whole[name]), start + rng.randrange(1, MIB))
                ranged = number % 2
                asked = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
                try:
                    status, said = fetch(caller, "m", name, **asked)
                except NO_ANSWER:
                    findings.count("reads cut off")
                    continue
                right = whole[name][start:end] if status == 206 else whole[name]
                findings.count(f"reads {status}")
                findings.check(
                    status == 503 or said == right, f"{status} with bytes that are not the ETag's"
                )

        works = [write] + [read] * 4
        in_threads(len(works), lambda number: works[number](number))


SECRET = b"what nobody may read"


def escapes(folder: Path, findings: Findings) -> None:
    """Paths and names that lead out of the roots, in every spelling: nothing outside is served."""
    root, outside = folder / "root", folder / "outside"
    root.mkdir()
    outside.mkdir()
    secret = outside / "secret.json"
    secret.write_bytes(SECRET)
    (root / "inside.json").write_bytes(b"inside")
    (root / "link.json").symlink_to(secret)
    (root / "folder").symlink_to(outside)
    (root / "deep").mkdir()
    (root / "deep/up").symlink_to("../..")
    os.mkfifo(root / "fifo")
    os.link(secret, folder / "root-other")
    up = os.path.relpath(secret, root)
    paths = [
        str(secret),
        f"{root}/{up}",
        f"{root}/./{up}",
        f"{root}/deep/../{up}",
        f"{root}//{up}",
        f"{root}/link.json",
        f"{root}/folder/secret.json",
        f"{root}/deep/up/outside/secret.json",
        f"{root}/fifo",
        f"{root}/inside.json/../{up}",
        f"{root}-other",
        f"{root}/../root-other",
        up,
        f"//{secret}",
        f"file://{secret}",
        f"{root}/{quote(up, safe='')}",
        f"{root}/inside.json\0{secret}",
        f"{root}/" + "a/../" * 300 + up,
        f"{root}/" + "deep/up/root/" * 300 + up,
        "/proc/self/root" + str(secret),
        f"/proc/self/cwd/{secret.name}",
        "/dev/stdin",
        "/dev/zero",
        "/proc/self/environ",
        "~/" + str(secret),
        "",
        ".",
        "/",
        str(root),
        f"{root}/\ud800",
    ]
    with service(folder, findings, artifact_root=root) as server:
        caller = Caller(server)
        for number, path in enumerate(paths):
            lines = line(f"m{number}", "a.json") | {"path": path}
            status, said = register(caller, number, lines)
            findings.count("paths")
            known = status in (400, 403, 422)
            findings.check(known, f"{path[:80]!r} is answered {status}: {said[:100]!r}")
            findings.check(SECRET not in said, "the secret is in an answer")
        register(caller, 1000, line("m", "a.json", path=root / "inside.json"))
        segments = [
            "..",
            "%2e%2e",
            "%2E%2E%2F",
            "..%2f",
            ".%00.",
            "%252e%252e",
            "..\\",
            "%5c..",
            ".",
        ]
        for first in segments:
            for tail in ("secret.json", "outside/secret.json", "%2foutside%2fsecret.json", ""):
                for base in (
                    f"/v1/metadata/m/_base/{first}/{tail}",
                    f"/v1/metadata/{first}/{tail}",
                ):
                    status, said = caller.call("GET", base)
                    findings.count("targets")
                    findings.check(SECRET not in said and status in (400, 404), f"{base}: {status}")
        # A directory that becomes a link between being looked at and being read.
        (root / "turning").mkdir()
        (root / "turning/secret.json").write_bytes(b"right")
        status, _ = register(caller, 2000, line("t", "s.json", path=root / "turning/secret.json"))
        findings.check(status == 200, f"a registration is answered {status}")
        until = time.monotonic() + 10

        def turn(_: int) -> None:
            while time.monotonic() < until:
                os.rename(root / "turning", root / "away")
                os.symlink(outside, root / "turning")
                os.unlink(root / "turning")
                os.rename(root / "away", root / "turning")

        def read(number: int) -> None:
            mine = Caller(server)
            while time.monotonic() < until:
                if number % 2:
                    status, said = fetch(mine, "t", "s.json")
                else:
                    made = line(f"t{number}", "s.json", path=root / "turning/secret.json")
                    status, said = register(mine, 3000 + number, made)
                    if status == 200:
                        status, said = fetch(mine, f"t{number}", "s.json")
                findings.count(f"races {status}")
                findings.check(SECRET not in said, "a link was followed out of the root")

        works = [turn] + [read] * 4
        in_threads(len(works), lambda number: works[number](number))
