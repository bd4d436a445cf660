"""A file system that does not answer, below the files of settings or below what a command reads:
SIGHUP stops nothing, and a signal that ends the program does end it, in time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trustme

from registry.core.stopping import ENDS_WITHIN_S
from registry.server import tokens
from registry.server.reloading import HUNG_MAX, Reader
from registry.server.tokens import Role
from tests.models import make_model
from tests.mounted import Mounted, mounted, needs_fuse
from tests.support import Server, bearer, wait_for

OVER_S = ENDS_WITHIN_S + 10
"""The bound, and time for a slow machine."""
LIMIT_S = 1.0
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """The directory `source`, which is seen at `mount` as well, as long as that answers."""
    with mounted(tmp_path / "source", tmp_path / "mount") as mount:
        yield mount


# SIGHUP


def answers(server: Server, token: str, status: int) -> bool:
    """Whether the workers answer a token with a status: each connection may reach another one."""
    for _ in range(12):
        with httpx2.Client(base_url=server.url, headers=bearer(token), timeout=20) as client:
            if client.delete("/v1/artifacts/none/_base").status_code != status:
                return False
    return True


def wait_until_all_serve(server: Server, workers: int) -> None:
    """A worker that is not ready yet is told of SIGHUP later."""
    server.process.send_signal(HUP)
    wait_for(lambda: server.log.count("read the tokens") == workers)


@needs_fuse
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_while_the_token_file_hangs_stops_nothing_and_a_later_one_reads_it(
    serve: Callable[..., Server], mount: Mounted, tmp_path: Path, workers: int
) -> None:
    file, behind = mount.at / "tokens.toml", tmp_path / "source" / "tokens.toml"
    _, first = tokens.create(behind, Role.ADMIN)
    server = serve(token_file=file, workers=workers, file_timeout_s=LIMIT_S)
    wait_until_all_serve(server, workers)
    mount.hang()
    for _ in range(3):
        server.process.send_signal(HUP)
    told = f"the file system of {file} does not answer within {LIMIT_S:g} s"
    assert answers(server, first, 200)
    wait_for(lambda: server.log.count(told) == workers)
    server.process.send_signal(HUP)  # It is tried again.
    wait_for(lambda: server.log.count(told) == 2 * workers)
    assert answers(server, first, 200)
    _, second = tokens.create(behind, Role.ADMIN)
    mount.go_on()
    server.process.send_signal(HUP)
    wait_for(lambda: answers(server, second, 200))
    assert server.stop() == 0


@needs_fuse
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_service_whose_token_file_hangs(
    serve: Callable[..., Server], mount: Mounted, workers: int
) -> None:
    file = mount.at / "tokens.toml"
    tokens.create(file, Role.ADMIN)
    server = serve(token_file=file, workers=workers, file_timeout_s=LIMIT_S)
    wait_until_all_serve(server, workers)
    mount.hang()
    server.process.send_signal(HUP)
    wait_for(lambda: server.log.count("does not answer") == workers)
    server.process.send_signal(HUP)
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(OVER_S) == 0
    assert time.monotonic() - began < OVER_S


@needs_fuse
def test_sighup_while_the_certificate_hangs_stops_nothing_and_is_warned_of(
    serve: Callable[..., Server], mount: Mounted
) -> None:
    chain, key = mount.at / "chain.pem", mount.at / "key.pem"
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(chain))
    issued.private_key_pem.write_to_path(str(key))
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    server = serve(tls_certificate=chain, tls_key=key, trust=trust, file_timeout_s=LIMIT_S)

    def warnings() -> dict[str, str]:
        with httpx2.Client(base_url=server.url, verify=trust, timeout=20) as client:
            found: dict[str, str] = client.get("/health").json()["warnings"]
            return found

    mount.hang()
    server.process.send_signal(HUP)
    assert warnings() == {}
    wait_for(lambda: f"{chain} or {key} does not answer" in server.log)
    wait_for(lambda: "does not answer" in warnings().get("certificate", ""))
    mount.go_on()
    wait_for(lambda: warnings() == {})
    assert server.stop() == 0


class Part:
    """What is read again, as long as nobody holds it up."""

    files = "/hung"

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.reading = 0
        self.begun = 0
        self.taken: list[int] = []
        self.kept: list[str] = []

    def read_again(self) -> Callable[[], None]:
        self.begun += 1
        self.reading += 1
        number = self.begun
        self.goes_on.wait(60)
        self.reading -= 1
        return partial(self.taken.append, number)

    def keep(self, reason: str) -> None:
        self.kept.append(reason)


def test_signals_while_files_hang_pile_up_no_threads_and_are_not_lost() -> None:
    part = Part()

    async def until(condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_for, condition)

    async def reload() -> None:
        reader = Reader(part, 0.02)
        for number in range(1, HUNG_MAX + 4):
            for _ in range(3):
                reader.read()
            await until(lambda number=number: len(part.kept) >= number)  # type: ignore[misc]
        assert part.reading == part.begun == HUNG_MAX
        part.goes_on.set()
        await until(lambda: HUNG_MAX + 1 in part.taken)

    asyncio.run(asyncio.wait_for(reload(), 30))
    assert all("/hung does not answer" in reason for reason in part.kept)
    assert part.taken == sorted(part.taken)  # What was read before never replaces what came after.


# The end


def waits(pid: int) -> bool:
    """Whether the main thread of a process waits for FUSE."""
    place = Path(f"/proc/{pid}/task/{pid}/wchan").read_text()
    return "fuse" in place or "request_wait" in place


def ended(process: subprocess.Popen[str], *numbers: signal.Signals) -> str:
    """Send signals once the process waits; what it says until it has ended."""
    try:
        with suppress(AssertionError):  # Where the kernel does not tell.
            wait_for(lambda: process.poll() is not None or waits(process.pid), 15)
        assert process.poll() is None
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.02)
        return process.communicate(timeout=OVER_S)[0]
    finally:
        process.kill()


def start(folder: Path, *command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


COMMANDS: dict[str, list[str]] = {
    "settings": ["serve", "--port", "0", "--config", "mount/settings.toml"],
    "settings shown": ["config", "show", "--config", "mount/settings.toml"],
    "tokens": ["serve", "--port", "0", "--token-file", "mount/tokens.toml"],
    "a new token": ["token", "new", "--role", "admin", "--token-file", "mount/tokens.toml"],
    "a model": ["attach", "mount/model", "--name", "a", "--endpoint", "a/b/c"],
}


@needs_fuse
@pytest.mark.parametrize(
    ("command", "number"),
    [*((command, TERM) for command in COMMANDS), ("settings", INT), ("a model", INT)],
)
def test_a_command_whose_files_hang_ends_when_told_to(
    mount: Mounted, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    (mount.at / "settings.toml").write_text("")
    tokens.create(mount.at / "tokens.toml", Role.ADMIN)
    shutil.move(make_model(tmp_path / "model"), tmp_path / "source" / "model")
    mount.hang()
    process = start(tmp_path, "-m", "registry", *COMMANDS[command])
    said = ended(process, number)
    is_service = COMMANDS[command][0] == "serve"
    assert process.returncode == (130 if number is INT else 0 if is_service else 143), said
    assert f"{number.name} came, and what was going on did not end within" in said


RELEASED = """
import os, sys, threading
from registry.core import stopping
stopping.catch()
stopping.release(stopping.Bound(0.5, 2, "it took too long"))
threading.Thread(target=threading.Event().wait, daemon=True).start()
os.stat(sys.argv[1])
"""

SERVING = """
import os, sys, threading
import registry.server.app as app
import registry.server.process as process
from registry.__main__ import main
hung = sys.argv.pop(1)
process.END = process.END._replace(seconds=0.5, sentence="it took too long")
threading.Thread(target=threading.Event().wait, daemon=True).start()
app.open_database = lambda *_, **__: os.stat(hung)
main()
"""

PROGRAMS = {"released": (RELEASED, []), "serving": (SERVING, ["serve", "--port", "0"])}


@needs_fuse
@pytest.mark.parametrize(
    ("program", "numbers"),
    [
        *((program, numbers) for program in PROGRAMS for numbers in ((TERM,), (INT,), (TERM, INT))),
        ("serving", (HUP, TERM)),
    ],
)
def test_who_has_handlers_of_its_own_ends_within_its_bound_while_the_main_thread_hangs(
    mount: Mounted, tmp_path: Path, program: str, numbers: tuple[signal.Signals, ...]
) -> None:
    """A second signal goes to another thread, as the main one has not taken the first."""
    (mount.at / "file").write_text("")
    mount.hang()
    source, arguments = PROGRAMS[program]
    process = start(tmp_path, "-c", source, mount.at / "file", *arguments)
    said = ended(process, *numbers)
    assert process.returncode == 2, said
    assert "error: it took too long" in said
