"""What is looked at below a prefix of an etcd: the records of a kind, or everything, byte for byte.

What is left out is named in the log.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from registry.discovery import Kind, Record, RecordKey
from registry.discovery.raw_names import ROOT, split_name
from registry.discovery.record_io import RECORD_MAX_BYTES, RecordReader
from registry.errors import Invalid

K = TypeVar("K")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class View(Protocol[K, V_co]):
    """How keys and values that others wrote are understood."""

    @property
    def prefix(self) -> bytes:
        """What all keys begin with. It ends in a slash."""

    def find_key(self, stored: bytes) -> K | None:
        """What stands under a key is called so, or None: that is no key of this view."""

    def find_value(self, key: K, content: bytes) -> V_co | None:
        """What stands there, or None: it cannot be that."""


class _KindView:
    """The keys of a kind."""

    def __init__(self, kind: Kind, root: bytes, reader: RecordReader) -> None:
        self._kind = kind
        self._root = root
        self._reader = reader
        self.prefix = root + f"{kind}/".encode()

    def find_key(self, stored: bytes) -> RecordKey | None:
        try:
            key = RecordKey.parse(self._kind, stored.removeprefix(self.prefix).decode("ascii"))
            if self._root + str(key).encode() == stored:
                return key
        except (Invalid, ValueError):
            pass
        self._reader.leave_out(_text_of(stored), "its name is not that of a record")
        return None


class RecordView(_KindView):
    """The well-formed records of a kind."""

    def find_value(self, key: RecordKey, content: bytes) -> Record | None:
        return self._reader.find_record(key, str(key), content)


class UnreadView(_KindView):
    """What stands under the keys of a kind, records or not."""

    def find_value(self, key: RecordKey, content: bytes) -> bytes:
        return content


class RawView:
    """Everything below `v1/`."""

    def __init__(self, root: bytes, reader: RecordReader) -> None:
        self._root = root
        self._reader = reader
        self.prefix = root + f"{ROOT}/".encode()

    def find_key(self, stored: bytes) -> str | None:
        try:
            if stored.startswith(self.prefix):
                name = stored.removeprefix(self._root).decode()
                split_name(name)
                return name
        except (Invalid, ValueError):
            pass
        self._reader.leave_out(_text_of(stored), f"its name is none below {ROOT}/")
        return None

    def find_value(self, key: str, content: bytes) -> bytes | None:
        if len(content) <= RECORD_MAX_BYTES:
            return content
        self._reader.leave_out(key, f"it has more than {RECORD_MAX_BYTES} bytes")
        return None


def _text_of(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")
