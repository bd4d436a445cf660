"""Take the figures, print the table, keep the results.

python -m benchmarks [ONLY]      ONLY: B1,B3 takes only these
"""

from __future__ import annotations

import sys

from benchmarks import (
    arriving,
    journal,
    living,
    pages,
    reading,
    renewing,
    report,
    running,
    standing,
    writing,
)
from benchmarks.machine import describe
from benchmarks.running import Groups

GROUPS: Groups = {
    "B1": (reading.small_files, 5),
    "B2": (reading.large_files, 5),
    "B3": (writing.one_artifact, 5),
    "B4": (writing.manifests, 5),
    "B5": (writing.unregistering, 5),
    "B6": (reading.beside_writing, 5),
    "B7": (standing.starting, 5),
    "B8": (writing.sweeping, 3),
    "B10": (standing.auditing, 5),
    "B12": (renewing.renewing, 3),
    "B12c": (renewing.beating, 1),
    "B15": (arriving.cold_start, 5),
    "B16": (arriving.attaching, 5),
    "B14": (living.fleet, 1),  # The longest comes last: nothing is begun late because of it.
}
"""Every group of figures that is kept."""

BY_NAME: Groups = {"pages": (pages.showing, 5), "journal": (journal.price, 5)}
"""Those that are taken only when they are asked for."""


def main() -> int:
    """Run what was asked for; 2 if something of it does not exist."""
    groups = {**GROUPS, **BY_NAME}
    wanted = running.asked_for(groups)
    figures = running.take(wanted or GROUPS, groups, running.ready())
    machine = describe()
    running.show(figures, machine)
    if wanted:
        print("results are kept when every figure is taken: make bench")
    else:
        for path in report.keep(figures, machine):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
