"""Values as people read them."""

from __future__ import annotations

import json
import re

from registry.core.text import is_plain, shown_url


def json_line(answer: object) -> str:
    """An answer as JSON in one line."""
    return json_plain(answer, None)


def json_plain(answer: object, indent: int | None) -> str:
    """An answer as JSON in which all is escaped that `printable` spells out."""
    import msgspec

    try:
        text = msgspec.json.encode(answer).decode()
    except UnicodeEncodeError:  # Half a surrogate, in the name of a file that is no UTF-8.
        apart = (",", ":") if indent is None else None
        text = json.dumps(msgspec.to_builtins(answer), indent=indent, separators=apart)
    else:
        text = text if indent is None else msgspec.json.format(text, indent=indent)
    return "\n".join(map(_escaped, text.split("\n")))


def _escaped(line: str) -> str:
    """A line of JSON. What is not plain in it is part of a string."""
    if is_plain(line):
        return line
    return "".join(c if is_plain(c) else json.dumps(c)[1:-1] for c in line)


def without_password(url: str) -> str:
    """A URL with the password in it blotted out: what is shown may be passed on."""
    url = re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
    if shown_url(url) == url:
        return url
    return re.sub(r"^((?:[\w+.-]+://)?[^:/@]*):.*@", r"\1:***@", url, flags=re.DOTALL)


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
    """`1 file`, `2 files`; `1 copy`, `2 copies`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
