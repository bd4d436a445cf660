"""What a command needs of its surroundings, and what it makes of variables that are not its own."""

from __future__ import annotations

import os
import re
import resource
import sys
from contextlib import suppress

from registry.cli.output import print_note
from registry.config import find_strangers
from registry.errors import SystemFailure

_is_known = re.compile(
    "REGISTRY_(AUTH|CATALOG|COMPATIBILITY|HEALTH|HTTP|MIDDLEWARE|NOTIFICATIONS|POLICY|PROXY|REDIS"
    "|STORAGE|VALIDATION)(_.*)?"
).fullmatch
"""Variables of container tools and of the container registry `distribution`."""


FILES_MIN = 32
"""Open files that every command can do its work with, the service apart."""


def use_utf8() -> None:
    """Go on as a process whose names and texts are UTF-8, as those of the registry are, if the
    locale's are not."""
    if sys.getfilesystemencoding() != "utf-8":
        output = getattr(sys.stdout, "encoding", None) or "ascii"
        os.environ.setdefault("PYTHONIOENCODING", output)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def check_open_files() -> None:
    """Raise SystemFailure where so few files may be open at once that libraries would fail, each
    with another message. A limit that this user may raise is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_MIN:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MIN, max(hard, FILES_MIN)))
            return
        raise SystemFailure(
            f"This process may have {soft} files open at once; a command needs {FILES_MIN}. Raise "
            "the limit (ulimit -n)."
        )


def warn_of_strangers(*, known_too: bool) -> None:
    """Name the variables that look like ours and are not, on standard error.

    `known_too`: also those that are known to belong to other programs.

    Raises:
        SettingsError: one is most likely a slip.
    """
    sentence = strangers_named(known_too=known_too)
    if sentence is not None:
        print_note(f"warning: {sentence}")


def strangers_named(*, known_too: bool) -> str | None:
    """A sentence that names them, or None: there are none."""
    strangers = [
        each for each in find_strangers(os.environ) if known_too or _is_known(each) is None
    ]
    if not strangers:
        return None
    return f"not used, since they are no settings of metadata-registry: {', '.join(strangers)}"
