"""deploy/Containerfile without a builder of images: its steps are run, and what they made is
started, in roots of our own that hold a system, a Python, and nothing else that is writable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT, wait_for

CONTAINERFILE = ROOT / "deploy/Containerfile"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
ANYBODY = 54321
STEP_S = 600
PYTHON = Path(os.path.realpath(sys.executable))
BASE = Path(sys.base_prefix)
APPLICATION = "/opt/metadata-registry"


@dataclass(frozen=True)
class Instruction:
    """One of a Containerfile: `stage` is 0 where things are built, 1 for the image itself."""

    name: str
    rest: str
    stage: int

    @property
    def words(self) -> list[str]:
        """What is given as a list."""
        words = json.loads(self.rest)
        assert isinstance(words, list), f"{self.name} needs a shell"
        return words


def instructions() -> list[Instruction]:
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], -1
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(name, rest, stage))
    return found


def of_image(name: str) -> Instruction:
    """The one instruction of its name that the image has."""
    (found,) = [each for each in instructions() if (each.name, each.stage) == (name, 1)]
    return found


def environment() -> dict[str, str]:
    """The variables of the image."""
    return dict(re.findall(r"(\w+)=(\S+)", of_image("ENV").rest))


class Image:
    """What the steps of the Containerfile make, in a folder. Skips without bubblewrap."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "build", "dist", "opt", "data", "shim", "cache"):
            (folder / name).mkdir()
        shim = folder / "shim/python"
        shim.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
        shim.chmod(0o755)
        for each in instructions():
            if each.name == "COPY" and each.stage == 0:
                *sources, target = each.rest.split()
                for source in sources:
                    subprocess.run(["cp", "-r", ROOT / source, folder / "src" / target], check=True)
            elif each.name == "RUN":
                self._step(each)

    def _step(self, step: Instruction) -> None:
        """A step as root, who may write to what later steps take over. The index is asked with
        pip's own cache, which an image is made without."""
        pip = [sys.executable, "-m", "pip", "cache", "dir"]
        cache = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.strip()
        os.makedirs(cache, exist_ok=True)
        places = {"src": "/src", "build": "/build", "dist": "/dist", "opt": "/opt"}
        places = places if step.stage == 0 else {"data": "/data"}
        binds = [("--bind", self.folder / name, at) for name, at in places.items()]
        keep = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_")) or name.lower().endswith("_proxy")
        }
        command = [
            *_root(
                0, [*binds, ("--bind", cache, "/cache"), ("--bind", self.folder / "shim", "/shim")]
            ),
            *_variables({**keep, "PATH": f"/shim:{BASE}/bin:/usr/bin:/bin", "HOME": "/tmp"}),
            *_variables({"PIP_CACHE_DIR": "/cache", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}),
            *("--chdir", "/src" if step.stage == 0 else "/"),
        ]
        done = subprocess.run(
            [*command, "sh", "-c", step.rest], capture_output=True, text=True, timeout=STEP_S
        )
        if "Failed to establish a new connection" in done.stderr:
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, f"{step.rest}\n{done.stdout}{done.stderr}"

    def box(self, *mounts: tuple[str, object, object], **variables: str) -> list[str]:
        """The command that runs what follows as process 1 of a container of the image: any user,
        no home, no network but its own, and nothing to write to but /data and a small /tmp."""
        binds = [
            ("--ro-bind", self.folder / "opt/metadata-registry", APPLICATION),
            ("--bind", self.folder / "data", "/data"),
            *mounts,
        ]
        return [
            *_root(ANYBODY, binds, tmp_bytes=8 << 20),
            *("--unshare-net", "--unshare-pid", "--as-pid-1", "--die-with-parent"),
            *_variables({**environment(), "PYTHONWARNINGS": "error", **variables}),
            *("--chdir", of_image("WORKDIR").rest),
        ]


def _root(
    uid: int, binds: Sequence[tuple[str, object, object]], tmp_bytes: int | None = None
) -> list[str]:
    """A root that holds a system, this Python and what is bound into it; all else is read-only."""
    command = ["bwrap", "--unshare-user", "--uid", str(uid), "--gid", str(uid), "--clearenv"]
    for path in (*SYSTEM, str(BASE), str(PYTHON.parent), "/run/systemd/resolve"):
        real = os.path.realpath(path)
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(real):
            command += ["--ro-bind", real, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += [] if tmp_bytes is None else ["--size", str(tmp_bytes)]
    command += ["--tmpfs", "/tmp"]
    command += [str(word) for bind in binds for word in bind]
    return [*command, "--remount-ro", "/"]


def _variables(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in ("--setenv", name, value)]


@dataclass(frozen=True)
class Container:
    """A running one. `pid` is its process 1, as it is known here."""

    outer: subprocess.Popen[str]
    pid: int

    def execute(self, *words: object, code: int = 0, **variables: str) -> str:
        """Run a command in it, as `docker exec` does; what it said on both outputs."""
        inside = ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials"]
        inside += ["--mount", "--pid", "--net", "--root", "--wd"]
        values = {**environment(), "PYTHONWARNINGS": "error", **variables}
        done = subprocess.run(
            [
                *inside,
                "env",
                "-i",
                *(f"{name}={value}" for name, value in values.items()),
                *map(str, words),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@contextmanager
def started(box: Sequence[str], words: Sequence[str]) -> Iterator[Container]:
    """A container that runs as long as the block does, or until it ends by itself."""
    with subprocess.Popen(
        [*box, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            wait_for(lambda: bool(children.read_text().split()))
            yield Container(outer, int(children.read_text().split()[0]))
        finally:
            with suppress(ProcessLookupError):
                outer.kill()
            outer.communicate()
