"""What a command says and answers when it fails for a reason that was to be foreseen."""

from __future__ import annotations

import sys

from registry import errors
from registry.cli.text import printable, short_checksum
from registry.errors import Conflict, RegistryError

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


def exit_code_of(error: RegistryError | OSError) -> int:
    """1 where the registry said no, 2 where the command could not do its work."""
    return REFUSED if isinstance(error, _refusals) else COULD_NOT_RUN


def report(error: RegistryError | OSError) -> None:
    """Say on standard error what is wrong."""
    for line in _lines(error):
        print(printable(line), file=sys.stderr)


def _lines(error: RegistryError | OSError) -> list[str]:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return [f"error: {where}{error.strerror or error}"]
    lines = f"error: {error.detail}".splitlines()
    for conflict in error.conflicts if isinstance(error, Conflict) else ():
        registered, offered = short_checksum(conflict.registered), short_checksum(conflict.offered)
        lines.append(f"  {conflict.key}: registered {registered}, offered {offered}")
        lines += [f"    held by {holder.owner} ({holder.state})" for holder in conflict.holders]
    return lines
