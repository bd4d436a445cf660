"""The `settings` table: what views and every sweeper must agree on, and the sweepers' state.

The running service writes its settings here; whoever sweeps or audits from outside reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select

from registry.core.policy import Policy
from registry.store.engine import Connection
from registry.store.journal import write_service_event
from registry.store.sql import Statement, as_rows, json_rows
from registry.store.tables import settings

PUBLIC_URLS = "public_urls"

_rows = json_rows("rows", name=str, value=str)
_ALL = Statement(select(settings.c.name, settings.c.value))
_DELETE = Statement(delete(settings).where(settings.c.name.in_(select(_rows.c.name))))
_INSERT = Statement(
    insert(settings).from_select(["name", "value"], select(_rows.c.name, _rows.c.value))
)


def read_variables(conn: Connection) -> dict[str, str]:
    """Every row of the table."""
    return dict(conn.run(_ALL))


def write_variables(conn: Connection, values: Mapping[str, object | None]) -> None:
    """Set rows; None deletes one."""
    rows = [[name, None if value is None else str(value)] for name, value in values.items()]
    conn.run(_DELETE, rows=as_rows(rows))
    kept = [(name, value) for name, value in rows if value is not None]
    if kept:
        conn.run(_INSERT, rows=as_rows(kept))


def policy_of(variables: Mapping[str, str]) -> Policy:
    """The policy in the table; what is not there has its default."""
    names = (name for name in Policy.__dataclass_fields__ if name in variables)
    return Policy(**{name: _number(variables[name]) for name in names})


def _number(text: str) -> Any:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def public_urls_in(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Where the service that ran last is reached; empty where that is not known."""
    try:
        return msgspec.json.decode(variables.get(PUBLIC_URLS, "[]"), type=tuple[str, ...])
    except msgspec.DecodeError:
        return ()


@dataclass(frozen=True, slots=True)
class Adoption:
    """The settings of a service that starts, and its version. `public_urls` is where it is reached,
    as far as it knows."""

    policy: Policy
    program_version: str
    public_urls: tuple[str, ...] = ()


def adopt(conn: Connection, now: int, items: Sequence[Adoption]) -> list[None]:
    """Put a running service's settings where views and sweepers look. A change of the program's
    version is journalled."""
    for item in items:
        variables = read_variables(conn)
        values: dict[str, object] = {"program_version": item.program_version, **asdict(item.policy)}
        values[PUBLIC_URLS] = msgspec.json.encode(item.public_urls).decode()
        if any(variables.get(name) != str(value) for name, value in values.items()):
            write_variables(conn, values)
        before = variables.get("program_version")
        if before not in (None, item.program_version):
            reason = f"program {before} to {item.program_version}"
            write_service_event(conn, now, "upgraded", reason)
    return [None] * len(items)
