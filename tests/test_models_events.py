"""Looking over the whole: the models and what can be served, the journal and how it is paged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.client import RegistryClient
from registry.core.events import EventFilter, EventKind, EventOrder, EventPage
from registry.core.listings import Model
from registry.core.records import ArtifactKey, Owner
from registry.errors import Invalid
from registry.store.reads import events, queries
from registry.store.sql import Statement
from registry.store.sqlite.engine import Database
from tests.commands import Done, run_here
from tests.support import Server, checksum, in_place, sql, wait_for

ONE, TWO = (Owner("ns", "backend", "generate", number) for number in (1, 2))
LORA = Owner("ns", "backend", "generate", 1, "poems")
CONFIG = ArtifactKey("tiny", "_base", "config.json")
CHAT = ArtifactKey("tiny", "_base", "chat.jinja")
ADAPTER = ArtifactKey("tiny", "poems", "adapter.json")
OTHER = ArtifactKey("other", "_base", "config.json")


def events_of(server: Server, **params: Any) -> dict[str, Any]:
    answer = server.client.get("/v1/events", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(page: dict[str, Any]) -> list[int]:
    return [event["id"] for event in page["events"]]


@contextmanager
def following(
    server: Server, *arguments: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """`events --follow`, as somebody runs it in a terminal."""
    with subprocess.Popen(
        [sys.executable, "-m", "registry", "events", "--follow", "--url", server.url, *arguments],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# Models


def test_models_are_listed_with_their_files_and_the_owners_of_any_of_them(
    server: Server,
) -> None:
    assert server.client.get("/v1/models").json() == {"models": [], "next": None}
    server.register_copies(ONE, {CONFIG: b"{}", CHAT: b"hello", OTHER: b"[]"})
    server.register_copies(TWO, {CONFIG: b"{}"})
    server.register_copies(LORA, {ADAPTER: b"0"})
    with RegistryClient(server.url) as client:
        assert list(client.models()) == [
            Model("other", "_base", files=1, bytes=2, holders=1, serveable=True),
            Model("tiny", "_base", files=2, bytes=7, holders=2, serveable=True),
            Model("tiny", "poems", files=1, bytes=1, holders=1, serveable=True),
        ]


def test_a_model_is_serveable_as_long_as_each_file_has_a_holder_with_its_bytes(
    serve: Any, tmp_path: Path
) -> None:
    server: Server = serve(artifact_root=str(tmp_path))
    mine, theirs = tmp_path / "mine.json", tmp_path / "theirs.json"
    for file in (mine, theirs):
        file.write_bytes(b"{}")
    server.register(ONE, [in_place(CONFIG, mine)])
    server.register(TWO, [in_place(CONFIG, theirs)])
    server.register_copies(ONE, {CHAT: b"hello"})

    def is_serveable() -> bool:
        (model,) = server.client.get("/v1/models").json()["models"]
        return bool(model["serveable"])

    def look() -> None:
        server.fetch(CONFIG)

    mine.unlink()
    look()
    wait_for(lambda: len(events_of(server, kind="missing")["events"]) == 1)
    assert is_serveable()
    theirs.write_bytes(b"changed")
    look()
    wait_for(lambda: not is_serveable())
    mine.write_bytes(b"{}")
    look()
    wait_for(is_serveable)


def test_models_are_paged_and_a_page_begins_behind_its_cursor(server: Server) -> None:
    keys = [ArtifactKey(f"m-{n}", suffix, "a") for n in range(3) for suffix in ("_base", "lora")]
    server.register_copies(ONE, dict.fromkeys(keys, b""))
    seen, after = [], None
    for _ in range(10):
        params = {"limit": "2"} | ({"after": after} if after else {})
        page = server.client.get("/v1/models", params=params).json()
        seen += [(each["slug"], each["suffix"]) for each in page["models"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [(key.slug, key.suffix) for key in keys]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service for tests that only ask."""
    with Server(tmp_path_factory.mktemp("shared") / "registry.db") as server:
        yield server


