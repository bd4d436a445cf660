"""Revision 0003: events of older databases get ids, and are found as before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from registry.core.events import Event, EventFilter, EventOrder
from registry.core.records import Owner
from registry.errors import Conflict
from registry.store.journal import find_unresolved
from registry.store.opening import migrations_of
from registry.store.ops.prune import Prune, prune
from registry.store.reads import events, queries
from registry.store.reads.verify import verify
from tests.fleet import World, key, worker
from tests.places import on_both

pytestmark = on_both

HELD, GONE, AGAIN = key(slug="held"), key(slug="gone"), key(slug="again")
STAYS, LEAVES, REFUSED = worker(1), worker(2), worker(3)


def lived_in(world: World) -> None:
    """What there is, what was and is again, what is gone, and somebody who was refused."""
    world.attach(STAYS, {HELD: b"{}", AGAIN: b"[]"})
    world.attach(LEAVES, {GONE: b"gone", HELD: b"{}"})
    assert isinstance(world.hold(REFUSED, {HELD: b"other"}), Conflict)
    world.remove("again")
    world.attach(STAYS, {AGAIN: b"other"})
    world.unregister(LEAVES)


def story(world: World) -> dict[str, Any]:
    """What people are told of the journal."""
    filters = {
        "all": EventFilter(),
        **{str(who): EventFilter(owner=who) for who in (STAYS, LEAVES, REFUSED, worker(4))},
        **{each.slug: EventFilter(slug=each.slug) for each in (HELD, GONE, AGAIN)},
        "both": EventFilter(owner=LEAVES, slug=HELD.slug),
    }
    with world.database.read() as conn:
        pages = {
            name: events.list_events(conn, wanted, EventOrder.OLDEST, None, 100).events
            for name, wanted in filters.items()
        }
        last = {str(each): queries.explain(conn, each).events for each in (HELD, GONE, AGAIN)}
        found = find_unresolved(conn, conn.now)
    return {"pages": pages, "last": last, "refused": found}


def without_upgrades(told: dict[str, Any]) -> dict[str, Any]:
    pages = {
        name: tuple(e for e in page if e.kind != "upgraded") for name, page in told["pages"].items()
    }
    return {**told, "pages": pages}


def without_bytes(told: dict[str, Any]) -> dict[str, Any]:
    """As the story is told after the revisions before 0005: they know neither sizes nor uploads."""

    def forgotten(page: Iterable[Event]) -> tuple[Event, ...]:
        return tuple(
            replace(each, size=None, previous_size=None) for each in page if each.kind != "uploaded"
        )

    pages = {name: forgotten(page) for name, page in told["pages"].items()}
    last = {name: forgotten(page) for name, page in told["last"].items()}
    return {**told, "pages": pages, "last": last}


def migrate(world: World) -> None:
    """Down to the revision before, and up again."""
    world.database.close()
    migrations = migrations_of(world.url)
    migrations.downgrade(world.url, "0002")
    migrations.upgrade(world.url)
    world.open()


def last_event_id(world: World) -> int:
    ((last,),) = (rest for name, *rest in world.place.dump()["ids"] if name == "events")
    assert isinstance(last, int)
    return last


def test_every_event_is_found_by_owner_and_by_key_after_the_upgrade(world: World) -> None:
    lived_in(world)
    before = story(world)
    assert all(before["pages"][str(who)] for who in (STAYS, LEAVES, REFUSED))
    assert all(before["last"].values())
    assert len(before["refused"]) == 1
    migrate(world)
    assert without_upgrades(story(world)) == without_bytes(before)
    assert [each.kind for each in verify(world.database)] == []
    world.unregister(REFUSED)


def test_ids_go_on_where_they_were_even_if_the_last_events_are_gone(world: World) -> None:
    lived_in(world)
    last = last_event_id(world)
    with world.database.write() as conn:
        conn.run_text("DELETE FROM events WHERE id > :last", {"last": last - 2})
    migrate(world)
    with world.database.read() as conn:
        ((upgraded,),) = conn.run_text("SELECT id FROM events WHERE kind = 'upgraded'")
    assert upgraded == last + 1
    world.unregister(REFUSED)


def test_what_was_gone_before_the_upgrade_keeps_one_id_for_each_name(world: World) -> None:
    lived_in(world)
    migrate(world)
    with world.database.read() as conn:
        rows = conn.run_text(
            "SELECT slug, COUNT(DISTINCT entry_id), MIN(entry_id) < 0, MAX(entry_id) < 0 "
            "FROM events WHERE slug IS NOT NULL GROUP BY slug ORDER BY slug"
        )
        who = conn.run_text(
            "SELECT COUNT(*) FROM events WHERE owner_id IS NULL AND slug IS NOT NULL"
        )
    assert rows == [("again", 1, 0, 0), ("gone", 1, 1, 1), ("held", 1, 0, 0)]
    assert who == [(1,)]  # The refusal.
    world.unregister(REFUSED)


def test_the_journal_is_pruned_as_before_after_the_upgrade(world: World) -> None:
    world.adopt(journal_retention_ms=1)
    lived_in(world)
    world.unregister(REFUSED)
    migrate(world)
    world.clock.now += 10
    world.do(prune, Prune())
    with world.database.read() as conn:
        kept = conn.run_text("SELECT kind, slug FROM events WHERE slug IS NOT NULL ORDER BY id")
    assert kept == [("registered", "held"), ("registered", "again")]


def test_an_owner_that_was_forgotten_is_found_by_its_name(world: World) -> None:
    """Its tombstone is gone, and it came back under another id."""
    lived_in(world)
    world.adopt(tombstone_retention_ms=1)
    world.clock.now += 10
    world.do(prune, Prune())
    world.attach(LEAVES, {GONE: b"back"})
    with world.database.read() as conn:
        found = events.list_events(
            conn, EventFilter(owner=LEAVES), EventOrder.OLDEST, None, 100
        ).events
        ids = conn.run_text("SELECT DISTINCT owner_id FROM events WHERE instance_id = '2'")
        last = queries.explain(conn, GONE).events
    assert len(ids) == 2
    kinds = [each.kind for each in found]
    assert kinds.count("attached") == 2
    assert "detached" in kinds
    assert {type(each.owner) for each in found} == {Owner}
    assert [each.kind for each in last][:2] == ["registered", "created"]
    assert [each.kind for each in last].count("removed") == 1
    world.unregister(REFUSED)


def test_a_program_that_knows_no_ids_writes_nothing(world: World) -> None:
    """It may still run when another has upgraded its database."""
    with (
        pytest.raises(Exception, match="ck_events_entry"),
        world.database.write() as c,
    ):
        c.run_text(
            "INSERT INTO events (at, kind, namespace, component, endpoint, instance_id, lora_slug,"
            " slug, suffix, filename)"
            " VALUES (1, 'created', 'n', 'c', 'e', '1', '', 's', '_base', 'f')"
        )
