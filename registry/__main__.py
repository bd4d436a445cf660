"""`python -m registry` is the command `metadata-registry`."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

from registry.core import standard_descriptors, stopping

YOUNG_MAX = 50_000
"""New objects between two rounds of the garbage collector."""


def main() -> NoReturn:
    """Run the command of this process's arguments and exit."""
    # What is loaded stays. To go through it again and again takes a twentieth of a start.
    gc.set_threshold(YOUNG_MAX, *gc.get_threshold()[1:])
    try:
        standard_descriptors.occupy()
        stopping.catch()  # Before what takes a while to load.
        from registry.cli import main as run_command

        run_command()
    except stopping.Stopped as stopped:
        sys.stderr.write(f"error: {stopped} before it was done\n")
        sys.exit(stopping.exit_code_of(stopped.number))


if __name__ == "__main__":
    main()
