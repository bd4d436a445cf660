"""The address of a database: the one form that is used, and why another is refused."""

from __future__ import annotations

import os
import re

from sqlalchemy.engine import make_url

from registry.errors import DatabaseRefused

DRIVERS = ("sqlite", "sqlite+pysqlite")
FORM = (
    "Use sqlite:///PATH, relative to the working directory, or with a fourth slash an absolute one"
)


def sqlite_path(url: str) -> str:
    """The path of the file in a `sqlite:///` URL.

    The path is taken as it is written. What would be dropped without a word is refused: options,
    hosts, users, other drivers, SQLite's own `file:` addresses.

    Raises:
        DatabaseRefused: it is another kind of URL, or names no file.
    """
    shown = re.sub(r"//[^/@]*@", "//***@", url)
    if any(ord(character) < 32 or ord(character) == 127 for character in url) or url != url.strip():
        raise DatabaseRefused(
            f"The database URL {shown!r} has a space or a control character at its end or within. "
            "Remove it."
        )
    try:
        parsed = make_url(url)
    except Exception as error:
        raise DatabaseRefused(f"{shown!r} is no database URL. {FORM}.") from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseRefused(
            f"This version keeps its data in SQLite; {shown} is another database. {FORM}."
        )
    if parsed.drivername not in DRIVERS:
        raise DatabaseRefused(f"The driver in {shown} is not used. {FORM}.")
    if parsed.host or parsed.username or parsed.password or parsed.port:
        raise DatabaseRefused(
            f"{shown} names a host or a user, and SQLite is a file. {FORM}: three slashes, or four."
        )
    if "?" in url:
        raise DatabaseRefused(
            f"{shown} has options behind a question mark, and none is used: what can be set has a "
            "setting of its own, like busy_timeout_s. Leave them out; a path with a question mark "
            "in it cannot be written as a URL, so give a symlink to it."
        )
    path = parsed.database or ""
    if not path or path == ":memory:" or path.startswith("file::memory:"):
        raise DatabaseRefused(f"An in-memory database would forget everything on restart. {FORM}.")
    if path.startswith("file:"):
        raise DatabaseRefused(
            f"{shown} is an address in SQLite's own form, which is not used. {FORM}, without file:."
        )
    _check_name(path, shown)
    return path


def _check_name(path: str, shown: str) -> None:
    """Refuse what looks like an encoding or a fragment, and would be part of a new file's name."""
    if os.path.lexists(path):
        return
    folder, name = os.path.split(path)
    suspect = re.search(r"#|%[0-9A-Fa-f]{2}", name)
    if suspect is None and not os.path.isdir(folder):
        suspect = re.search(r"%[0-9A-Fa-f]{2}", folder)
    if suspect is not None:
        raise DatabaseRefused(
            f"{shown} has {suspect[0]} in it, which is taken as it stands, and there is no such "
            "file. Write the path itself, without encodings and fragments."
        )
