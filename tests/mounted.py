"""A file system that can be made to hang: a directory that is mounted once more through FUSE, whose
process is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import wait_for

AVAILABLE = shutil.which("bindfs") is not None and os.access("/dev/fuse", os.R_OK | os.W_OK)

needs_fuse = pytest.mark.skipif(not AVAILABLE, reason="needs bindfs and /dev/fuse")


class Mounted:
    """A directory as it is seen through FUSE at another place."""

    def __init__(self, source: Path, at: Path) -> None:
        self.at = at
        options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
        self._process = subprocess.Popen(
            ["bindfs", "-f", "-o", options, str(source), str(at)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: os.path.ismount(at))

    def hang(self) -> None:
        """From now on nothing below answers."""
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._process.pid}/stat")
        wait_for(lambda: status.read_text().rpartition(") ")[2].startswith("T"))

    def go_on(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Take it away, whoever still waits for it."""
        self.go_on()
        with suppress(OSError):
            subprocess.run(["umount", "-l", str(self.at)], check=False, capture_output=True)
        self._process.terminate()
        self._process.wait(30)


@contextmanager
def mounted(source: Path, at: Path) -> Iterator[Mounted]:
    """A directory seen at another place as well, as long as the block runs."""
    for each in (source, at):
        each.mkdir(parents=True, exist_ok=True)
    mount = Mounted(source, at)
    try:
        yield mount
    finally:
        mount.end()
