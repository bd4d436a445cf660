"""Keeping an upgrade apart from programs that could not go on after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from registry.core import stopping
from registry.errors import Refused
from registry.store import tables
from registry.store.sqlite.inspect import Found, claim, look, opened

Notify = Callable[[str], None]

OTHERS_LEAVE_S = 30.0
"""How long programs that an upgrade would break are waited for: those of an older version that
has the database open, and is perhaps just being stopped."""

LOOKED_FOR_EVERY_S = 0.1


def wait_until_alone(path: Path, found: Found, wanted: str, notify: Notify) -> Found:
    """Wait until nobody has a database open whose upgrade would break the programs that know only
    the revision that was found; what is in it then."""
    if found.revision is None or not found.revision < tables.MIN_PROGRAM_REVISION <= wanted:
        return found
    began = time.monotonic()
    said = False
    while True:
        stopping.check()
        try:
            with claim(path):
                break
        except FileNotFoundError:
            break
        except Refused:
            now = look(path)
            waited = time.monotonic() - began
            if now.revision == found.revision and waited > OTHERS_LEAVE_S:
                now = _look_when_unlocked(path)
                if now.revision == found.revision:
                    raise _would_break(path, found) from None
            if now.revision != found.revision:
                return now
        if waited > stopping.SAID_AFTER_S and not said:
            said = True
            notify(
                f"Waiting for another process that has {path} open, perhaps a service of an older "
                f"version: it could not go on after the upgrade from {found.revision} to {wanted}."
            )
        time.sleep(LOOKED_FOR_EVERY_S)
    return look(path)


def _look_when_unlocked(path: Path) -> Found:
    """What is in a database when nobody writes: another upgrade may have been going on."""
    with opened(path, "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    return look(path)


def _would_break(path: Path, found: Found) -> Refused:
    return Refused(
        f"{path} has schema revision {found.revision}, and another process has it open, as a "
        "running service of an older version does. It could not write any more after the upgrade. "
        "Stop it first, then start again. Nothing was changed."
    )
