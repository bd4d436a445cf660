"""The program in surroundings of every kind, quickly: a process that has loaded it forks for each.

What the program finds at its start (its descriptors, directory, limits, user, variables) is set up
in the fork, and the fork ends as a process of its own does. What Python itself reads before it
runs anything, the locale above all, is that of the process that forks: `Forks(LC_ALL="C")`.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import ROOT

COLUMNS = 80
RUN_S = 60

CLOSED, PIPE, TERMINAL, FULL, BROKEN = "closed", "pipe", "terminal", "full", "broken"
"""What a stream of the program is: nothing, a pipe, a terminal of 80 columns, a full disk, or a
pipe whose reader has gone."""

_PROGRAM = r"""
import contextlib, gc, io, json, os, resource, socket, sys, traceback
from importlib import import_module
from registry import cli
for home, _ in cli.COMMANDS.values():
    import_module(home.split(":")[0])
# Whatever is imported later is imported here: another user may not be able to read it.
for name in (
    *("registry.client.attach", "registry.store.sqlite.restore", "registry.server.process"),
    *("rich.table", "rich.progress", "concurrent.futures.thread", "logging.config"),
    *("registry.store.sqlite.copying", "registry.store.postgresql.copying", "encodings.ascii"),
    *("registry.mirror.loop", "registry.mirror.status_server", "registry.discovery.file"),
):
    with contextlib.suppress(ModuleNotFoundError):  # It is for an extra that is not installed.
        import_module(name)
NOWHERE = ("--url", "http://127.0.0.1:9", "--token", "t")
for words in (["ls", *NOWHERE], ["fetch", "m", *NOWHERE], ["db", "history"], ["sql", "SELECT 1"]):
    # What is loaded at first use is loaded here, once.
    out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with out, err, contextlib.suppress(Exception, SystemExit):
        cli.program().main(words, prog_name="warm", standalone_mode=False)
gc.collect()
gc.freeze()
parent = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, descriptors, _, _ = socket.recv_fds(parent, 1 << 20, 3)
    if not message:
        sys.exit()
    child = os.fork()
    if child == 0:
        break
    for each in descriptors:
        os.close(each)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    parent.sendall(b"%d\n" % status)
parent.close()
wanted = json.loads(message)
if wanted["directory"] is not None:
    os.chdir(wanted["directory"])
if wanted["is_removed"]:
    os.rmdir(wanted["directory"])
os.environ.clear()
os.environ.update(wanted["environ"])
# As Python makes them, without what it has learned of a descriptor before.
for stream in (sys.stdout, sys.stderr):
    stream.flush()
descriptors = [None if each is None else descriptors.pop(0) for each in wanted["streams"]]
errors = ("strict", "strict", "backslashreplace")
for number, name in enumerate(("stdin", "stdout", "stderr")):
    encoding = getattr(sys, name).encoding
    getattr(sys, name).detach()
    if descriptors[number] is None:
        os.close(number)
        stream = None
    else:
        os.dup2(descriptors[number], number)
        os.close(descriptors[number])
        stream = open(number, "r" if number == 0 else "w", encoding=encoding, errors=errors[number],
                      closefd=False, buffering=1 if os.isatty(number) or number == 2 else -1)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)
for name, limit in wanted["limits"].items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
if wanted["user"] is not None:
    os.setgroups([])
    os.setgid(wanted["user"])
    os.setuid(wanted["user"])
sys.argv = ["metadata-registry", *map(os.fsdecode, map(bytes.fromhex, wanted["words"]))]
code = 0
try:
    cli.main()
except SystemExit as end:
    code = end.code
except BaseException:
    traceback.print_exc()
    code = 1
if wanted["is_finished"]:
    sys.exit(code)  # Python finishes what there is, and says what it could not.
for stream in (sys.stdout, sys.stderr):
    stream.flush()
