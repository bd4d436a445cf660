"""The views as PostgreSQL spells them.

PostgreSQL keeps no text of a view. What it makes of ours is noted as a digest in the comment of
the view, so that one which somebody has changed is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from registry.store import views

VERSION = views.VERSION
RECORDED_AS = views.RECORDED_AS

SPELLING = views.Spelling(
    now_ms="CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)",
    utc=(
        "to_char(to_timestamp({} / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
    ),
    same="IS NOT DISTINCT FROM",
    items="jsonb_array_elements_text(CAST({} AS JSONB)) j (value)",
)

VIEWS = views.spelled(SPELLING)
"""In the order in which they are made."""

CHANGED = "changed"
"""What stands for a view that somebody has made, or made anew, by hand."""

IS_OURS = """
    SELECT c.relname, CASE
        WHEN obj_description(c.oid, 'pg_class') = 'metadata-registry '
            || md5(pg_get_viewdef(c.oid)) THEN 'ours' ELSE 'changed' END
    FROM pg_class c
    WHERE c.relkind = 'v' AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
"""
"""Every view of the schema, and whether it is as a program has made it."""


def are_outdated(found: Mapping[str, str], recorded: str | None) -> bool:
    """Whether a program replaces what is there: older views, or views of this version that
    somebody has changed. `found` is what IS_OURS has found."""
    version = views.version_of(recorded)
    if version != VERSION:
        return version < VERSION
    return any(found.get(name, CHANGED) == CHANGED for name in VIEWS)


def dropping() -> Iterator[str]:
    """The statements that take the views away, for a change of what they speak of."""
    return views.dropping(VIEWS)


def replacing(wanted: Mapping[str, str], version: int | None) -> Iterator[str]:
    """The statements that put views in the place of those that are there."""
    yield from views.replacing(VIEWS, wanted, version)
    for name in wanted:
        digest = f"md5(pg_get_viewdef(CAST('{name}' AS regclass)))"
        comment = f"quote_literal('metadata-registry ' || {digest})"
        yield f"DO $$ BEGIN EXECUTE 'COMMENT ON VIEW {name} IS ' || {comment}; END $$"
