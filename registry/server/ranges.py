"""Byte ranges of RFC 9110, section 14: which parts of a file a Range header asks for."""

from __future__ import annotations

import re

RANGES_MAX = 16

_is_bytes = re.compile(r"bytes=(.*)", re.IGNORECASE | re.DOTALL).fullmatch
_is_range = re.compile(r"[ \t]*([0-9]*)-([0-9]*)[ \t]*").fullmatch
_POSITION_MAX = 10**18
"""Beyond the end of every file. What is larger is read as this, however many digits it has."""

Range = tuple[int, int]
"""First byte and the one behind the last."""


def find_ranges(header: str, size: int) -> list[Range] | None:
    """The ranges to send, in the order asked for; an empty list if none can be satisfied.

    None means to send the whole file: the header is malformed or of another unit, names more than
    16 ranges, or ranges that overlap and add up to more than the file.
    """
    match = _is_bytes(header)
    if match is None:
        return None
    specs = match[1].split(",")
    if len(specs) > RANGES_MAX:
        return None
    ranges = []
    for spec in specs:
        if not spec.strip(" \t"):
            continue
        parsed = _is_range(spec)
        if parsed is None:
            return None
        first, last = _position(parsed[1]), _position(parsed[2])
        if first is None and last is None:
            return None
        if first is not None and last is not None and first > last:
            return None
        found = _satisfied(first, last, size)
        if found is not None:
            ranges.append(found)
    if not any(spec.strip(" \t") for spec in specs):
        return None
    if sum(end - start for start, end in ranges) > size:
        return None
    if ranges and not size:
        return None  # A suffix of an empty file is all of it, which no Content-Range can say.
    return ranges


def _position(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return min(int(significant[:19] or "0"), _POSITION_MAX)


def _satisfied(first: int | None, last: int | None, size: int) -> Range | None:
    if first is None:
        return (max(size - (last or 0), 0), size) if last else None
    end = size if last is None else min(last + 1, size)
    return (first, end) if first < size else None
