"""Files that settings name: tokens, certificates, settings. Whatever stands at their path, reading
them ends: only regular files are opened, without waiting, and no more than a bound is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from registry.errors import SettingsError

MAX_BYTES = 1 << 20


def read_file(path: Path, what: str, *, hint: str = "") -> tuple[bytes, os.stat_result]:
    """The content of a file, symlinks followed, and its status. `what` names it in messages;
    `hint` says how to make one.

    Raises:
        SettingsError: it is not there, no regular file, larger than 1 MiB, or cannot be read.
    """
    try:
        # A device may do something when it is opened, and a FIFO waits for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise SettingsError(f"The {what} {path} is not a regular file.")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SettingsError(f"The {what} {path} is not a regular file.")
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else errno.EINVAL
        reason = os.strerror(code) if code else str(error)
        if code == errno.EMFILE:
            reason += "; raise the limit of this process (ulimit -n)"
        raise SettingsError(
            f"The {what} {path} cannot be read: {reason}."
            + (f" {hint}" if hint and code == errno.ENOENT else "")
        ) from error
    if len(content) > MAX_BYTES:
        raise SettingsError(f"The {what} {path} has more than {MAX_BYTES} bytes.")
    return content, status


def read_toml_text(path: Path, what: str, *, hint: str = "") -> tuple[str, os.stat_result]:
    """The text of a TOML file, without the byte order mark that some editors put in front.

    Raises:
        SettingsError: as `read_file`, or it is not UTF-8.
    """
    content, status = read_file(path, what, hint=hint)
    try:
        return content.decode("utf-8-sig"), status
    except UnicodeDecodeError as error:
        raise SettingsError(f"The {what} {path} is not TOML: {error}.") from error
