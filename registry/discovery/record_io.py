"""Records as bytes: how they are written, and what of that which others wrote is taken for one."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from registry.core.text import shown
from registry.discovery import Record, RecordKey, check_content
from registry.errors import Invalid

RECORD_MAX_BYTES = 4 << 20
RECORD_MAX_VALUES = 100_000
"""A record with more commas, which stand between members and elements, takes too long to read:
whoever reads it holds up all else that this process does."""

LISTING_MAX_BYTES = 256 << 20
LISTING_MAX_NAMES = 100_000
NAMED_MAX = 100
"""How many of the things that are left out are named in the log, each once."""

log = logging.getLogger("registry.discovery")


def encode_record(record: Record) -> bytes:
    """What is written for a record.

    Raises:
        Invalid: nobody would read it: it is too large.
    """
    content = msgspec.json.encode(dict(record.content))
    check_size(record.key, content)
    return content


def encode_replacement(old: Record, new: Record) -> bytes:
    """What is written for a record in the place of another.

    Raises:
        Invalid: it has another key, or nobody would read it.
    """
    if new.key != old.key:
        raise Invalid(f"{new.key} cannot take the place of {old.key}.")
    try:
        check_content(new.key, new.content)
    except Invalid as error:
        raise Invalid(f"{new.key} cannot be replaced so: {error}.") from None
    return encode_record(new)


def check_size(name: object, content: bytes) -> None:
    """Raise Invalid if nobody would read it: it is too large."""
    if len(content) > RECORD_MAX_BYTES:
        raise Invalid(f"{name} has {len(content)} bytes; a record has at most {RECORD_MAX_BYTES}.")


class RecordReader:
    """Takes what is well-formed, and names in the log what is left out, each once.

    Args:
        where: the store, as the log calls it.
    """

    def __init__(self, where: object) -> None:
        self._where = where
        self._named: set[str] = set()

    def find_record(self, key: RecordKey, name: str, content: bytes) -> Record | None:
        """The record that stands under a key, or None: it is none. `name` is for the log."""
        try:
            if len(content) > RECORD_MAX_BYTES:
                raise Invalid(f"it has more than {RECORD_MAX_BYTES} bytes")
            if content.count(b",") >= RECORD_MAX_VALUES:
                raise Invalid(f"it has more than {RECORD_MAX_VALUES} values")
            parsed: Any = msgspec.json.decode(content)
            check_content(key, parsed)
        except (ValueError, RecursionError, Invalid) as error:
            self.leave_out(name, str(error))
            return None
        return Record(key, parsed)

    def leave_out(self, name: str, why: str) -> None:
        """Say in the log that something is no record."""
        if name not in self._named and len(self._named) < NAMED_MAX:
            self._named.add(name)
            log.warning("%s in %s is left out: %s", shown(name), self._where, why)


def name_of(record: Record) -> str:
    """What records are sorted by."""
    return record.key.name
