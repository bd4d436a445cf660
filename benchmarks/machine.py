"""The machine that is measured on: its cores, its tools, its description."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "bench"
"""Databases and files of the benchmarks; on the disk of the checkout."""

_cores = sorted(os.sched_getaffinity(0))
SERVER_CORE = _cores[0]
LOAD_CORE = _cores[-1]
ALL_CORES = ",".join(map(str, _cores))

TOOLS = {"wrk": "wrk", "nginx": "nginx-light"}
"""Programs that are needed beside Python, with the Debian package of each."""


def find_tool(name: str) -> str | None:
    """The path of a program, installed from Debian's packages if we may; None: it is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    if shutil.which(name, path=path) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {TOOLS[name]} ...", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", TOOLS[name]]):
            subprocess.run(
                ["apt-get", "-qq", *command],
                check=False,
                env=environment,
                timeout=300,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    return shutil.which(name, path=path)


def pin_load() -> None:
    """Keep this process, which makes the load, off the server's core."""
    os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def on_all_cores() -> Iterator[None]:
    """What is started in the block may run on every core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe() -> dict[str, str]:
    """Date, processor, versions and settings, as they stand in the results."""
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "msgspec", "blake3", "sqlalchemy")
    pinned = f"server on core {SERVER_CORE}, load on core {LOAD_CORE}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {len(_cores)} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in packages},
        "pinned": pinned if SERVER_CORE != LOAD_CORE else "one core for server and load",
        "settings": "as shipped: synchronous=FULL, integrity checks on, one worker process",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cpu_s(pid: int) -> float:
    """The time that a process has spent on a core, in its own code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int) -> None:
    """Let the peak of a process's memory begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_mib(pid: int, *, peak: bool = False) -> float:
    """The resident memory of a process, or the most that it ever had."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {wanted} of process {pid}")


def written_mib(pid: int) -> float:
    """What a process has had written to disks so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1]) / (1 << 20)
    raise ValueError(f"nothing is told of what process {pid} writes")
