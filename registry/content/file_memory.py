"""What is known of files from the last time that they were hashed (S12)."""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from typing import NamedTuple

from registry.core.hashing import FileContent
from registry.core.memo import SLOT_BYTES, Memo

SEEN_BYTES = 32 << 20
PROOFS_BYTES = 16 << 20
"""Memory for what is known of files. A path may have four kilobytes; usual ones make this some
60,000 files and 30,000 proofs."""
WRONG_FOR_S = 30.0
"""How long a file that was wrong is taken to be so without another look, while it looks the same:
who writes through `mmap` may put it right without changing a time of it."""
RIGHT_FOR_S = 1.0
"""How long a file that somebody found drifted is taken to be right since it was hashed here."""

Proof = tuple[str | int, ...]


class Seen(NamedTuple):
    """A file with an identity that can be trusted, and what it held: None is not known, but it
    was something else than it should have been."""

    identity: str
    checksum: str | None
    at: float


class FileMemory:
    """What files were found to hold, by path: those looked at last, as many as fit into 32 MiB.

    Only identities that can be trusted are remembered, so that a file is hashed once for each
    time it changes, whether it has the right bytes or the wrong ones.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._seen_bytes = 0
        self.proofs: Memo[str, Proof] = Memo(PROOFS_BYTES)
        """Of files that may be looked at without waiting: the content that one was found to hold,
        and the parts of the identity that it had, in a form that is quick to compare."""

    def find(self, path: str, identity: str) -> Seen | None:
        """What a file was found to hold, if it had this identity."""
        seen = self._seen.get(path)
        return seen if seen is not None and seen.identity == identity else None

    def is_wrong(self, path: str, identity: str, checksum: str) -> bool:
        """Whether a file was lately found to hold something else than this content."""
        seen = self.find(path, identity)
        return (
            seen is not None
            and seen.checksum != checksum
            and time.monotonic() - seen.at < WRONG_FOR_S
        )

    def is_right(self, path: str, identity: str, checksum: str, *, was_drifted: bool) -> bool:
        """Whether a file is known to hold this content. What was put down as drifted is only
        right if that was seen since."""
        seen = self.find(path, identity)
        if seen is None or seen.checksum != checksum:
            return False
        return not was_drifted or time.monotonic() - seen.at < RIGHT_FOR_S

    def prove(self, path: str, checksum: str, status: os.stat_result) -> None:
        """Remember that a file was found to hold a content, until it is hashed again."""
        self.proofs.keep(path, proof_of(checksum, status))

    def forget(self, path: str) -> None:
        """Believe nothing of a file before it is hashed again."""
        self._keep(path, None, None)

    def note(self, found: FileContent) -> None:
        """Remember what a file held."""
        self._keep(found.path, found.identity, found.checksum)

    def note_wrong(self, path: str, identity: str | None) -> None:
        """Remember that a file did not hold what it should have. None: it is so young that it may
        be changed and look the same; it is hashed at every read."""
        self._keep(path, identity, None)

    def _keep(self, path: str, identity: str | None, checksum: str | None) -> None:
        self.proofs.pop(path, None)
        before = self._seen.pop(path, None)
        if before is not None:
            self._seen_bytes -= _size_of(path, before)
        if identity is None:
            return
        self._seen[path] = now = Seen(identity, checksum, time.monotonic())
        self._seen_bytes += _size_of(path, now)
        while self._seen_bytes > SEEN_BYTES:
            self._seen_bytes -= _size_of(*self._seen.popitem(last=False))


def _size_of(path: str, seen: Seen) -> int:
    return SLOT_BYTES + sum(map(sys.getsizeof, (path, seen, *seen)))


def proof_of(checksum: str, status: os.stat_result) -> Proof:
    """What a file with a content looks like, from a look at it."""
    return (
        checksum,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_ino,
        status.st_dev,
    )
