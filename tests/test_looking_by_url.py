"""`audit`, `sweep --dry-run` and `sql` with --url: a service answers what its database would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from registry.core.records import Owner
from tests.commands import Done, run_here
from tests.exchanges import key_of, new_slug, problem_of, worker
from tests.places import on_both
from tests.support import Server, wait_for

pytestmark = on_both

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def both(server: Server, *words: object) -> tuple[Done, Done]:
    """What a command answers of a database, and what of the service on it."""
    there = run_here(*words, "--url", server.url)
    return run_here(*words, "--database-url", server.place.url), there


# SQL


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]], ids=str)
@pytest.mark.parametrize(
    "words",
    [
        ("SELECT 7 AS number, NULL AS missing, 'a\\nb' AS text, 1.5 AS half",),
        ("SELECT refs, bytes FROM owner_footprint ORDER BY refs, bytes",),
        ("VALUES (1), (2), (3)", "--max-rows", "2"),
        ("SELECT 1 WHERE 1 = 2",),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_statement_is_answered_as_by_the_database(
    shared_server: Server, words: tuple[str, ...], form: list[str]
) -> None:
    here, there = both(shared_server, "sql", *words, *form)
    assert here == there
    assert here.returncode == int("--max-rows" in words)


def test_binary_values_and_huge_numbers_are_text(shared_server: Server) -> None:
    is_sqlite = shared_server.place.url.startswith("sqlite")
    query = "SELECT x'00ff', 'x'" if is_sqlite else "SELECT '\\x00ff'::bytea, 1e30::numeric"
    answer = shared_server.client.post("/v1/sql", json={"query": query}).json()
    assert answer["rows"] == [["00ff", "x" if is_sqlite else "1" + "0" * 30]]
    assert answer["whole"] is True
    if not is_sqlite:
        query = "SELECT 'NaN'::numeric, 'Infinity'::numeric, 7::numeric, 10::numeric ^ 5000"
        rows = shared_server.client.post("/v1/sql", json={"query": query}).json()["rows"]
        assert rows[0][:3] == [None, None, 7]
        assert rows[0][3].startswith("1000")
    else:
        large = shared_server.client.post("/v1/sql", json={"query": "SELECT -9223372036854775808"})
        assert large.json()["rows"] == [[-(2**63)]]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("DELETE FROM owners",), 1, "read"),
        ((ENDLESS, "--timeout-s", "0.2"), 1, "longer than 0.2 s"),
        (("SELEC 1",), None, ""),
        (("SELECT 1", "--timeout-s", "11"), 2, "timeout_s"),
        (("SELECT 1", "--max-rows", "10001"), 2, "max_rows"),
        (("SELECT " + "1" * 10_000,), 2, "query"),
        (("SELECT 1", "--csv", "--json"), 2, "one of"),
    ],
)
def test_a_refusal_is_told_apart_from_a_mistake(
    shared_server: Server, words: tuple[str, ...], code: int | None, says: str
) -> None:
    here, there = both(shared_server, "sql", *words)
    assert there.stdout == ""
    assert there.returncode == (here.returncode if code is None else code), there
    assert says in there.stderr


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": 1},
        {"query": "SELECT 1", "format": "csv"},
        {"query": "SELECT 1", "max_rows": 0},
        {"query": "SELECT 1", "timeout_s": 0},
        {"query": "SELECT 1; SELECT 2"},
    ],
    ids=str,
)
def test_what_is_no_question_is_refused(shared_server: Server, body: dict[str, Any]) -> None:
    problem_of(shared_server.client.post("/v1/sql", json=body), 422, "invalid")


def test_without_tokens_sql_is_not_for_others_who_can_reach_the_service(
    serve: Callable[..., Server],
) -> None:
    server = serve(host="0.0.0.0", insecure=True)
    answer = server.client.post("/v1/sql", json={"query": "SELECT 1"})
    assert "--token-file" in problem_of(answer, 403, "forbidden")["detail"]
    assert server.client.get("/v1/sweep").status_code == 200


def test_a_statement_writes_nothing(shared_server: Server) -> None:
    count = "SELECT count(*) FROM events"
    before = shared_server.client.post("/v1/sql", json={"query": count}).json()
    query = "WITH gone AS (DELETE FROM events RETURNING 1) SELECT * FROM gone"
    refused = shared_server.client.post("/v1/sql", json={"query": query})
    assert refused.status_code == 422
    after = shared_server.client.post("/v1/sql", json={"query": count}).json()
    assert after["rows"][0][0] >= before["rows"][0][0]


# The audit


def test_an_audit_finds_the_same(shared_server: Server) -> None:
    slug = new_slug()
    kept = shared_server.register_copies(worker(slug), {key_of(slug): b"{}"}, lease_ttl_s=None)
    assert kept.status_code == 200
    for words in ((), ("--class", "immortal_owner"), ("--class", "orphan_entry")):
        here, there = both(shared_server, "audit", *words, "--json")
        assert (here.returncode, there.returncode) == (0, 0)
        one, other = json.loads(here.stdout), json.loads(there.stdout)
        for name in ("worst", "counts", "findings"):
            assert one[name] == other[name]
        assert ("immortal_owner" in other["counts"]) == ("orphan_entry" not in words)
    two = run_here(
        *("audit", "--class", "ghost_owner", "--class", "immortal_owner"),
        *("--json", "--url", shared_server.url),
    )
    assert "immortal_owner" in json.loads(two.stdout)["counts"]
    table = run_here("audit", "--url", shared_server.url).stdout
    assert "immortal_owner" in table
    assert "journal rows" in table


def test_the_exit_code_is_1_if_a_service_finds_more_than_a_note(
    serve: Callable[..., Server], tmp_path: Any
) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    server = serve(artifact_root=tmp_path)
    slug = new_slug()
    placed = {
        "slug": slug,
        "suffix": "_base",
        "filename": "config.json",
        "path": str(file),
    }
    assert server.register(worker(slug), [placed]).status_code == 200
    file.write_text("[]")
    assert server.fetch(key_of(slug)).status_code == 503
    wait_for(lambda: "drifted_ref" in run_here("audit", "--url", server.url).stdout)
    assert run_here("audit", "--url", server.url).returncode == 1
    file.write_text("{}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("audit", "--url", "URL", "--check-files"), "--check-files"),
        (("audit", "--url", "URL", "--discovery", "file:/tmp"), "--discovery"),
        (("audit", "--url", "URL", "--database-url", "sqlite:///x.db"), "--database-url"),
        (("sql", "SELECT 1", "--url", "URL", "--database-url", "sqlite:///x.db"), "--database-url"),
        (("sweep", "--url", "URL"), "--dry-run"),
        (("audit", "--compared"), "--url"),
        (("audit", "--compared", "--url", "URL"), "serve --discovery"),
        (("audit", "--class", "nonsense", "--url", "URL"), "nonsense"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    shared_server: Server, words: tuple[str, ...], says: str
) -> None:
    line = [shared_server.url if word == "URL" else word for word in words]
    done = run_here(*line, REGISTRY_DATABASE_URL=shared_server.place.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_variable_for_the_other_way_does_not_matter(shared_server: Server) -> None:
    url, place = shared_server.url, shared_server.place.url
    variables = {"REGISTRY_URL": "http://127.0.0.1:9", "REGISTRY_DATABASE_URL": place}
    assert run_here("sql", "SELECT 1", **variables).returncode == 0
    variables["REGISTRY_DATABASE_URL"] = "sqlite:////nowhere/registry.db"
    assert run_here("sql", "SELECT 1", "--url", url, **variables).returncode == 0


def test_what_a_comparison_with_discovery_found_is_asked_for(
    serve: Callable[..., Server], tmp_path: Any
) -> None:
    server = serve(discovery=f"file:{tmp_path / 'kv'}")
    wait_for(lambda: server.client.get("/v1/audit?discovery").status_code == 200)
    done = run_here("audit", "--compared", "--url", server.url)
    assert "Compared with 0 live cards." in done.stdout


# A sweep


def test_a_rehearsal_names_who_would_be_ended_and_changes_nothing(
    serve: Callable[..., Server],
) -> None:
    # The sweeper is not to be quicker than the question; it has swept when it started.
    server = serve(sweep_interval_s=30, lease_grace_s=300)
    slug = new_slug()
    owner: Owner = worker(slug)
    assert server.register_copies(owner, {key_of(slug): b"{}"}).status_code == 200
    wait_for(lambda: variable(server, "last_sweep_at") != [])
    nobody = {"ended": [], "released": 0, "waiting": 0, "paused": None, "removed": None}
    said = run_here("sweep", "--dry-run", "--json", "--url", server.url).stdout
    assert json.loads(said) == {**nobody, "owners": 0}
    with server.place.sql() as connection:
        connection.execute("UPDATE settings SET value = '0' WHERE name = 'expiry_floor_at'")
        connection.execute("UPDATE owners SET lease_expires_at = registered_at - 999999999")
    here, there = both(server, "sweep", "--dry-run")
    assert here == there
    assert str(owner) in there.stdout
    assert "1 owner would be ended, 1 ref released." in there.stdout
    assert server.client.get(f"/v1/owners/{owner}").json()["state"] == "active"
    problem_of(server.client.get("/v1/sweep?release_brake=maybe"), 422, "invalid")
    assert server.client.get("/v1/sweep?release_brake").json()["owners"] == 1


def variable(server: Server, name: str) -> list[Any]:
    with server.place.sql() as connection:
        query = f"SELECT value FROM settings WHERE name = '{name}'"
        return list(connection.execute(query).fetchall())
