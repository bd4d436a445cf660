"""Byte ranges of RFC 9110, section 14: which parts of a file a Range header asks for."""

from __future__ import annotations

import re

RANGES_MAX = 16

_is_bytes = re.compile(r"bytes=(.*)", re.IGNORECASE | re.DOTALL).fullmatch
_is_range = re.compile(r"[ \t]*(\d{0,18})-(\d{0,18})[ \t]*").fullmatch

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
        if parsed is None or not (parsed[1] or parsed[2]):
            return None
        if parsed[1] and parsed[2] and int(parsed[1]) > int(parsed[2]):
            return None
        found = _satisfied(parsed[1], parsed[2], size)
        if found is not None:
            ranges.append(found)
    if not any(spec.strip(" \t") for spec in specs):
        return None
    if sum(end - start for start, end in ranges) > size:
        return None
    return ranges


def _satisfied(first: str, last: str, size: int) -> Range | None:
    if not first:
        start = max(size - int(last), 0)
        return (start, size) if start < size and int(last) else None
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    return (start, end) if start < size else None
