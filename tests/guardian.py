"""Ends a PostgreSQL server of the tests, and deletes its folder, once whoever started it is gone.

`python guardian.py FOLDER` waits for the end of its standard input, which comes however the tests
end: Ctrl-C and kill -9 as well. It needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

ENDS_WITHIN_S = 10.0


def processes_in(data: Path) -> list[int]:
    """The processes of the server that works in a data folder, the first of them first."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and os.readlink(process / "cwd") == str(data):
                found.append(int(process.name))
    first = first_process_of(data)
    return sorted(found, key=lambda pid: (pid != first, pid))


def send(data: Path, number: signal.Signals) -> None:
    """Send a signal to every process of a server."""
    for pid in processes_in(data):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end(data: Path) -> None:
    """End a server without waiting for anybody, also one that is frozen."""
    send(data, signal.SIGQUIT)
    send(data, signal.SIGCONT)
    deadline = time.monotonic() + ENDS_WITHIN_S
    while processes_in(data):
        if time.monotonic() > deadline:
            send(data, signal.SIGKILL)
        time.sleep(0.01)


def first_process_of(data: Path) -> int | None:
    lines = _lock_file(data)
    return int(lines[0]) if lines else None


def forget_shared_memory(data: Path) -> None:
    """A server that was killed leaves a piece of shared memory in the system, and its number."""
    lines = _lock_file(data)
    if len(lines) > 6 and lines[6].split():
        ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), 0, None)  # 0: IPC_RMID


def _lock_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def main(folder: Path) -> None:
    sys.stdin.buffer.read()
    data = folder / "data"
    end(data)
    forget_shared_memory(data)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
