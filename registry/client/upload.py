"""One file on its way out: its bytes, as often as a call is repeated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from registry.client.transport import CHUNK_BYTES, OnBytes
from registry.core.hashing import looking_at
from registry.core.regular import open_regular
from registry.errors import FileUnreadable


class UploadBody:
    """Content to upload, as often as it takes.

    Raises:
        FileUnreadable: the file cannot be read.
        Busy: it cannot be looked at now.
    """

    def __init__(self, content: bytes | str | os.PathLike[str], on_bytes: OnBytes | None) -> None:
        self._content = content if isinstance(content, bytes) else Path(content)
        self._on_bytes = on_bytes
        self.size = len(content) if isinstance(content, bytes) else _size_of(Path(content))

    def chunks(self) -> Iterator[bytes]:
        """The content from its beginning, exactly `size` bytes.

        Raises:
            FileUnreadable: the file became shorter or longer, or cannot be read.
            Busy: it cannot be looked at now.
        """
        sent = 0
        for chunk in self._read():
            sent += len(chunk)
            if sent > self.size:
                break
            yield chunk
            if self._on_bytes is not None:
                self._on_bytes(sent)
        if sent != self.size:
            raise FileUnreadable(f"{self._content!s} changed while it was uploaded. Try again.")

    def _read(self) -> Iterator[bytes]:
        if isinstance(self._content, bytes):
            for start in range(0, self.size, CHUNK_BYTES):
                yield self._content[start : start + CHUNK_BYTES]
            return
        with _opened_file(self._content) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _size_of(path: Path) -> int:
    with _opened_file(path) as file:
        return os.fstat(file.fileno()).st_size


@contextmanager
def _opened_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file; opening anything else might take for ever."""
    with (
        looking_at(str(path)),
        os.fdopen(open_regular(path, follow=True), "rb") as file,
    ):
        yield file
