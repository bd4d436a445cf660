"""Objects that belong to one process: a forked child has them too, with its parent's connections
and locks, and without its threads.

A database that the parent has open is a special case. SQLite keeps in memory which locks the
process has on a file, and a child believes that it has those of its parent: neither may it use the
connections, nor close them, nor open the file once more.
"""

from __future__ import annotations

import os
import weakref

from registry.errors import WrongProcess

_FORK_FIRST = "make it after the fork, or start the process with spawn instead"


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
                f"It belongs to that one: {_FORK_FIRST}."
            )


_holders: weakref.WeakKeyDictionary[object, str | None] = weakref.WeakKeyDictionary()
_inherited: set[tuple[int, int]] = set()


def hold_file(holder: object, path: str) -> None:
    """Note that an object has a database file open, with all that it refers to.

    Raises:
        WrongProcess: the parent of this process had it open when this one was forked.
    """
    check_file(path)
    hold(holder, path)


def hold(holder: object, path: str | None = None) -> None:
    """Note that an object has connections of this process, which a child must not end."""
    import ctypes  # noqa: F401 - not for the first time in a child: its lock may be held there

    _holders[holder] = path


def let_go(holder: object) -> None:
    """Note that an object has nothing open any more."""
    _holders.pop(holder, None)


def check_file(path: str) -> None:
    """Raise WrongProcess if the parent had this file open when this process was forked."""
    if _inherited and _file_id(path) in _inherited:
        raise WrongProcess(
            f"The process of which this one was forked had {path} open, and SQLite cannot open it "
            f"here as well. Open a registry in the child only: {_FORK_FIRST}."
        )


def _file_id(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _forked() -> None:
    """In a child: keep what it inherited from ever being closed, also when it ends."""
    if not _holders:
        return
    import ctypes

    for holder, path in list(_holders.items()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
        if path is not None:
            _inherited.add(_file_id(path))
    _holders.clear()


os.register_at_fork(after_in_child=_forked)
