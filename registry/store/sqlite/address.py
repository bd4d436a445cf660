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

    What would be dropped without a word is refused: options, hosts, users, fragments, other
    drivers, SQLite's own `file:` addresses. `%3F` in the path is a question mark.

    Raises:
        DatabaseRefused: it is another kind of URL, or names no file.
    """
    shown = re.sub(r"^([\w+]*:?/*).*@", r"\1***@", url)
    _check_characters(url, shown)
    try:
        parsed = make_url(url)
    except Exception as error:
        raise DatabaseRefused(f"{shown!r} is no database URL. {FORM}.") from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseRefused(
            f"The registry keeps its data in SQLite or PostgreSQL; {shown} is another database. "
            f"{FORM}; or postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
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
            "setting of its own, like busy_timeout_s. Leave them out; a question mark in a path is "
            "written %3F."
        )
    path = parsed.database or ""
    if not path or path == ":memory:" or path.startswith("file::memory:"):
        raise DatabaseRefused(f"An in-memory database would forget everything on restart. {FORM}.")
    if path.startswith("file:"):
        raise DatabaseRefused(
            f"{shown} is an address in SQLite's own form, which is not used. {FORM}, without file:."
        )
    _check_characters(path, shown)
    if "#" in os.path.basename(path) and not os.path.lexists(path):
        raise DatabaseRefused(
            f"{shown} has a # in the file's name, and there is no such file. Leave it out: no "
            "fragment is used."
        )
    return path


def _check_characters(text: str, shown: str) -> None:
    if text != text.strip() or any(ord(each) < 32 or ord(each) == 127 for each in text):
        raise DatabaseRefused(
            f"The database URL {shown!r} has a control character, or a space at its end. Remove it."
        )