os._exit(code)
"""


@dataclass(frozen=True)
class Surroundings:
    """What the program finds at its start. `directory_is_removed`: its working directory, which
    is one of its own then."""

    variables: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    stdin: str = PIPE
    stdout: str = PIPE
    stderr: str = PIPE
    limits: dict[str, int] = field(default_factory=dict)
    user: int | None = None
    directory_is_removed: bool = False


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """Runs the program in forks of one process. Keywords are that process's variables."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder = folder
        self._number = 0
        ours, theirs = socket.socketpair()
        self._socket = ours
        script = folder / "forking.py"
        script.write_text(_PROGRAM)
        rest = {name: text for name, text in os.environ.items() if "REGISTRY_" not in name}
        environ = rest | {"PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT)} | variables
        self._process = subprocess.Popen(
            [sys.executable, script, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environ
        )
        theirs.close()

    def run(self, *words: object, surroundings: Surroundings, directory: Path) -> Done:
        """Run the program with these words, in this directory."""
        self._number += 1
        if surroundings.directory_is_removed:
            directory = self._folder / f"removed-{self._number}"
            directory.mkdir()
        kinds = (surroundings.stdin, surroundings.stdout, surroundings.stderr)
        streams = [_Stream(kind, is_input=number == 0) for number, kind in enumerate(kinds)]
        environ = {
            "HOME": str(self._folder / "home"),
            "PATH": os.environ["PATH"],
            "TERM": "xterm-256color",
            "TMPDIR": str(self._folder),
            **surroundings.variables,
        }
        message = {
            "words": [os.fsencode(str(word)).hex() for word in words],
            "environ": {n: v for n, v in environ.items() if n not in surroundings.without},
            "directory": str(directory),
            "is_removed": surroundings.directory_is_removed,
            "streams": [stream.theirs for stream in streams],
            "limits": surroundings.limits,
            "user": surroundings.user,
            "is_finished": {FULL, BROKEN} & set(kinds) != set(),
        }
        handed = [stream.theirs for stream in streams if stream.theirs is not None]
        socket.send_fds(self._socket, [json.dumps(message).encode()], handed)
        for each in handed:
            os.close(each)
        readers = [stream.read() for stream in streams[1:]]
        ready, _, _ = select.select([self._socket], [], [], RUN_S)
        assert ready, f"{words} did not end within {RUN_S} s"
        code = int(self._socket.recv(64))
        return Done(code, readers[0].text(), readers[1].text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        if error is not None:
            self._process.kill()
        self._process.wait(RUN_S)


class _Stream:
    """One end is the program's, the other is read by a thread."""

    def __init__(self, kind: str, *, is_input: bool) -> None:
        self.theirs: int | None = None
        self._ours: int | None = None
        self._parts: list[bytes] = []
        self._thread: threading.Thread | None = None
        match kind:
            case "pipe" if is_input:
                self.theirs = os.open(os.devnull, os.O_RDONLY)
            case "pipe":
                self._ours, self.theirs = os.pipe()
            case "terminal":
                self._ours, self.theirs = pty.openpty()
                size = struct.pack("HHHH", 24, COLUMNS, 0, 0)
                fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
            case "full":
                self.theirs = os.open("/dev/full", os.O_WRONLY)
            case "broken":
                ours, self.theirs = os.pipe()
                os.close(ours)

    def read(self) -> Self:
        if self._ours is not None:
            self._thread = threading.Thread(target=self._collect, args=[self._ours])
            self._thread.start()
        return self

    def _collect(self, descriptor: int) -> None:
        try:
            while part := os.read(descriptor, 1 << 16):
                self._parts.append(part)
        except OSError:
            pass  # Linux reports the last close of the other end of a terminal as an error.
        finally:
            os.close(descriptor)

    def text(self) -> str:
        if self._thread is not None:
            self._thread.join(RUN_S)
        return b"".join(self._parts).decode("utf-8", "surrogateescape").replace("\r\n", "\n")
