"""The standard streams of a command: there, in an encoding that takes everything, and harmless.

Whatever is printed on a terminal goes through `Screen`, whoever prints it: our tables and errors,
log lines, usage errors, warnings and tracebacks. So no text from elsewhere can move the cursor,
colour the terminal or hide a part of itself.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast

from registry.core.standard_descriptors import occupy
from registry.core.text import printable

_MODES = ("r", "w", "w")
_NAMES = ("stdin", "stdout", "stderr")


class OutputFailed(Exception):
    """What a command prints cannot be written where it should go: a full disk, say."""


class ReaderGone(OutputFailed):
    """Whoever read the output has enough of it."""


class Screen:
    """A text stream that spells out, on a terminal, all that is not plain text.

    A failure to write is OutputFailed; on standard error it is ignored, since there is nowhere
    left to say so. `stream` is what is behind it, for
    a program that draws.
    """

    def __init__(self, stream: TextIO, *, is_quiet: bool = False) -> None:
        self.stream = stream
        self._is_quiet = is_quiet
        self._is_terminal = stream.isatty()

    def write(self, text: str) -> int:
        """Write text; lines end with a newline and nothing else."""
        shown = text
        if self._is_terminal and not text.isprintable():
            shown = "\n".join(map(printable, text.split("\n")))
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        self._try(self.stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            if self._is_quiet:
                return
            if isinstance(error, BrokenPipeError):
                raise ReaderGone from None
            raise OutputFailed(error.strerror or str(error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def secure() -> None:
    """Make the standard streams of this process fit for every command. Those that are closed
    become the null device."""
    occupy()
    for number, (name, mode) in enumerate(zip(_NAMES, _MODES, strict=True)):
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, Screen(sys.stdout))
    sys.stderr = cast(TextIO, Screen(sys.stderr, is_quiet=True))


def drop_output() -> None:
    """Let what is left of the output go: nobody can take it, and it must not fail again at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def unscreened(stream: TextIO) -> TextIO:
    """What is behind a stream, for Rich, which draws with codes of its own. What it is given
    must be printable."""
    return stream.stream if isinstance(stream, Screen) else stream
