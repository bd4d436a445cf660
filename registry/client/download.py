"""One file on its way in: where to go on, what to take, and whether it is right at the end."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import BinaryIO

from blake3 import blake3

from registry.client.transport import OnBytes, raw_only
from registry.core.checks import check_checksum, check_size
from registry.errors import ChecksumMismatch, ServiceUnreachable

READ_BYTES = 1 << 20


class Receiver:
    """Writes the bytes of one file to `file`, which is empty or holds the beginning of them.

    A transfer that breaks off is gone on with by the next one, if the service can. What is in the
    file at the end is exactly what checksum and size say; it never has more than `size` bytes.

    Args:
        name: the file as messages call it.

    Raises:
        Invalid: checksum or size is none.
    """

    def __init__(
        self,
        name: str,
        checksum: str,
        size: int,
        file: BinaryIO,
        *,
        on_bytes: OnBytes | None = None,
    ) -> None:
        check_checksum(checksum)
        check_size(size)
        self._name = name
        self._checksum = checksum
        self._size = size
        self._file = file
        self._on_bytes = on_bytes
        self._hasher = blake3()
        self.received = 0

    def resume(self) -> None:
        """Take what the file holds as the beginning, unless that is too much."""
        there = self._file.seek(0, os.SEEK_END)
        if there > self._size:
            self.restart()
            return
        self._file.seek(0)
        while self.received < there and (part := self._file.read(READ_BYTES)):
            self._hasher.update(part)
            self.received += len(part)

    def restart(self) -> None:
        """Forget what came so far."""
        self._file.seek(0)
        self._file.truncate()
        self._hasher = blake3()
        self.received = 0

    @property
    def complete(self) -> bool:
        """Whether as many bytes are here as there are to be. Then there is nothing to ask for."""
        return self.received == self._size

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self._size - self.received

    def headers(self) -> dict[str, str]:
        """What to ask with, so that only missing bytes are sent."""
        if not self.received:
            return {}
        return {"range": f"bytes={self.received}-", "if-range": f'"{self._checksum}"'}

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether an answer that begins like this carries bytes of the file; if not, an error.

        Raises:
            ChecksumMismatch: it carries another file.
            ServiceUnreachable: it carries another part than was asked for, or is compressed.
        """
        if status not in (200, 206):
            return False
        raw_only(headers)
        etag = headers.get("etag", "")
        if etag.startswith('"blake3:') and etag != f'"{self._checksum}"':
            raise self._changed()
        if status == 200:
            self.restart()
        elif not re.match(rf"bytes {self.received}-", headers.get("content-range", "")):
            self.restart()
            raise ServiceUnreachable(f"{self._name} is served from another byte than was asked.")
        return True

    def take(self, chunk: bytes) -> None:
        """Write what came.

        Raises:
            ChecksumMismatch: that is more than there is to be.
        """
        if self.received + len(chunk) > self._size:
            raise self._changed()
        self._hasher.update(chunk)
        self._file.write(chunk)
        self.received += len(chunk)
        if self._on_bytes is not None:
            self._on_bytes(self.received)

    def finish(self) -> None:
        """Check what came.

        Raises:
            ChecksumMismatch: it is not what was wanted; nothing of it is kept.
        """
        if not self.complete or f"blake3:{self._hasher.hexdigest()}" != self._checksum:
            raise self._changed()

    def _changed(self) -> ChecksumMismatch:
        self.restart()
        return ChecksumMismatch(
            f"{self._name} is served with other bytes than were listed: it was registered anew "
            "meanwhile. Try again."
        )
