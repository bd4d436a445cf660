"""The named parts of a schema, and how those of two databases differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """A named part of a schema. `table` is the one it belongs to, if it does."""

    table: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.table}.{self.name}" if self.table else f"{self.kind} {self.name}"


Elements = dict[Element, str]
"""What each element is: its SQL, or what else tells it."""

WORDS_AROUND = 6
WORDS_MAX = 40
"""As many words that are the same are shown before and behind a difference of two texts."""


def difference_of(element: Element, found: str | None, wanted: str | None) -> str | None:
    """A sentence if an element is missing, not ours, or another."""
    if wanted is None:
        return f"{element} is not part of this schema"
    if found is None:
        return f"{element} is missing: {_shown(wanted.split())}"
    if found == wanted:
        return None
    if element.kind == "order" and sorted(found.split(", ")) != sorted(wanted.split(", ")):
        return None  # A missing column is one difference and not two.
    return changed(element, found, wanted)


def changed(element: Element, found: str, wanted: str) -> str:
    """What is another, without what two long texts have in common."""
    here, ours = found.split(), wanted.split()
    begin = _equal_words(here, ours)
    end = _equal_words(here[begin:][::-1], ours[begin:][::-1])
    return f"{element} is {_part(here, begin, end)!r} instead of {_part(ours, begin, end)!r}"


def _equal_words(one: list[str], other: list[str]) -> int:
    """How many words are the same before the first that differs."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _part(words: list[str], begin: int, end: int) -> str:
    first, last = max(0, begin - WORDS_AROUND), min(len(words), len(words) - end + WORDS_AROUND)
    shown = words[first : min(last, first + WORDS_MAX)]
    is_cut = first + len(shown) < len(words)
    return _shown(["..."] * (first > 0) + shown + ["..."] * is_cut)


def spaced(sql: str) -> str:
    """SQL with one space between words; a parenthesis and a comma are words too."""
    return " ".join(re.sub(r"([(),])", r" \1 ", sql).split())


def _shown(words: list[str]) -> str:
    """Words as a person would write them."""
    return re.sub(r" (?=[,)])|(?<=\() ", "", " ".join(words))
