"""Programs as containers run them: as process 1, which gets only the signals that it handles."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support import opened_by, wait_for

_UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


@functools.cache
def unshare() -> list[str]:
    """The command that makes what follows process 1, for root or for anybody; skips where neither
    may."""
    for command in (_UNSHARE, [*_UNSHARE, "--user", "--map-root-user"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except OSError:
            break
    pytest.skip("no process ID namespaces here")


def box(data: Path, *, tmp: bool, **variables: str) -> list[str]:
    """The command that runs what follows as process 1 of a container: a user without a name or a
    home, a root that is read-only but for `data`, and a /tmp of a megabyte or none; skips where
    there is no bubblewrap."""
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent"]
    command += ["--uid", "12345", "--gid", "12345", "--ro-bind", "/", "/"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(1 << 20), "--tmpfs", "/tmp"] if tmp else []
    command += ["--bind", str(data), str(data), "--chdir", str(data), "--clearenv"]
    for name, value in {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error", **variables}.items():
        command += ["--setenv", name, value]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no bubblewrap")
    if done.returncode:
        pytest.skip(f"bubblewrap makes no container here: {done.stderr.decode()}")
    return command


class First:
    """A command of the program as process 1, in a container of its own if `box` makes one."""

    def __init__(
        self, *arguments: object, cwd: Path, box: Sequence[str] | None = None, **variables: str
    ) -> None:
        command = [*(box or unshare()), sys.executable, "-m", "registry", *map(str, arguments)]
        self._outer = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONWARNINGS": "error", **variables},
        )
        self._said = ""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        wait_for(lambda: bool(children.read_text().split()))
        self.pid = int(children.read_text().split()[0])

    def wait_until_it_listens_to(self, number: signal.Signals) -> None:
        """Until a signal would not be lost any more."""
        wait_for(lambda: bool(self._caught() >> (number - 1) & 1))

    def wait_until_it_opens(self, path: Path) -> None:
        wait_for(lambda: path in self._opened())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def read_line(self) -> str:
        """The next line of its standard output."""
        assert self._outer.stdout is not None
        return self._outer.stdout.readline()

    def wait_until_it_says(self, text: str) -> None:
        """Until a line with the text is on its standard error."""
        assert self._outer.stderr is not None
        while text not in self._said:
            line = self._outer.stderr.readline()
            assert line, f"it ended: {self._said}"
            self._said += line

    def end(self, within_s: float) -> tuple[int, str, str]:
        """Its exit code and what it said, if it ends in time."""
        try:
            output, errors = self._outer.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it runs on after {within_s:g} s") from None
        return self._outer.returncode, output, self._said + errors

    def _caught(self) -> int:
        for line in self._read("status").splitlines():
            if line.startswith("SigCgt:"):
                return int(line.split()[1], 16)
        return 0

    def _opened(self) -> set[Path]:
        """The files that it has open, or a child of it."""
        pids = [self.pid]
        with suppress(OSError):
            pids += map(int, self._read(f"task/{self.pid}/children").split())
        return {Path(each) for pid in pids for each in opened_by(pid)}

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def __enter__(self) -> First:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        self._outer.kill()
        self._outer.communicate()
