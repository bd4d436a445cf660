"""Commands of the program, run in the process of the test: a fresh one takes half a second."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from registry import cli


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: object, **variables: str) -> Done:
    """Run the program with arguments; keywords are variables."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        patch("sys.argv", ["metadata-registry", *map(str, arguments)]),
        patch.dict(os.environ, variables),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            code = cli._run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Done(code, output.getvalue(), errors.getvalue())
