"""Keeping a change of the schema apart from services that could not go on after it.

A service is known by the name that its connections have on the server. One that was given another
name in its URL is not seen, nor is one of another user, unless this one may see all (the role
pg_read_all_stats).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from registry.core import stopping
from registry.errors import Refused
from registry.store import tables
from registry.store.compatibility import SchemaState
from registry.store.postgresql.address import APPLICATION_NAME, place_of
from registry.store.postgresql.inspect import look, opened

OTHERS_LEAVE_S = 30.0
"""How long services that an upgrade would break are waited for: those of an older version, which
are perhaps just being stopped."""

LOOKED_FOR_EVERY_S = 0.2

_SERVICES = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = %s
"""


def wait_until_alone(
    url: str, found: SchemaState, wanted: str, notify: Callable[[str], None]
) -> None:
    """Wait until no service has a database open whose upgrade would break the programs that know
    only the revision that was found.

    Raises:
        Refused: some still do after OTHERS_LEAVE_S.
    """
    if found.revision is None or not found.revision < tables.MIN_PROGRAM_REVISION <= wanted:
        return
    began, said = time.monotonic(), False
    while services := count_services(url):
        waited = time.monotonic() - began
        if look(url).revision != found.revision:
            return
        if waited > OTHERS_LEAVE_S:
            raise Refused(
                f"{place_of(url)} has schema revision {found.revision}, and services of an older "
                f"version have {services} connections to it. They could not write any more after "
                "the upgrade. Stop them first, then start again. Nothing was changed."
            )
        if waited > stopping.SAID_AFTER_S and not said:
            said = True
            notify(
                f"Waiting for services that have {place_of(url)} open, perhaps of an older "
                f"version: they could not go on after the upgrade from {found.revision} to "
                f"{wanted}."
            )
        stopping.check()
        time.sleep(LOOKED_FOR_EVERY_S)


def refuse_services(url: str) -> None:
    """Raise Refused if a service has a database open."""
    if services := count_services(url):
        raise Refused(
            f"Services have {services} connections to {place_of(url)}. Nothing was changed. Stop "
            "them first, then do this again."
        )


def count_services(url: str) -> int:
    """How many connections of services a database has."""
    with opened(url) as connection:
        ((count,),) = connection.execute(_SERVICES, (APPLICATION_NAME,)).fetchall()
        return int(count)
