"""Text from outside, fit for a message, a terminal or a log."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """A value from outside, fit for a message: printable, quoted and short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def shown_url(text: str) -> str:
    """A URL fit for a message: without user and password, whatever characters these have."""
    scheme, marker, rest = text.partition("://")
    if not marker or "@" in scheme:
        scheme, marker, rest = "", "", text
    has_authority = not rest.startswith("/") and (marker or not text.startswith("file:"))
    return scheme + marker + (rest.rpartition("@")[2] if has_authority else rest)


_has_unseen = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
).search
"""Characters that count as printable and show nothing."""


def printable(text: str) -> str:
    """The text with all spelled out that would not be seen as what it is.

    Those are control characters (C0, C1), marks of direction, what has no width, other spaces than
    the usual one, and half surrogates. What came from elsewhere then cannot move the cursor, colour
    the terminal, break a line or hide a part of itself.
    """
    if is_plain(text):
        return text
    return "".join(c if is_plain(c) else ascii(c)[1:-1] for c in text)


def is_plain(text: str) -> bool:
    """Whether every character of a text is seen as what it is."""
    return text.isprintable() and (text.isascii() or not _has_unseen(text))
