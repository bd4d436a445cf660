"""How a SQLite database's schema differs from one that the revisions made just now.

What SQLite tells of a table names what is different about it. What it does not tell, such as a
CHECK, is found by comparing the words of the two texts. White space does not count.
"""

from __future__ import annotations

import sqlite3

from registry.store.schema_elements import Element, Elements, changed, difference_of, spaced


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
        if (sentence := difference_of(element, there.get(element), ours.get(element)))
    ]
    for text in sorted(both):
        facts, our_facts = _facts(found, text.name), _facts(wanted, text.name)
        told = [
            sentence
            for element in sorted(facts.keys() | our_facts.keys())
            if (sentence := difference_of(element, facts.get(element), our_facts.get(element)))
        ]
        if not told and there[text] != ours[text]:
            told.append(changed(text, there[text], ours[text]))
        differences += told
    return differences


def _elements(connection: sqlite3.Connection) -> Elements:
    """The SQL of what is in a schema, but for what SQLite and Alembic keep there for themselves."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND tbl_name <> 'alembic_version'"
    ).fetchall()
    return {Element("", kind, name): spaced(sql) for kind, name, sql in rows}


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
