"""Values as people read them."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters and the like spelled out.

    What came from elsewhere then cannot move the cursor, colour the terminal or break a line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def short_checksum(checksum: str) -> str:
    """A checksum as people compare it: 12 of its 64 digits."""
    return checksum[: len("blake3:") + 12]


def shown_size(size: int) -> str:
    """A size in decimal units: `466.2 kB`."""
    if size < 1000:
        return f"{size} B"
    if size < 999_950:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 999_950_000 else f"{size / 1e9:.1f} GB"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
