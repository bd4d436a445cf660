"""The documentation as tests see it: its blocks, headings and links, and a reader who types along.

A `Reader` has one shell in a folder that looks like a checkout, and does what a document says, in
its order. In a `console` block, lines that begin with `$ ` are typed and what stands below them is
compared with what came out; `sh` and `bash` blocks are run as they stand. `make run` and
`metadata-registry serve` start a real service on a free port and return as soon as it listens, as
if they had been typed in another terminal; the service before is stopped, as Ctrl-C would.

What varies is made equal on both sides: times, random ids, the folder, the port, and runs of
spaces. `...` in expected output stands for any text of a line, and alone on a line for any lines.
A command may fail only if `$ echo $?` is typed next. `<!-- reader: stop -->` stops the service.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

from tests.support import MODEL, ROOT

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

SHOWN_FOLDER = "/home/you/metadata-registry"
SHOWN_ADDRESS = "127.0.0.1:8090"
STOP_S = 30

# Each starts a service, or what it stands for would take too long here. They are replaced.
_MAKE = """\
#!/bin/sh
# `make` as the documentation uses it.
target=$1; shift
case "$target" in
run)
    for assignment; do case "$assignment" in ARGS=*) eval "set -- ${assignment#ARGS=}";; esac; done
    exec "@FOLDER@/.venv/bin/metadata-registry" serve "$@" ;;
build/model) exit 0 ;;
*) exec "@REAL_MAKE@" -C "@ROOT@" --dry-run "$target" > /dev/null ;;
esac
"""
_PROGRAM = """\
#!/bin/sh
if [ "$1" != serve ]; then exec "@PYTHON@" -m registry "$@"; fi
"@STOP@"
rm -f "@STATE@/log"
REGISTRY_PORT=0 "@PYTHON@" -m registry "$@" > "@STATE@/log" 2>&1 < /dev/null &
echo $! > "@STATE@/pid"
while ! grep -qs '^listening on ' "@STATE@/log"; do
    kill -0 $! 2> /dev/null || { rm "@STATE@/pid"; cat "@STATE@/log"; wait $!; exit; }
done
sed -n 's/^listening on //p' "@STATE@/log" > "@STATE@/url"
cat "@STATE@/log"
"""
_STOP = """\
#!/bin/sh
[ -e "@STATE@/pid" ] || exit 0
pid=$(cat "@STATE@/pid")
kill "$pid" 2> /dev/null
while kill -0 "$pid" 2> /dev/null; do :; done
rm "@STATE@/pid"
"""
_PYTHON = """\
#!/bin/sh
exec "@PYTHON@" "$@"
"""
_SQLITE = """\
#!@PYTHON@
# What the documentation needs of the sqlite3 shell, where there is none.
import sqlite3, sys
path, statement = [each for each in sys.argv[1:] if each != "-readonly"]
for row in sqlite3.connect(path, isolation_level=None).execute(statement):
    print("|".join("" if value is None else str(value) for value in row))
