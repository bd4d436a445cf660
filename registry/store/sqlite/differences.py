"""How a SQLite database's schema differs from one that the revisions made just now.

What SQLite tells of a table names what is different about it. What it does not tell, such as a
CHECK, is found by comparing the words of the two texts. White space does not count.
"""

from __future__ import annotations

import re
import sqlite3
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
"""As many words that are the same are shown before and behind a difference of two texts."""


def find_differences(
    found: sqlite3.Connection, wanted: sqlite3.Connection, *, with_views: bool = True
) -> list[str]:
    """A sentence for each element of a database that is missing, not ours, or another."""
    there, ours = _elements(found), _elements(wanted)
    both = {element for element in there.keys() & ours.keys() if element.kind == "table"}
    differences = [
        sentence
        for element in sorted(there.keys() | ours.keys())
        if element not in both and (with_views or element.kind != "view")
        if (sentence := _difference(element, there.get(element), ours.get(element)))
    ]
    for text in sorted(both):
        facts, our_facts = _facts(found, text.name), _facts(wanted, text.name)
        told = [
            sentence
            for element in sorted(facts.keys() | our_facts.keys())
            if (sentence := _difference(element, facts.get(element), our_facts.get(element)))
        ]
        if not told and there[text] != ours[text]:
            told.append(_changed(text, there[text], ours[text]))
        differences += told
    return differences


def _elements(connection: sqlite3.Connection) -> Elements:
    """The SQL of what is in a schema, but for what SQLite and Alembic keep there for themselves."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND tbl_name <> 'alembic_version'"
    ).fetchall()
    return {Element("", kind, name): _spaced(sql) for kind, name, sql in rows}


def _facts(connection: sqlite3.Connection, table: str) -> Elements:
    """What SQLite tells of a table: its options, its columns and their order, its references."""

    def ask(query: str) -> list[tuple[object, ...]]:
        return connection.execute(query, (table,)).fetchall()

    ((without_rowid, strict),) = ask(
        "SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?"
    )
    options = ["STRICT"] * bool(strict) + ["WITHOUT ROWID"] * bool(without_rowid)
    found = {Element("", "table", table): ", ".join(options) or "plain"}
    names = []
    for name, kind, notnull, default, key in ask(
        'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?) ORDER BY cid'
    ):
        column = f"{kind}{' NOT NULL' if notnull else ''}"
        column += f" DEFAULT {default}" if default is not None else ""
        column += f" PRIMARY KEY {key}" if key else ""
        found[Element(table, "column", str(name))] = column
        names.append(str(name))
    found[Element(table, "order", "columns")] = ", ".join(names)
    for name, parent, target, on_delete in ask(
        'SELECT "from", "table", "to", on_delete FROM pragma_foreign_key_list(?)'
    ):
        reference = f"REFERENCES {parent} ({target}) ON DELETE {on_delete}"
        found[Element(table, "reference", str(name))] = reference
    return found


def _spaced(sql: str) -> str:
    """SQL with one space between words; a parenthesis and a comma are words too."""
    return " ".join(re.sub(r"([(),])", r" \1 ", sql).split())


def _shown(words: list[str]) -> str:
    """Words as a person would write them."""
    return re.sub(r" (?=[,)])|(?<=\() ", "", " ".join(words))


def _difference(element: Element, found: str | None, wanted: str | None) -> str | None:
    if wanted is None:
        return f"{element} is not part of this schema"
    if found is None:
        return f"{element} is missing: {_shown(wanted.split())}"
    if found == wanted:
        return None
    if element.kind == "order" and sorted(found.split(", ")) != sorted(wanted.split(", ")):
        return None  # A missing column is one difference and not two.
    return _changed(element, found, wanted)


def _changed(element: Element, found: str, wanted: str) -> str:
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
    shown = words[first:last]
    return _shown(["..."] * (first > 0) + shown + ["..."] * (last < len(words)))
