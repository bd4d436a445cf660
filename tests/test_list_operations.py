"""A list operation does exactly what its items would do one at a time, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.core.model_revisions import OnConflict, revision_slug
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Outcome,
    Owner,
    RefStatus,
    Registered,
    Registration,
    Removal,
    Unregistration,
)
from registry.errors import Conflict, ContentMissing, RegistryError
from registry.store.engine import Connection, Engine
from registry.store.ops import blobs, file_status, leases, register, unregister
from registry.store.owner_columns import identity
from tests.places import on_both, on_postgresql, on_sqlite
from tests.support import FAULTS, TABLES, Dump, checksum

pytestmark = on_both

Operation = Callable[[Connection, int, Sequence[Any]], Sequence[Any]]
Step = tuple[str, list[Any], int]
"""An operation by its name, its items, and the milliseconds that passed before it."""

START = 1_700_000_000_000
GRACE_MS = 1000

OWNERS = [
    Owner("a", "backend", "generate", 1),
    Owner("a", "backend", "generate", 1, "tuned"),
    Owner("a", "backend", "generate", 2**64 - 1),
    Owner("a", "backend", "prefill", 1),
    Owner("b", "backend", "generate", 1),
]
KEYS = [
    ArtifactKey("model", "_base", "config.json"),
    ArtifactKey("model", "_base", "tokenizer.json"),
    ArtifactKey("model", "tuned", "config.json"),
    ArtifactKey(
        revision_slug("model", [("config.json", checksum(b"one"))]), "_base", "config.json"
    ),
    ArtifactKey("other", "_base", "größe 模型.json"),
]
CONTENTS = [b"", b"one", b"other"]
PATHS = ["/models/a", "/models/b"]

names = st.sampled_from([None, "x"])
contents = st.sampled_from(CONTENTS)


@st.composite
def artifacts(draw: st.DrawFn) -> Artifact:
    """Mostly the content that others have for the key as well, or hardly anything is shared."""
    number = draw(st.integers(0, len(KEYS) - 1))
    usual = CONTENTS[number % 2]
    key, content = KEYS[number], draw(st.sampled_from([usual] * 4 + CONTENTS))
    if draw(st.booleans()):
        size = draw(st.sampled_from([None] * 4 + [len(content)] * 4 + [99]))
        return Artifact(key, checksum(content), size)
    path, file_identity = draw(st.sampled_from(PATHS)), draw(st.sampled_from([None, "1:2:3:4:5"]))
    return Artifact(key, checksum(content), len(content), path, file_identity)


owners = st.sampled_from(OWNERS)
manifests = st.lists(artifacts(), max_size=3, unique_by=lambda each: each.key).map(tuple)
terms: dict[str, st.SearchStrategy[Any]] = {
    "lease_ttl_ms": st.sampled_from([None, 1000, 60_000]),
    "worker_name": st.sampled_from([None, None, "worker-0", "worker-1"]),
    "request_id": names,
    "actor": names,
}
registrations = st.one_of(
    st.builds(Registration, owners, manifests, **terms),
    st.builds(
        Registration,
        owners,
        manifests.map(lambda each: tuple(one for one in each if one.key.slug == "model")),
        on_conflict=st.just(OnConflict.REVISION),
        as_revision=st.sampled_from([False, False, True]),
        **terms,
    ),
)
observations = st.builds(
    file_status.Observation,
    st.integers(1, len(OWNERS)),
    st.integers(1, len(KEYS)),
    st.sampled_from(PATHS),
    contents.map(checksum),
    st.sampled_from(RefStatus),
    st.sampled_from([None, "1:2:3:4:6"]),
)
uploads = contents.map(lambda each: blobs.Upload(checksum(each), len(each), lambda: each))

OPERATIONS: dict[str, tuple[Operation, st.SearchStrategy[Any]]] = {
    "register": (register.register, registrations),
    "unregister": (unregister.unregister, st.builds(Unregistration, owners, names, names)),
    "remove": (
        unregister.remove,
        st.sampled_from(KEYS).flatmap(
            lambda key: st.builds(Removal, st.just(key.slug), st.just(key.suffix), names, names)
        ),
    ),
    "store_blobs": (blobs.store_blobs, uploads),
    "observe": (file_status.observe, observations),
    "renew": (leases.RenewOperation().renew, owners.map(identity)),
    "drain": (leases.drain, st.builds(leases.Drain, owners, st.just(5000), names, names)),
}

passed_ms = st.sampled_from([0, 1, GRACE_MS - 1, GRACE_MS, GRACE_MS + 1])


def steps(name: str, most: int) -> st.SearchStrategy[Step]:
    _, item = OPERATIONS[name]
    return st.tuples(st.just(name), st.lists(item, min_size=1, max_size=most), passed_ms)


# Mostly registrations, or there would be little to let go of.
histories = st.tuples(
    st.lists(steps("register", 4), max_size=3),
    st.lists(st.one_of([steps(name, 2) for name in OPERATIONS]), max_size=3),
).map(lambda both: both[0] + both[1])


def perform(conn: Connection, now: int, name: str, items: Sequence[Any]) -> list[object]:
    """Outcomes in a form that can be compared."""
    operation, _ = OPERATIONS[name]
    return [comparable(outcome) for outcome in operation(conn, now, items)]


def items_for(conn: Connection, name: str) -> st.SearchStrategy[Any]:
    """Items of an operation. Looks are mostly at files that are held."""
    _, item = OPERATIONS[name]
    refs = conn.run_text(
        "SELECT owner_id, entry_id, path, checksum FROM owner_refs "
        "JOIN entries ON entries.id = entry_id WHERE path IS NOT NULL"
    )
    if name != "observe" or not refs:
        return item
    held = st.sampled_from(refs).flatmap(
        lambda ref: st.builds(
            file_status.Observation, *map(st.just, ref), st.sampled_from(RefStatus)
        )
    )
    return st.one_of(held, held, held, item)


def comparable(outcome: object) -> object:
    if isinstance(outcome, RegistryError):
        return type(outcome), vars(outcome)
    return outcome


def rows_of(conn: Connection) -> Dump:
    """Every row of every table, ids and the next ids to come included."""
    rows: Dump = {table: conn.run_text(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}
    return {**rows, "ids": sorted(conn.last_ids().items())}


def assert_no_faults(conn: Connection) -> None:
    found = {name: conn.run_text(query) for name, query in FAULTS.items()}
    assert {name: rows for name, rows in found.items() if rows} == {}


@on_sqlite
@pytest.mark.timeout(900)  # To make a failing example small takes minutes.
@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_a_list_does_what_its_items_would_do_one_at_a_time(
    database: Engine, name: str, data: st.DataObject
) -> None:
    compare_list_with_items(database, name, data)


@on_postgresql
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=max(1, settings().max_examples // 5))
@given(data=st.data())
def test_a_list_does_what_its_items_would_do_one_at_a_time_there_as_well(
    database: Engine, name: str, data: st.DataObject
) -> None:
    compare_list_with_items(database, name, data)


def compare_list_with_items(database: Engine, name: str, data: st.DataObject) -> None:
    """Outcomes, every row of every table and the ids to come are the same (savepoints give both
    runs the same database)."""
    history = data.draw(histories, "history")
    grace_ms = data.draw(st.sampled_from([0, 0, GRACE_MS, None]), "upload grace")
    with database.write() as conn:
        conn.run_text("SAVEPOINT before")
        now = prepare_world(conn, grace_ms, history) + data.draw(passed_ms, "passed")
        items = data.draw(st.lists(items_for(conn, name), min_size=1, max_size=6), "list")
        conn.run_text("SAVEPOINT prepared")

        together = perform(conn, now, name, items)
        rows_together = rows_of(conn)
        assert_no_faults(conn)
        conn.run_text("ROLLBACK TO prepared")

        alone = [outcome for item in items for outcome in perform(conn, now, name, [item])]
        rows_alone = rows_of(conn)
        conn.run_text("ROLLBACK TO before")
    assert together == alone
    assert_same_rows(rows_together, rows_alone)


def prepare_world(conn: Connection, grace_ms: int | None, history: Sequence[Step]) -> int:
    """Two of the contents are uploaded, then come the steps of the history; the time after it."""
    now = START
    if grace_ms is not None:
        conn.run_text(
            "INSERT INTO settings VALUES ('upload_grace_ms', :value)", {"value": str(grace_ms)}
        )
    for content in CONTENTS[:2]:
        row = {"name": checksum(content), "size": len(content), "at": now, "content": content}
        conn.run_text("INSERT INTO blobs VALUES (:name, :size, :at, :content)", row)
    for name, items, passed in history:
        now += passed
        perform(conn, now, name, items)
    return now


def assert_same_rows(together: Dump, alone: Dump) -> None:
    for table, rows in together.items():
        assert rows == alone[table], table


def test_of_two_conflicting_new_registrations_in_one_list_the_first_wins(
    database: Engine,
) -> None:
    """S2 holds between neighbours of a list that begin with an empty database."""
    first, second = (
        Registration(owner, (Artifact(KEYS[0], checksum(content), len(content), "/models/a"),))
        for owner, content in zip(OWNERS, (b"one", b"other"), strict=False)
    )
    with database.write() as conn:
        won, lost = register.register(conn, START, [first, second])
    assert isinstance(won, Registered)
    assert won.artifacts[0].outcome is Outcome.CREATED
    assert isinstance(lost, Conflict)
    assert [holder.owner for holder in lost.conflicts[0].holders] == [first.owner]
    with database.read() as conn:
        assert conn.run_text("SELECT checksum, generation FROM entries") == [(checksum(b"one"), 1)]
        assert conn.run_text("SELECT instance_id FROM owners") == [("1",)]
        assert conn.run_text("SELECT count(*) FROM events WHERE kind = 'refused'") == [(1,)]


def test_content_that_one_item_drops_is_missing_for_the_next_of_the_list(
    database: Engine,
) -> None:
    """With the upload grace over, a copy goes with the last ref to it, within the list as well."""
    held = Artifact(KEYS[0], checksum(b"one"), 3)
    with database.write() as conn:
        prepare_world(conn, 0, [("register", [Registration(OWNERS[0], (held,))], 0)])
        moved = Artifact(KEYS[0], checksum(b"one"), 3, "/models/a")
        items = [
            Registration(OWNERS[0], (moved,)),
            Registration(OWNERS[3], (Artifact(KEYS[1], checksum(b"one")),)),
        ]
        accepted, refused = register.register(conn, START, items)
    assert isinstance(accepted, Registered)
    assert isinstance(refused, ContentMissing)
    assert refused.missing == (checksum(b"one"),)
