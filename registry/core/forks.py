"""Objects that belong to one process: a forked child has them too, with its parent's connections,
and without its threads."""

from __future__ import annotations

import os

from registry.errors import WrongProcess


class Birthplace:
    """The process in which something was made."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise WrongProcess in another process."""
        if not self.is_here:
            raise WrongProcess(
                f"This {self._what} was made in process {self._pid}, of which this one was forked. "
                "It belongs to that one: make another here, or fork before it is made."
            )
