"""Text as HTML: where it may break, what is typed, and which of its words lead to a page.

All of it is escaped: markupsafe escapes HTML, `printable` what would not be seen as what it is.
"""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from registry.core.checks import NAME_PATTERN, SLUG_PATTERN
from registry.core.records import Owner
from registry.core.text import printable
from registry.errors import Invalid
from registry.server.pages.texts import short
from registry.server.pages.urls import owner_url

WORD_MAX = 40
"""Characters of a word that a column makes room for; a longer one breaks anywhere."""

_typed = re.compile("`([^`]*)`")
_long = re.compile(rf"[^/\s]{{{WORD_MAX},}}")
_names = re.compile(
    rf"(?<![\w./-])({NAME_PATTERN}(?:/{NAME_PATTERN}){{2}}/\d{{1,20}}/(?:_base|{SLUG_PATTERN}))"
    r"(?![\w./-])|(blake3:[0-9a-f]{64})"
)


def escaped(value: Any) -> Markup:
    """Text as HTML that shows the same."""
    return escape(printable(str(value)))


def broken(value: Any) -> Markup:
    """A name that may break behind each `/`, and a very long part of it anywhere."""
    parts, end, text = list[Markup](), 0, printable(str(value))
    for match in _long.finditer(text):
        parts += [escape(text[end : match.start()]), Markup('<span class="long">')]
        parts += [escape(match[0]), Markup("</span>")]
        end = match.end()
    # What is made here has no slash between words but those of the end tags.
    parts.append(escape(text[end:]))
    return Markup("").join(
        part if part.startswith("<") else part.replace("/", Markup("/<wbr>")) for part in parts
    )


def coded(text: str) -> Markup:
    """Text in which what is typed stands between backquotes."""
    parts = _typed.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(escaped(part)) if place % 2 else escaped(part)
        for place, part in enumerate(parts)
    )


def linked(text: str) -> Markup:
    """Text in which an owner leads to its page, a checksum is short, and what is typed stands
    between backquotes."""
    parts, end = list[Markup](), 0
    for match in _names.finditer(text):
        parts += [coded(text[end : match.start()]), _linked(match)]
        end = match.end()
    return Markup("").join([*parts, coded(text[end:])])


def _linked(match: re.Match[str]) -> Markup:
    if match[2] is not None:
        return Markup('<code title="{}">{}</code>').format(match[2], short(match[2]))
    try:
        url = owner_url(Owner.parse(match[1]))
    except Invalid:
        return escaped(match[1])
    return Markup('<a href="{}">{}</a>').format(url, broken(match[1]))


HELPERS = (broken, coded, linked)
"""What templates may call."""
