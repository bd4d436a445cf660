"""What a command says and answers when it fails for a reason that was to be foreseen."""

from __future__ import annotations

import errno
import os
import resource
import sys
from itertools import takewhile

from registry import errors
from registry.cli.streams import OutputFailed
from registry.cli.text import json_line, short_checksum
from registry.core.text import printable, shown
from registry.errors import Conflict, RegistryError, SystemFailure

REFUSED = 1
COULD_NOT_RUN = 2
INTERRUPTED = 130

_refusals = (
    errors.ChecksumMismatch,
    errors.Conflict,
    errors.ContentMissing,
    errors.Forbidden,
    errors.LeaseGone,
    errors.NotFound,
    errors.NotRegistered,
    errors.PathNotAllowed,
    errors.Refused,
    errors.Superseded,
    errors.TooLarge,
    errors.Unauthenticated,
    errors.UnknownOwner,
    errors.Unserveable,
    errors.UploadsPending,
)


Foreseen = RegistryError | OSError | OutputFailed | UnicodeEncodeError | MemoryError
"""What may go wrong without being a mistake of this program."""


def exit_code_of(error: Foreseen) -> int:
    """1 where the registry said no, 2 where the command could not do its work."""
    return REFUSED if isinstance(error, _refusals) else COULD_NOT_RUN


def report(error: Foreseen) -> None:
    """Say on standard error what is wrong: in lines, or with --json as one object in a line."""
    ours = error if isinstance(error, RegistryError) else as_ours(error)
    if wants_json():
        print(json_line(_as_problem(ours)), file=sys.stderr)
        return
    for line in _lines(ours):
        print(printable(line), file=sys.stderr)


def wants_json() -> bool:
    """Whether --json is on the command line. Errors in it are JSON as well, so the words are
    looked at as they are."""
    return "--json" in takewhile(lambda word: word != "--", sys.argv[1:])


def as_ours(error: Foreseen) -> RegistryError:
    """The error of ours that says what another one means to whoever gave the command."""
    match error:
        case RegistryError():
            return error
        case OutputFailed():
            return SystemFailure(f"The output cannot be written: {error}.")
        case UnicodeEncodeError():
            name = shown(error.object[error.start : error.end])
            return SystemFailure(f"{name} in a name or a value is no text in UTF-8.")
        case MemoryError():
            return SystemFailure("There is not enough memory (ulimit -v, or that of the machine).")
        case OSError():
            return SystemFailure(_of_system(error))


def _of_system(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"{error.strerror}: this process may have {most} files open at once. Raise the limit "
            "(ulimit -n)."
        )
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror or error}"


def _as_problem(error: RegistryError) -> dict[str, object]:
    """The parts of an error that are not HTTP's."""
    import msgspec

    from registry.wire.problems import problem_of

    problem: dict[str, object] = msgspec.to_builtins(problem_of(error, 0))
    problem["detail"] = error.detail + _about_directory(error)
    del problem["type"], problem["status"]
    return {"code": error.code, **problem}


def _lines(error: RegistryError) -> list[str]:
    lines = f"error: {error.detail}{_about_directory(error)}".splitlines()
    for conflict in error.conflicts if isinstance(error, Conflict) else ():
        registered, offered = short_checksum(conflict.registered), short_checksum(conflict.offered)
        lines.append(f"  {conflict.key}: registered {registered}, offered {offered}")
        lines += [f"    held by {holder.owner} ({holder.state})" for holder in conflict.holders]
    return lines


def _about_directory(error: RegistryError) -> str:
    """What to say of the working directory, where a relative path in it may be the cause."""
    if not isinstance(error, _of_files):
        return ""
    try:
        os.stat(".")
        os.getcwd()
    except FileNotFoundError:
        return " (The working directory was removed: change to another one.)"
    except OSError as cause:
        return f" (The working directory cannot be used: {cause.strerror}.)"
    return "" if os.access(".", os.X_OK) else " (The working directory may not be entered.)"


_of_files = (
    errors.DatabaseRefused,
    errors.FileUnreadable,
    errors.SettingsError,
    errors.StorageUnavailable,
    errors.SystemFailure,
)
