"""The descriptors 0, 1 and 2 are there before anything else is opened.

Otherwise the next file that is opened would take the number of one that is closed, and what is
printed would end up in it.
"""

from __future__ import annotations

import os
from contextlib import suppress


def occupy() -> None:
    """Put the null device where one of them is closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):  # Without a null device there is nothing better to be had.
                _open_null(number)


def _open_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)
