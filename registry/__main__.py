"""`python -m registry` is the command `metadata-registry`."""

from __future__ import annotations

import sys
from typing import NoReturn

from registry.core import standard_descriptors, stopping


def main() -> NoReturn:
    """Run the command of this process's arguments and exit."""
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
