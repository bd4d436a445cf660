"""The header of a log's index: it changes with every commit, whichever process makes it.

SQLite maps the index of the write-ahead log into the memory of all processes that have a database
open, and begins every read with a look at the header (https://sqlite.org/walformat.html, section
2.1: two copies of a count of changes, the log's length, and the checksums and salts of what is in
it). A commit is on the disk before it is in the header. Whoever finds the header as it was before
a read knows that the read would find the same again, and needs neither a lock nor SQLite for that.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from registry.store.sqlite.in_use import SHM_SUFFIX

HEADER_BYTES = 96
MAPS = Path("/proc/self/maps")

Header = ctypes.Array[ctypes.c_char]
"""Its `raw` is what the memory holds at that moment."""


def find_header(real_path: str) -> Header | None:
    """The header of a database, at a path without symlinks, that a connection of this process has
    read from. It is there until that connection is closed, and must not be looked at afterwards.

    None: the system does not tell where it is.
    """
    name = real_path + SHM_SUFFIX
    try:
        lines = MAPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        # 7f1c2c000000-7f1c2c008000 rw-s 00000000 fe:00 5775637      /srv/registry.db-shm
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name and int(fields[2], 16) == 0:
            address = int(fields[0].partition("-")[0], 16)
            return (ctypes.c_char * HEADER_BYTES).from_address(address)
    return None
