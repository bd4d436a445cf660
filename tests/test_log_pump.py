"""The log goes on its way without the service waiting for whoever reads it."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
import pytest

from registry.core.log_pump import LINES_MAX, LogPump
from tests.support import START_S, wait_for


@contextmanager
def logger(descriptor: int) -> Iterator[logging.Logger]:
    log = logging.getLogger(f"pumped-{next(_numbers)}")
    log.setLevel(logging.INFO)
    log.propagate = False
    pump = LogPump(descriptor)
    log.addHandler(pump)
    yield log
    pump.flush()
    pump.close()


_numbers = itertools.count()


def test_lines_come_whole_and_in_order(tmp_path: Path) -> None:
    lines = [f"{number} " + "x" * (number * 37 % 9000) for number in range(500)]
    with (tmp_path / "log").open("w") as file, logger(file.fileno()) as log:
        for line in lines:
            log.info("%s", line)
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_who_logs_to_a_reader_that_does_not_read_goes_on_and_what_is_lost_is_told() -> None:
    reading, writing = os.pipe()
    sent = 2 * LINES_MAX
    with logger(writing) as log:
        for number in range(sent):
            log.info("line %d", number)
        received: list[bytes] = []
        with os.fdopen(reading, "rb") as reader:
            taking = threading.Thread(target=lambda: received.extend(reader), daemon=True)
            taking.start()
            wait_for(lambda: any(b"of the log were lost" in line for line in received))
            log.info("the last one")
            wait_for(lambda: b"the last one\n" in received)
            os.close(writing)
            taking.join()
    (told,) = [line for line in received if b"were lost" in line]
    kept = [line for line in received if line.startswith(b"line ")]
    assert int(told.split()[0]) + len(kept) == sent
    assert kept == sorted(kept, key=lambda line: int(line.split()[1]))


@pytest.mark.parametrize("errors", ["/dev/full", "closed", "a pipe without a reader"])
def test_a_log_that_cannot_be_written_ends_nothing(errors: str) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    if errors != "/dev/full":
        os.close(descriptor)
    if errors == "a pipe without a reader":
        reading, descriptor = os.pipe()
        os.close(reading)
    with logger(descriptor) as log:
        for _ in range(10):
            log.warning("nobody hears it")
    if errors != "closed":
        os.close(descriptor)


@contextmanager
def serving(database: Path, errors: IO[bytes] | int, *flags: str) -> Iterator[tuple[str, int]]:
    """A service whose log goes to a descriptor: its address and process id."""
    with subprocess.Popen(
        [sys.executable, "-m", "registry", "serve", "--port", "0", "--log-level", "debug", *flags],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "REGISTRY_DATABASE_URL": f"sqlite:///{database}"},
        cwd=database.parent,
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            yield url, process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(START_S) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_whose_log_nobody_reads_goes_on_serving_and_ends_when_told_to(
    database_path: Path, workers: str
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while os.write(writing, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(writing, True)
    with (
        serving(database_path, writing, "--workers", workers) as (url, _),
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        for _ in range(100):
            assert client.get("/live").status_code == 200
        assert client.get("/health").status_code == 200
    os.close(reading)
    os.close(writing)


def test_a_service_goes_on_with_a_full_disk_for_its_log(database_path: Path) -> None:
    with open("/dev/full", "wb") as full, serving(database_path, full) as (url, _):
        for _ in range(10):
            assert httpx2.get(f"{url}/health").status_code == 200
