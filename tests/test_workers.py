"""Worker processes that end without being told to: replaced, told of, counted, and not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from registry.server import tokens
from registry.server.tokens import Role
from registry.server.workers import PAUSE_MAX_S, STARTS_MAX
from tests.support import Server, serving_workers_of, wait_for, workers_of
from tests.test_metrics import Scraped

PATIENT = ["-c", "import registry.server.workers as workers; workers.PAUSE_MIN_S = 0.01;"]
PATIENT[1] += "from registry.__main__ import main; main()"
"""The program, with short pauses."""

DYING = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv: {}\n"
"""Runs before anything else in every process of Python, here in the workers only."""


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "was killed by SIGKILL (by somebody, or by the kernel"),
        (signal.SIGBUS, "was killed by SIGBUS (a file"),
        (signal.SIGTERM, "ended by itself with exit code 0"),
    ],
)
def test_a_worker_that_ends_is_told_of_with_its_cause_counted_and_replaced(
    serve: Callable[..., Server], number: signal.Signals, cause: str
) -> None:
    server = serve(workers=2, from_nothing=True)
    wait_for(lambda: len(workers_of(server)) == 2)
    ended = workers_of(server)[0]
    os.kill(ended, number)
    wait_for(lambda: f"worker {ended} {cause}" in server.log)
    wait_for(lambda: len(workers_of(server)) == 2)
    wait_for(lambda: Scraped(server).get("worker_restarts_total") == 1)
    assert server.log.count("another one starts in 0.5 s") == 1
    assert server.stop() == 0
    assert server.log.count("worker ") == 1


def test_each_that_lives_shortly_is_waited_for_longer(serve: Callable[..., Server]) -> None:
    server = serve(workers=2)
    for pause in ("0.5", "1", "2"):
        wait_for(lambda: len(workers_of(server)) == 2)
        first = workers_of(server)[0] if pause == "0.5" else youngest(server)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda pause=pause: f"starts in {pause} s" in server.log)  # type: ignore[misc]
    assert PAUSE_MAX_S == 30


def youngest(server: Server) -> int:
    return max(workers_of(server), key=lambda pid: os.stat(f"/proc/{pid}").st_ctime_ns)


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("os._exit(7)", "ended by itself with exit code 7"),
    ],
)
def test_a_service_whose_workers_die_before_they_serve_gives_up_and_says_why(
    database_path: Path, death: str, cause: str
) -> None:
    (database_path.parent / "sitecustomize.py").write_text(DYING.format(death))
    done = subprocess.run(
        [sys.executable, *PATIENT, "serve", "--workers", "2", "--port", "0"],
        cwd=database_path.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(database_path.parent),
            "REGISTRY_DATABASE_URL": f"sqlite:///{database_path}",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    ends = [line for line in done.stderr.splitlines() if cause in line]
    assert len(ends) >= 2 * STARTS_MAX - 1
    why, end = done.stderr.splitlines()[-2:]
    assert "No worker can start, so the service ends" in why
    assert "the service has ended" in end


def test_one_that_cannot_start_any_more_takes_nobody_with_it(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    tokens.create(file, Role.ADMIN)
    server = serve(workers=2, token_file=file, program=PATIENT)
    wait_for(lambda: len(serving_workers_of(server)) == 2)  # Or both could not start any more.
    whole = file.read_text()
    file.write_text(whole + "broken")
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_for(lambda: "ended by itself with exit code 3; another one starts" in server.log, 100)
    assert httpx2.get(f"{server.url}/live", timeout=60).status_code == 200
    file.write_text(whole)
    assert server.stop() == 0


def test_a_service_ends_while_a_worker_is_waited_for(serve: Callable[..., Server]) -> None:
    server = serve(workers=2)
    wait_for(lambda: len(workers_of(server)) == 2)
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_for(lambda: "was killed by SIGKILL" in server.log)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 20