@pytest.mark.parametrize("after", ["", "tiny", "tiny/", "/_base", "tiny/_base/x", "TINY/_base"])
def test_a_cursor_that_no_page_of_models_answered_is_invalid(shared: Server, after: str) -> None:
    answer = shared.client.get("/v1/models", params={"after": after})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_a_page_of_models_ends_early_rather_than_count_without_bound(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sql(Path(database.path)) as connection:
        connection.executescript(f"""
            CREATE TEMP TABLE empty AS SELECT '{checksum(b"")}' AS checksum;
            INSERT INTO blobs SELECT checksum, 0, 0, x'' FROM empty;
            WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 30)
            INSERT INTO owners (id, namespace, component, endpoint, instance_id, state,
                registered_at, renewed_at) SELECT i, 'n', 'c', 'e', i, 'active', 0, 0 FROM n;
            WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5)
            INSERT INTO entries (id, slug, suffix, filename, checksum, size, generation,
                    created_at, updated_at) SELECT i, 'm-' || i, '_base', 'a',
                (SELECT checksum FROM empty), 0, 1, 0, 0 FROM n;
            INSERT INTO events (id, at, kind, owner_id, entry_id, namespace, component, endpoint,
                instance_id, lora_slug, slug, suffix, filename, checksum)
            SELECT o.id * 10 + e.id, 0, 'registered', o.id, e.id, 'n', 'c', 'e', o.id, '', e.slug,
                '_base',
                'a', e.checksum FROM owners o, entries e;
            INSERT INTO owner_refs SELECT o.id, e.id, (SELECT checksum FROM empty), NULL, NULL,
                'ok', 0, 0, o.id * 10 + e.id FROM owners o, entries e;
        """)
    monkeypatch.setattr(queries, "REFS_COUNTED", 50)
    seen: list[Model] = []
    pages, after = 0, ("", "")
    while True:
        with database.read() as conn:
            models, following = queries.list_models(conn, after, 100)
        seen, pages = seen + models, pages + 1
        if following is None:
            break
        after = following
    assert [model.slug for model in seen] == [f"m-{n}" for n in range(1, 6)]
    assert {model.holders for model in seen} == {30}
    assert pages == 3


# Events


def test_the_journal_is_answered_in_the_order_of_ids_and_by_filters(server: Server) -> None:
    server.register_copies(ONE, {CONFIG: b"{}"})
    server.register_copies(TWO, {CONFIG: b"{}", OTHER: b"[]"})
    server.unregister(ONE)
    whole = events_of(server)
    assert whole["next"] is None
    assert ids(whole) == sorted(ids(whole))
    assert whole["last"] == str(ids(whole)[-1])
    assert ids(events_of(server, order="newest")) == sorted(ids(whole), reverse=True)

    cases: list[tuple[dict[str, str], Any]] = [
        ({"owner": str(ONE)}, lambda e: e["owner"] and e["owner"]["instance_id"] == "1"),
        ({"slug": "other"}, lambda e: e["slug"] == "other"),
        ({"kind": "registered"}, lambda e: e["kind"] == "registered"),
        (
            {"owner": str(TWO), "slug": "tiny", "kind": "registered"},
            lambda e: (
                e["kind"] == "registered"
                and e["slug"] == "tiny"
                and e["owner"]["instance_id"] == "2"
            ),
        ),
        ({"owner": str(LORA)}, lambda e: False),
    ]
    for filters, is_wanted in cases:
        wanted = [event["id"] for event in whole["events"] if is_wanted(event)]
        assert ids(events_of(server, **filters)) == wanted, filters
        newest = events_of(server, order="newest", **filters)
        assert ids(newest) == wanted[::-1], filters
        if wanted:
            assert ids(events_of(server, after=wanted[0], **filters)) == wanted[1:], filters


@pytest.mark.parametrize(
    "params",
    [
        {"kind": "nothing"},
        {"owner": "ns/backend"},
        {"slug": "No Slug"},
        {"order": "sideways"},
        {"after": "-1"},
        {"after": "x"},
        {"limit": "0"},
        {"limit": "1001"},
        {"before": "3"},
    ],
)
def test_a_parameter_that_makes_no_sense_is_invalid_and_the_answer_names_it(
    shared: Server, params: dict[str, str]
) -> None:
    answer = shared.client.get("/v1/events", params=params)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    (name,) = params
    assert name in answer.json()["detail"]


LENGTH = 200_000


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A long journal. A busy owner has half of it, a popular slug a quarter."""
    from registry.store.sqlite.migrate import prepare

    path = tmp_path_factory.mktemp("journal") / "registry.db"
    prepare(f"sqlite:///{path}")
    with sql(path) as connection:
        connection.executescript(f"""
            PRAGMA synchronous = OFF;
            BEGIN;
            CREATE TEMP TABLE told AS
            WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {LENGTH})
            SELECT i AS id,
                CASE i % {LENGTH // 4} WHEN 7 THEN 'superseded' ELSE 'registered' END AS kind,
                CAST(CASE i % 2 WHEN 0 THEN 1 ELSE 10 + i % 999 END AS TEXT) AS instance_id,
                CASE i % 4 WHEN 0 THEN 'popular' ELSE 'model-' || i % 1999 END AS slug
            FROM n;
            INSERT INTO owners (namespace, component, endpoint, instance_id, state, registered_at,
                renewed_at)
            SELECT DISTINCT 'ns', 'backend', 'generate', instance_id, 'active', 0, 0 FROM told;
            INSERT INTO entries (slug, suffix, filename, checksum, size, generation, created_at,
                updated_at)
            SELECT DISTINCT slug, '_base', 'a.json', 'blake3:' || printf('%064d', 0), 0, 1, 0, 0
            FROM told;
            INSERT INTO events (id, at, kind, owner_id, entry_id, namespace, component, endpoint,
                instance_id, lora_slug, slug, suffix, filename, checksum, request_id)
            SELECT t.id, t.id, t.kind, o.id, e.id, 'ns', 'backend', 'generate', t.instance_id, '',
                t.slug, '_base', 'a.json', e.checksum, 'request-' || (t.id / 3)
            FROM told t JOIN owners o ON o.instance_id = t.instance_id
            JOIN entries e ON e.slug = t.slug AND e.suffix = '_base' AND e.filename = 'a.json'
            ORDER BY t.id;
            COMMIT;
        """)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


BUSY, RARE = ONE, Owner("ns", "backend", "generate", 17)
FILTERS = {
    "none": EventFilter(),
    "rare kind": EventFilter(kind=EventKind.SUPERSEDED),
    "kind that never was": EventFilter(kind=EventKind.UPGRADED),
    "common kind": EventFilter(kind=EventKind.REGISTERED),
    "busy owner": EventFilter(owner=BUSY),
    "other owner": EventFilter(owner=RARE),
    "owner that never was": EventFilter(owner=LORA),
    "popular slug": EventFilter(slug="popular"),
    "other slug": EventFilter(slug="model-3"),
    "busy owner, rare kind": EventFilter(owner=BUSY, kind=EventKind.SUPERSEDED),
    "request": EventFilter(request_id="request-17"),
    "request, kind that it did not do": EventFilter(
        kind=EventKind.SUPERSEDED, request_id="request-17"
    ),
    "request that never was": EventFilter(request_id="none"),
    "all three": EventFilter(RARE, "model-3", EventKind.REGISTERED),
}


@pytest.mark.parametrize("order", EventOrder)
@pytest.mark.parametrize("name", FILTERS)
def test_no_page_of_a_long_journal_looks_at_more_than_a_bounded_part_of_it(
    long_journal: Database, name: str, order: EventOrder
) -> None:
    """Counted in steps of SQLite's machine: it takes more than two million to scan all rows."""
    for after in (None, LENGTH // 2):
        with long_journal.read() as conn:
            steps = 0

            def count() -> int:
                nonlocal steps
                steps += 1
                return 0

            connection: Any = conn._dbapi
            connection.set_progress_handler(count, 1000)
            try:
                events.list_events(conn, FILTERS[name], order, after, 100)
            finally:
                connection.set_progress_handler(None, 0)
        assert steps < 450, f"{steps} thousand steps"


@pytest.mark.parametrize(
    "name", ["rare kind", "other slug", "busy owner, rare kind", "request", "all three"]
)
def test_the_pages_of_a_long_journal_together_hold_every_event_that_is_wanted(
    long_journal: Database, name: str
) -> None:
    wanted = FILTERS[name]
    owner = wanted.owner.instance_id if wanted.owner else None
    with sql(Path(long_journal.path)) as connection:
        expected = [
            row[0]
            for row in connection.execute(
                "SELECT id FROM events "
                "WHERE (:owner IS NULL OR instance_id = CAST(:owner AS TEXT)) "
                "AND (:slug IS NULL OR slug = :slug) AND (:kind IS NULL OR kind = :kind) "
                "AND (:request IS NULL OR request_id = :request) ORDER BY id",
                {
                    "owner": owner,
                    "slug": wanted.slug,
                    "kind": wanted.kind,
                    "request": wanted.request_id,
                },
            )
        ]
    for order in EventOrder:
        found: list[int] = []
        after: int | None = None
        pages = 0
        while pages == 0 or after is not None:
            with long_journal.read() as conn:
                page: EventPage = events.list_events(conn, wanted, order, after, 100)
            found += [event.id for event in page.events]
            assert page.last == LENGTH
            after, pages = page.next, pages + 1
        assert found == (expected if order is EventOrder.OLDEST else expected[::-1])
        assert pages <= LENGTH // events.EVENTS_LOOKED_AT + 1


@pytest.mark.parametrize(
    "name", ["none", "rare kind", "busy owner", "other slug", "request", "all three"]
)
def test_every_look_at_the_journal_goes_by_an_index(long_journal: Database, name: str) -> None:
    values = events._event_values(FILTERS[name])
    found = events._event_statements(tuple(values), False)
    statements: list[Statement[Any]] = [found.from_window, found.window_end]
    statements += [found.few, found.from_index] if found.few else []
    with long_journal.read() as conn:
        for statement in statements:
            text, fixed = statement.compiled(long_journal.dialect)
            given = {"after": 0, "row_limit": 10, "window": 100, **values, **fixed}
            plan = [row[3] for row in conn.run_text(f"EXPLAIN QUERY PLAN {text}", given)]
            assert [step for step in plan if step.startswith("SCAN events")] == [], plan
            assert any("USING" in step and "events" in step for step in plan), plan


def test_what_a_request_did_is_found_by_its_id(server: Server) -> None:
    """In every way to the journal; problems and the log name the id as well."""
    server.register_copies(ONE, {CONFIG: b"{}", CHAT: b"hello"})
    server.register_copies(TWO, {CONFIG: b"{}"})
    gone = server.client.delete(f"/v1/owners/{ONE}", headers={"X-Request-Id": "why/gone?&1"})
    assert gone.status_code == 200
    expected = ["detached", "removed", "released", "released"]
    found = events_of(server, request_id="why/gone?&1")["events"]
    assert sorted(event["kind"] for event in found) == sorted(expected)
    assert {event["request_id"] for event in found} == {"why/gone?&1"}
    of_kind = events_of(server, request_id="why/gone?&1", kind="removed")["events"]
    assert [event["filename"] for event in of_kind] == [CHAT.filename]
    done = run(server, "events", "--request-id", "why/gone?&1", "--json")
    assert len(json.loads(done.stdout)["events"]) == len(expected)
    with RegistryClient(server.url) as client:
        wanted = EventFilter(request_id="why/gone?&1")
        assert len(client.events(wanted).events) == len(expected)
        with pytest.raises(Invalid, match="1 to 128 visible characters"):
            client.events(EventFilter(request_id="no id"))
    page = server.client.get(f"/ui/owners/{ONE}", headers={"Accept": "text/html"}).text
    link = "/ui/events?request_id=why%2Fgone%3F%261"
    assert f'href="{link}"' in page
    listed = server.client.get(link, headers={"Accept": "text/html"}).text
    assert listed.count('<tr role="row">') == 1 + len(expected)


# The command line


def run(server: Server, *arguments: str) -> Done:
    return run_here(*arguments, "--url", server.url)


def test_the_commands_show_models_and_the_last_events(server: Server) -> None:
    server.register_copies(ONE, {CONFIG: b"{}", OTHER: b"[]"})
    models = run(server, "models")
    assert models.returncode == 0
    assert [line.split() for line in models.stdout.splitlines()[1:]] == [
        ["other/_base", "1", "2", "B", "1", "yes"],
        ["tiny/_base", "1", "2", "B", "1", "yes"],
    ]
    as_json = json.loads(run(server, "models", "--json").stdout)
    assert as_json == server.client.get("/v1/models").json()

    last = run(server, "events", "--last", "2").stdout.splitlines()
    assert [line.split()[2] for line in last] == ["created", "registered"]
    assert run(server, "events", "--after", "0").stdout.splitlines()[-2:] == last
    found = json.loads(run(server, "events", "--kind", "created", "--json").stdout)
    assert [event["filename"] for event in found["events"]] == ["config.json", "config.json"]
    assert run(server, "events", "--slug", "tiny", "--kind", "nothing").returncode == 2


def test_following_prints_what_happens_from_now_on_until_ctrl_c(server: Server) -> None:
    server.register_copies(ONE, {CONFIG: b"{}"})
    with following(server, "--last", "1", "--json", "--slug", "tiny") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["kind"] == "registered"
        server.register_copies(ONE, {OTHER: b"[]"})
        server.unregister(ONE)
        kinds = [json.loads(process.stdout.readline())["kind"] for _ in range(2)]
        assert kinds == ["released", "removed"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_following_ends_when_nobody_reads_even_if_nothing_happens(server: Server) -> None:
    reader, writer = os.pipe()
    with following(server, "--last", "0", stdout=writer) as process:
        os.close(writer)
        os.close(reader)
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_following_goes_on_when_the_service_comes_back(serve: Any, database_path: Path) -> None:
    first: Server = serve()
    _, port = first.address
    first.register_copies(ONE, {CONFIG: b"{}"})
    with following(first, "--last", "1") as process:
        assert process.stdout is not None
        assert "registered" in process.stdout.readline()
        first.stop()
        second = serve(port=port)
        second.unregister(ONE)
        assert "released" in process.stdout.readline()