"""

_times = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|\+00:00)")
_compact_times = re.compile(r"\d{8}T\d{6}Z")
_dates = re.compile(r"\b\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
_log_times = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_ids = re.compile(r"\b[0-9a-f]{16}([0-9a-f]{4})?\b")
_spaces = re.compile(r"[ \t]{2,}|-{4,}")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and the line of its document on which its text begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is typed, and what should come out: None where nothing is said about it."""

    command: str
    expected: str | None
    line: int
    may_fail: bool = False


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, and its directives as blocks of the language `reader`."""
    found: list[Block] = []
    fence: str | None = None
    language, lines, start = "", list[str](), 0
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if fence is None:
            opening = re.match(r"(```+)([\w-]*)$", line)
            directive = re.fullmatch(r"<!-- reader: ([a-z ]+) -->", line)
            if opening:
                fence, language, lines, start = opening[1], opening[2], [], number + 1
            elif directive:
                found.append(Block("reader", directive[1], number))
        elif line == fence:
            found.append(Block(language, "\n".join(lines) + "\n", start))
            fence = None
        else:
            lines.append(line)
    assert fence is None, f"{document.name}: a block is not closed"
    return found


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^(```+).*?^\1$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """What can follow `#` in a link to a document, by the rule of the code hosts."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(document), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def links(document: Path) -> list[str]:
    """The targets of a document's links, but those to other hosts."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def section(document: Path, heading: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    lines = document.read_text(encoding="utf-8").splitlines()
    assert heading in lines, f"{document.name} has no heading {heading!r}"
    start = lines.index(heading) + 1
    level = len(heading) - len(heading.lstrip("#"))
    fenced = False
    for end in range(start, len(lines)):
        fenced ^= lines[end].startswith("```")
        if not fenced and re.match(rf"#{{1,{level}}} ", lines[end]):
            return "\n".join(lines[start:end])
    return "\n".join(lines[start:])


def steps(block: Block) -> list[Step]:
    """What a shell block has to be typed."""
    if block.language in ("sh", "bash"):
        return [Step(f"trap 'return 1' ERR\n{block.text}", None, block.line)]
    found: list[Step] = []
    command: list[str] = []
    expected: list[str] = []
    start = block.line

    def finish(may_fail: bool = False) -> None:
        if command:
            shown = "\n".join(expected) if expected else None
            found.append(Step("\n".join(command), shown, start, may_fail))

    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            finish(may_fail=line == "$ echo $?")
            command, expected, start = [line[2:]], [], number
        elif command and not expected and (command[-1].endswith("\\") or line.startswith("> ")):
            command.append(line.removeprefix("> "))
        else:
            assert command, f"line {number}: output before any command"
            expected.append(line)
    finish()
    return found


def matches(expected: str, actual: str) -> bool:
    """Whether output is what the document shows."""
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, line.rstrip().split("..."))) + r"[ \t]*\n"
    return re.fullmatch(pattern, actual.strip("\n") + "\n") is not None


class Reader:
    """Does what a document says. Close it, so that no service is left.

    `activated`: the commands can be called by their names from the start.
    """

    def __init__(self, folder: Path, *, activated: bool) -> None:
        self.folder = folder / "metadata-registry"
        self._state = folder / "state"
        self._sentinel = secrets.token_hex(16)
        self._status = 0
        self._names: dict[str, Any] = {"__name__": "__main__"}
        _make_checkout(self.folder, self._state)
        keep = {"HOME": str(folder / "home"), "PYTHONWARNINGS": "error", "COLUMNS": "200"}
        paths = [str(self._state / "bin"), os.environ["PATH"]]
        paths[:0] = [str(self.folder / ".venv/bin")] if activated else []
        environ = {name: value for name, value in os.environ.items() if name[:9] != "REGISTRY_"}
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=environ | keep | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        """Where the service listens that was started last."""
        url = self._state / "url"
        text = url.read_text() if url.exists() else ""
        return text.strip().removeprefix("http://") or SHOWN_ADDRESS

    @property
    def service_log(self) -> str:
        """What the service said that was started last."""
        log = self._state / "log"
        return log.read_text() if log.exists() else ""

    def do(self, block: Block) -> list[str]:
        """Type a block; what did not go as the document says."""
        match block.language:
            case "reader":
                assert block.text == "stop", f"line {block.line}: unknown directive"
                subprocess.run([self._state / "bin/stop"], check=True, timeout=STOP_S)
                return []
            case "python" | "pycon":
                return self._run_python(block)
            case "console" | "sh" | "bash":
                found = (self._take(step) for step in steps(block))
                return [problem for problem in found if problem]
        return []

    def _take(self, step: Step) -> str | None:
        output = self._type(step.command)
        where = f"line {step.line}: $ {step.command}"
        if self._status and not step.may_fail:
            return f"{where}\nended with {self._status}:\n{output}"
        if step.expected is not None:
            shown, found = self._alike(step.expected), self._alike(output)
            if not matches(shown, found):
                return f"{where}\n--- the document shows\n{shown}\n--- it gave\n{found}"
        return None

    def _type(self, command: str) -> str:
        script = self._state / "command"
        script.write_text(command.replace(SHOWN_ADDRESS, self.address) + "\n", encoding="utf-8")
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(
            f"export REGISTRY_URL=http://{self.address}; (exit {self._status})\n"
            f". {script} < /dev/null\n"
            f"printf '\\n%s %s\\n' {self._sentinel} $?; trap - ERR\n"
        )
        self._shell.stdin.flush()
        output = ""
        for line in self._shell.stdout:
            if line.startswith(self._sentinel):
                self._status = int(line.split()[1])
                return output.removesuffix("\n")
            output += line
        raise AssertionError(f"the shell ended:\n{output}")

    def _alike(self, text: str) -> str:
        """Output without what varies."""
        text = text.replace(str(self.folder), SHOWN_FOLDER).replace(self.address, SHOWN_ADDRESS)
        for pattern, name in (
            (_times, "<time>"),
            (_compact_times, "<time>"),
            (_dates, "<time>"),
            (_log_times, "<time>"),
            (_ids, "<id>"),
        ):
            text = pattern.sub(name, text)
        return "\n".join(_spaces.sub("  ", line).rstrip() for line in text.splitlines())

    def _run_python(self, block: Block) -> list[str]:
        """Run Python in this process. The blocks of a document go on from each other."""
        text = block.text.replace(SHOWN_ADDRESS, self.address)
        home = {"HOME": str(self.folder.parent / "home"), "XDG_CACHE_HOME": ""}
        with contextlib.chdir(self.folder), mock.patch.dict(os.environ, home):
            if block.language == "pycon":
                return _run_doctest(text, self._names, block.line)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * (block.line - 1) + text, "document", "exec"), self._names)
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subprocess.run([self._state / "bin/stop"], check=False, timeout=STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait(STOP_S)
        for pipe in (self._shell.stdin, self._shell.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _run_doctest(text: str, names: dict[str, Any], line: int) -> list[str]:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(text, names, "document", "document", line)
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=options).run(test, out=report.write, clear_globs=False)
    names |= test.globs
    return [report.getvalue()] if report.getvalue() else []


def _make_checkout(folder: Path, state: Path) -> None:
    """What a reader has typed `make` for: a virtual environment and the model."""
    replaced = {
        "@FOLDER@": str(folder),
        "@PYTHON@": sys.executable,
        "@REAL_MAKE@": shutil.which("make") or "make",
        "@ROOT@": str(ROOT),
        "@STATE@": str(state),
        "@STOP@": str(state / "bin/stop"),
    }
    scripts = {
        state / "bin/make": _MAKE,
        state / "bin/stop": _STOP,
        folder / ".venv/bin/metadata-registry": _PROGRAM,
        folder / ".venv/bin/python": _PYTHON,
        folder / ".venv/bin/alembic": "#!/bin/sh\n"
        f'exec "@PYTHON@" -m alembic -c "{ROOT}/alembic.ini" "$@"\n',
        # Its connections are its own: from Python 3.13 on it is warned that it leaves some open.
        folder / ".venv/bin/datasette": "#!/bin/sh\n"
        'PYTHONWARNINGS= exec "@PYTHON@" -m datasette "$@"\n',
    }
    if shutil.which("sqlite3") is None:
        scripts[state / "bin/sqlite3"] = _SQLITE
    for path, text in scripts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, value in replaced.items():
            text = text.replace(name, value)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (state.parent / "home").mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    model = folder / MODEL.relative_to(ROOT)
    model.mkdir(parents=True)
    for file in _small_files(MODEL):
        shutil.copy2(file, model / file.name)


def _small_files(directory: Path) -> Iterator[Path]:
    """All but the weights, which nothing here reads."""
    return (file for file in directory.iterdir() if file.is_file() and file.suffix[:5] != ".safe")
