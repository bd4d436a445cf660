"""Files that settings name: tokens, certificates, settings. Whatever stands at their path, reading
them ends: only regular files are opened, without waiting, and no more than a bound is read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from registry.core.regular import open_regular, read_at_most
from registry.errors import SettingsError

MAX_BYTES = 1 << 20

_REASONS = {
    errno.ENXIO: "it is not a regular file",
    errno.EMFILE: "too many files are open; raise the limit of this process (ulimit -n)",
}


def read_file(
    path: Path, what: str, *, hint: str = "", max_bytes: int = MAX_BYTES
) -> tuple[bytes, os.stat_result]:
    """The content of a file, symlinks followed, and its status. `what` names it in messages;
    `hint` says how to make one.

    Raises:
        SettingsError: it is not there, no regular file, larger than `max_bytes`, or cannot be read.
    """
    try:
        descriptor = open_regular(path, follow=True)
        try:
            return read_at_most(descriptor, max_bytes), os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        reason = _REASONS.get(code or 0) or (os.strerror(code) if code else str(error))
        if code == errno.EFBIG:
            reason = f"it has more than {max_bytes} bytes"
        if hint and code == errno.ENOENT:
            reason += f". {hint.removesuffix('.')}"
        raise SettingsError(f"The {what} {path} cannot be read: {reason}.") from error


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
