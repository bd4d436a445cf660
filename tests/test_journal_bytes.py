"""The journal in bytes: events say the size of what they are about, and uploads who sent them; a
key's story and what a request did are found by an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.core.events import EventFilter, EventKind, EventOrder
from registry.errors import Conflict
from registry.server.pages.sql import questions
from registry.server.tokens import Role, create
from registry.store.ops.prune import Prune, prune
from registry.store.reads import events
from tests.fleet import World, key, worker
from tests.places import SQLITE, Place, on_both
from tests.support import Server, checksum

pytestmark = on_both

OURS = key(slug="ours")
GROWN = 40_000
"""Events of others in a journal in which something is looked for."""


def told(world: World) -> list[tuple[Any, ...]]:
    return world.place.ask(
        "SELECT kind, size, previous_size, growth, reason FROM journal ORDER BY id"
    )


def test_events_say_the_bytes_of_what_they_are_about(world: World) -> None:
    """S14."""
    first, second = worker(1), worker(2)
    world.attach(first, {OURS: b"four"})
    world.attach(first, {OURS: b"sixsix"})
    world.attach(second, {OURS: b"sixsix"})
    assert isinstance(world.hold(second, {OURS: b"no"}), Conflict)
    world.unregister(second)
    world.unregister(first)
    assert told(world) == [
        ("uploaded", 4, None, 0, None),
        ("attached", None, None, 0, None),
        ("created", 4, None, 4, None),
        ("registered", 4, None, 0, None),
        ("uploaded", 6, None, 0, None),
        ("replaced", 6, 4, 2, None),
        ("uploaded", 6, None, 0, "again"),
        ("attached", None, None, 0, None),
        ("registered", 6, None, 0, None),
        ("uploaded", 2, None, 0, None),
        ("refused", 2, 6, 0, f"held by {first}"),
        ("released", 6, None, 0, "unregistered"),
        ("detached", None, None, 0, "unregistered"),
        ("released", 6, None, 0, "unregistered"),
        ("detached", None, None, 0, "unregistered"),
        ("removed", 6, None, -6, "unregistered"),
    ]
    with world.database.read() as conn:
        refused = EventFilter(kind=EventKind.REFUSED)
        (event,) = events.list_events(conn, refused, EventOrder.OLDEST, None, 9).events
    assert (event.size, event.previous_size) == (2, 6)


def test_many_events_of_one_write_have_their_sizes(world: World) -> None:
    """They are written in another way than a few are."""
    contents = {key(f"{number}.json", "ours"): b"x" * number for number in range(1, 61)}
    world.attach(worker(1), contents)
    world.remove("ours")
    sums = "SELECT kind, SUM(size), SUM(growth) FROM journal WHERE slug = 'ours' GROUP BY kind"
    total = sum(map(len, contents.values()))
    assert sorted(world.place.ask(sums)) == [
        ("created", total, total),
        ("registered", total, 0),
        ("released", total, 0),
        ("removed", total, -total),
    ]


def test_an_upload_is_journalled_with_its_actor_and_request_and_is_answered_for(
    serve: Callable[..., Server], place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    _, token = create(file, Role.ADMIN, name="careless")
    server = serve(token_file=str(file), token=token)
    content = b"nobody registers this"
    url = f"/v1/blobs/{checksum(content)}"
    for request_id, status in (("one", 201), ("two", 200)):
        answer = server.client.put(url, content=content, headers={"X-Request-Id": request_id})
        assert answer.status_code == status
    page = server.client.get("/v1/events?kind=uploaded").json()["events"]
    assert [(e["actor"], e["request_id"], e["size"], e["reason"]) for e in page] == [
        ("careless", "one", len(content), None),
        ("careless", "two", len(content), "again"),
    ]
    (query,) = (query for title, query in questions() if "who uploaded it" in title)
    asked = server.client.post("/v1/sql", json={"query": query}).json()
    (row,) = (dict(zip(asked["columns"], row, strict=True)) for row in asked["rows"])
    assert (row["checksum"], row["size"]) == (checksum(content), len(content))
    assert (row["actor"], row["request_id"]) == ("careless", "two")


def test_events_of_uploads_are_pruned_as_others_are(world: World) -> None:
    world.adopt(journal_retention_ms=1)
    world.upload(b"{}")
    world.clock.now += 10
    world.do(prune, Prune())
    assert told(world) == []


FILL = {
    True: """
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
        {insert} FROM n""",
    False: "{insert} FROM generate_series(1, {count}) n (i)",
}
INSERT = """
    INSERT INTO events (at, kind, owner_id, entry_id, namespace, component, endpoint, instance_id,
        lora_slug, slug, suffix, filename, request_id, size)
    SELECT i, 'released', 1 + i % 500, 1000 + i % 3000, 'n', 'c', 'e', '1', '',
        'm-' || i % 300, '_base', 'f-' || i % 10, 'request-' || i / 20, i
"""


def plan_of(place: Place, query: str) -> str:
    if place.engine == SQLITE:
        return "\n".join(str(row[3]) for row in place.ask(f"EXPLAIN QUERY PLAN {query}"))
    return "\n".join(row[0] for row in place.ask(f"EXPLAIN {query}"))


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "not analyzed"])
def test_a_keys_story_and_what_a_request_did_are_found_by_an_index(
    world: World, analyzed: bool
) -> None:
    """However long the journal is."""
    fill = FILL[world.place.engine == SQLITE].format(insert=INSERT, count=GROWN)
    world.place.ask(fill)
    if analyzed:
        world.place.ask("ANALYZE")
    saved = {title: query.rstrip().rstrip(";") for title, query in questions()}
    looked_for = {
        "What is the story of a file?": ("ix_events_entry_id", "ix_events_removed"),
        "What did one request do?": ("ix_events_request_id",),
        "What was uploaded and is registered by nobody, and who uploaded it?": (
            "ix_events_uploaded",
        ),
    }
    for title, indexes in looked_for.items():
        plan = plan_of(world.place, saved[title])
        for index in indexes:
            assert index in plan, plan
        if "ix_events_uploaded" in indexes:
            continue  # Of many uploads the journal may be the shorter way.
        assert "Seq Scan on events" not in plan, plan
        assert "SCAN v" not in plan.replace("SCAN v USING", ""), plan
        assert "SCAN events" not in plan, plan
    world.place.ask("DELETE FROM events")
