"""The audit: every class of leak and fault, planted as it would come about, is reported as exactly
that by the view, on the command line and over HTTP, and goes when what it advises is done."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.core import hashing
from registry.core.checks import LEASE_MAX_MS
from registry.core.findings import Severity
from registry.core.records import Artifact, Owner, Registered, Registration
from registry.core.times import format_time
from registry.errors import Conflict
from registry.store.journal import CONFLICT_MS
from registry.store.ops import register
from registry.store.reads.audit import CLASSES, FINDINGS_MAX, OF_DISCOVERY
from registry.store.sqlite.engine import system_clock
from tests.fleet import DAY, MINUTE, SECOND, Clock, World, key, run_cli, worker
from tests.places import Dump, Place, Places, SQLitePlace, on_both, on_sqlite
from tests.support import TABLES, Server, checksum, dump_of, sql, wait_for

pytestmark = on_both

CONFIG, TOKENIZER, ADAPTER = key("config.json"), key("tokenizer.json"), key("a.json", "tiny", "t")
COPYING, SHARING, TUNED = worker(1), worker(2), worker(3, "tuned")
LONG = 40 * DAY
"""Longer ago than any grace or period of these tests."""


def healthy(place: Place) -> World:
    """Three owners with leases: one holds a copy and a file, one the same two in place, and a
    LoRA a file of its own. At the real time, which the commands go by."""
    world = World(place, Clock(system_clock() - 10 * SECOND))
    world.sweep()
    for owner, name in ((COPYING, None), (SHARING, None), (TUNED, "rank-0")):
        world.attach(owner, {}, lease=LEASE_MAX_MS, worker_name=name)
    files_of = {CONFIG: b"{}", TOKENIZER: b"[1]"}
    world.attach(COPYING, {CONFIG: b"{}"}, lease=LEASE_MAX_MS)
    world.attach(COPYING, {TOKENIZER: b"[1]"}, lease=LEASE_MAX_MS, path="/models")
    world.attach(SHARING, files_of, lease=LEASE_MAX_MS, path="/models")
    world.attach(TUNED, {ADAPTER: b"{'r': 8}"}, lease=LEASE_MAX_MS, path="/models")
    world.clock.now += 10 * SECOND
    world.sweep()
    return world


# What is planted


@dataclass(frozen=True)
class Plant:
    """A fault: the statements that plant it, which finding that is, and what mends it.

    `{now}` in a statement is the time, `{old}` is long ago, `{one}` is the content b"1".
    """

    name: str
    statements: str
    owner: object
    entry: object
    mend: Callable[[World], object]
    since: str = "{old}"
    inherent: tuple[str, ...] = ()
    """What else is then found, because it is true as well."""


def again(world: World) -> object:
    """All register as before: the one with the LoRA in place, the others their two files."""
    world.attach(TUNED, {ADAPTER: b"{'r': 8}"}, lease=LEASE_MAX_MS, path="/models")
    world.attach(SHARING, {CONFIG: b"{}", TOKENIZER: b"[1]"}, lease=LEASE_MAX_MS, path="/models")
    return world.attach(COPYING, {TOKENIZER: b"[1]"}, lease=LEASE_MAX_MS, path="/models")


def sweep(world: World) -> object:
    """Long after any outage."""
    world.sql("DELETE FROM settings WHERE name = 'expiry_floor_at'")
    world.sql("UPDATE settings SET value = ? WHERE name = 'last_sweep_at'", str(world.clock.now))
    return world.sweep()


def restore(world: World) -> object:
    """A backup is to be restored: nothing but that mends it."""
    return None


NEW_OWNER = """
    INSERT INTO owners (namespace, component, endpoint, instance_id, worker_name, state,
        lease_ttl_ms, lease_expires_at, registered_at, renewed_at)
    VALUES ('dynamo', 'backend', 'generate', '4', {name}, 'active', 604800000,
        {{now}} + 604800000, {{{at}}}, {{{at}}})
"""
REF_OF_TUNED = "owner_id = (SELECT owner_id FROM holders WHERE instance_id = '3')"
REF_OF_SHARING = """
    (owner_id, entry_id) = (
        SELECT owner_id, entry_id FROM holders WHERE instance_id = '2' AND filename = 'config.json')
"""

PLANTS = {
    "an entry that nobody holds": Plant(
        "orphan_entry",
        f"""
        INSERT INTO entries
            (slug, suffix, filename, checksum, size, generation, created_at, updated_at)
        VALUES ('left', '_base', 'a', '{checksum(b"1")}', 1, 1, {{old}}, {{old}})
        """,
        None,
        "left/_base/a",
        lambda world: world.remove("left"),
    ),
    "an ended owner that still holds something": Plant(
        "ref_of_ended_owner",
        """
        UPDATE owners SET state = 'expired', ended_at = {old}, lease_ttl_ms = NULL,
            lease_expires_at = NULL WHERE instance_id = '3'
        """,
        TUNED,
        ADAPTER,
        lambda world: world.unregister(TUNED),
    ),
    "a ref whose owner is not there": Plant(
        "dangling_ref",
        f"""
        UPDATE owner_refs SET created_at = {{old}} WHERE {REF_OF_TUNED};
        DELETE FROM owners WHERE instance_id = '3'
        """,
        "owner 3",
        ADAPTER,
        restore,
    ),
    "a ref whose entry is not there": Plant(
        "dangling_ref",
        f"""
        UPDATE owner_refs SET created_at = {{old}} WHERE {REF_OF_TUNED};
        DELETE FROM entries WHERE suffix = 't'
        """,
        TUNED,
        "entry 3",
        restore,
    ),
    "a lease that lapsed long ago": Plant(
        "lapsed_lease",
        "UPDATE owners SET lease_expires_at = {old} WHERE instance_id = '3'",
        TUNED,
        None,
        sweep,
    ),
    "an older instance of a worker": Plant(
        "superseded_incarnation",
        f"""
        UPDATE owners SET renewed_at = {{old}} WHERE instance_id = '3';
        {NEW_OWNER.format(name="'rank-0'", at="now")}
        """,
        TUNED,
        None,
        lambda world: world.unregister(TUNED),
    ),
    "a drain past its deadline": Plant(
        "stuck_drain",
        """
        UPDATE owners SET state = 'draining', drain_deadline_at = {old} WHERE instance_id = '3'
        """,
        TUNED,
        None,
        sweep,
    ),
    "content that nobody registered": Plant(
        "orphan_blob",
        f"INSERT INTO blobs VALUES ('{checksum(b'1')}', 1, {{old}}, {{one}})",
        None,
        checksum(b"1"),
        lambda world: world.prune(),
    ),
    "an owner without a lease": Plant(
        "immortal_owner",
        """
        UPDATE owners SET lease_ttl_ms = NULL, lease_expires_at = NULL, registered_at = {old}
        WHERE instance_id = '3'
        """,
        TUNED,
        None,
        again,
    ),
    "an owner that holds nothing": Plant(
        "ghost_owner",
        NEW_OWNER.format(name="NULL", at="old"),
        worker(4),
        None,
        lambda world: world.unregister(worker(4)),
    ),
    "an entry of which nobody has the bytes": Plant(
        "unserveable_entry",
        f"""
        UPDATE entries SET updated_at = {{old}} WHERE suffix = 't';
        UPDATE owner_refs SET path = NULL, file_identity = NULL,
            blob_checksum = '{checksum(b"{}")}' WHERE {REF_OF_TUNED}
        """,
        None,
        ADAPTER,
        again,
    ),
    "a file that changed, while another holder has it": Plant(
        "drifted_ref",
        f"""
        UPDATE owner_refs SET status = 'drifted', verified_at = {{now}} WHERE {REF_OF_SHARING}
        """,
        SHARING,
        CONFIG,
        again,
        since="{now}",
    ),
    "a file that is gone, while another holder has it": Plant(
        "missing_file",
        f"""
        UPDATE owner_refs SET status = 'missing', verified_at = {{now}} WHERE {REF_OF_SHARING}
        """,
        SHARING,
        CONFIG,
        again,
        since="{now}",
    ),
    "a file that is gone, and nobody else has it": Plant(
        "missing_file",
        f"""
        UPDATE owner_refs SET status = 'missing', verified_at = {{now}} WHERE {REF_OF_TUNED}
        """,
        TUNED,
        ADAPTER,
        again,
        since="{now}",
        inherent=("unserveable_entry",),
    ),
    "a file below a root that is not there any more": Plant(
        "root_missing",
        f"""
        INSERT INTO settings (name, value) VALUES ('artifact_roots', '["/elsewhere/"]')
        ON CONFLICT (name) DO UPDATE SET value = excluded.value;
        UPDATE owner_refs SET status = 'missing', verified_at = {{now}} WHERE {REF_OF_SHARING}
        """,
        SHARING,
        CONFIG,
        again,
        since="{now}",
    ),
    "a copy that is not there": Plant(
        "missing_blob",
        """
        UPDATE owner_refs SET created_at = {old} WHERE blob_checksum IS NOT NULL;
        DELETE FROM blobs
        """,
        COPYING,
        CONFIG,
        lambda world: world.upload(b"{}"),
    ),
    "a file that was not hashed for long": Plant(
        "unverified_ref",
        f"UPDATE owner_refs SET verified_at = {{old}} WHERE {REF_OF_TUNED}",
        TUNED,
        ADAPTER,
        again,
    ),
    "a ref whose event is not in the journal": Plant(
        "journal_says_gone",
        f"""
        UPDATE owner_refs SET created_at = {{old}} WHERE {REF_OF_TUNED};
        DELETE FROM events WHERE kind = 'registered' AND instance_id = '3'
        """,
        TUNED,
        ADAPTER,
        restore,
    ),
    "a ref whose event is of another kind": Plant(
        "journal_says_gone",
        f"""
        UPDATE owner_refs SET created_at = {{old}},
            event_id = (SELECT id FROM events WHERE kind = 'created' AND suffix = 't')
        WHERE {REF_OF_TUNED}
        """,
        TUNED,
        ADAPTER,
        restore,
    ),
    "a ref whose event is another owner's": Plant(
        "journal_says_gone",
        f"""
        UPDATE owner_refs SET created_at = {{old}}, event_id = (
            SELECT id FROM events
            WHERE kind = 'registered' AND instance_id = '1' AND filename = 'config.json')
        WHERE {REF_OF_SHARING}
        """,
        SHARING,
        CONFIG,
        restore,
    ),
    "a ref whose event registered other content": Plant(
        "journal_says_gone",
        f"""
        UPDATE owner_refs SET created_at = {{old}} WHERE {REF_OF_TUNED};
        UPDATE entries SET checksum = '{checksum(b"1")}' WHERE suffix = 't'
        """,
        TUNED,
        ADAPTER,
        restore,
    ),
    "a refusal that stands": Plant(
        "unresolved_conflict",
        f"""
        INSERT INTO events (at, kind, entry_id, namespace, component, endpoint, instance_id,
            lora_slug, slug, suffix, filename, checksum, previous_checksum, reason)
        VALUES ({{now}} - 60000, 'refused', 1, 'dynamo', 'backend', 'generate', '9', '',
            'tiny', '_base', 'config.json', '{checksum(b"1")}', '{checksum(b"{}")}', 'held')
        """,
        worker(9),
        CONFIG,
        lambda world: world.unregister(worker(9)),
        since="{now} - 60000",
    ),
}
IN_SQL = CLASSES.keys() - {"path_outside_roots", "journal_says_held", "integrity", *OF_DISCOVERY}


def plant(place: Place, statements: str, now: int) -> None:
    """As somebody does who writes past the registry: foreign keys are off."""
    words = {"{now}": str(now), "{old}": f"{now - LONG}"}
    words["{one}"] = "x'31'" if isinstance(place, SQLitePlace) else "'\\x31'"
    for word, value in words.items():
        statements = statements.replace(word, value)
    with place.unguarded() as connection:
        for statement in statements.split(";"):
            connection.execute(statement)


@pytest.fixture(scope="module")
def template(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with places.at(tmp_path_factory.mktemp("template")) as place:
        world = healthy(place)
        assert found_in(place) == []
        world.close()
        yield place


@pytest.fixture
def planted(places: Places, template: Place, tmp_path: Path) -> Iterator[World]:
    """A healthy database to plant in. It is not checked at the end: the tests do it."""
    with places.at(tmp_path, "planted.db", like=template, is_checked=False) as place:
        world = World(place, Clock(system_clock()))
        yield world
        world.close()


Row = tuple[str, str, str | None, str | None, str | None]
"""class, severity, owner, entry, since"""


def found_in(place: Place) -> list[tuple[Any, ...]]:
    return place.ask("SELECT class, severity, owner, entry, since FROM leaks ORDER BY class")


def expected(case: Plant, now: int) -> Row:
    times = {"{old}": now - LONG, "{now}": now, "{now} - 60000": now - MINUTE}
    owner, entry = (None if each is None else str(each) for each in (case.owner, case.entry))
    return (case.name, CLASSES[case.name], owner, entry, format_time(times[case.since]))


def test_there_is_a_plant_for_every_class_that_sql_can_state() -> None:
    assert {each.name for each in PLANTS.values()} == IN_SQL


# Planted faults


@pytest.mark.parametrize("name", PLANTS)
def test_a_fault_is_reported_as_what_it_is_by_the_view_and_the_command(
    planted: World, name: str
) -> None:
    """Alone, or with what is then true as well."""
    case, now = PLANTS[name], planted.clock.now
    plant(planted.place, case.statements, now)
    rows = found_in(planted.place)
    assert [row for row in rows if row[0] == case.name] == [expected(case, now)]
    assert {row[0] for row in rows} == {case.name, *case.inherent}
    severe = CLASSES[case.name] is not Severity.NOTE

    code, out, err = run_cli("audit", "--json", "--database-url", planted.url)
    answer = json.loads(out)
    assert (code, err) == (int(severe), "")
    assert {each["class"]: 1 for each in answer["findings"]} == answer["counts"]
    (finding,) = [each for each in answer["findings"] if each["class"] == case.name]
    assert [finding.pop(each) for each in ("class", "severity", "owner", "entry", "since")] == [
        *expected(case, now)
    ]
    assert len(finding.pop("detail")) > 20
    assert finding == {}
    assert answer["worst"] == max((row[1] for row in rows), key=lambda each: Severity(each).rank)

    code, out, _ = run_cli("audit", "--class", case.name, "--database-url", planted.url)
    line = out.splitlines()[1]
    for cell in expected(case, now):
        assert (cell or "-") in line
    assert (code, f"\n1 findings: {case.name} 1\n" in out) == (int(severe), True)
    other = next(each for each in CLASSES if each not in {case.name, *case.inherent})
    code, out, _ = run_cli("audit", "--class", other, "--database-url", planted.url)
    assert (code, out.startswith("No findings.\n")) == (0, True)


@pytest.mark.parametrize("name", [name for name in PLANTS if PLANTS[name].mend is not restore])
def test_what_the_finding_advises_mends_it(planted: World, name: str) -> None:
    case = PLANTS[name]
    plant(planted.place, case.statements, planted.clock.now)
    case.mend(planted)
    assert found_in(planted.place) == []
    planted.place.assert_sound()


def test_every_fault_is_reported_over_http(places: Places, template: Place, tmp_path: Path) -> None:
    with places.at(tmp_path, "served.db", like=template) as place:
        place.ask("DELETE FROM settings WHERE name = 'last_sweep_at'")
        report_every_fault_over_http(place, template.dump())


def report_every_fault_over_http(place: Place, healthy: Dump) -> None:
    # A sweep every hour: what is planted is not to be mended before it is looked at.
    flags: dict[str, Any] = {
        "lease_grace_s": 30 * 86_400,
        "sweep_interval_s": 3600,
        "artifact_root": "/",
    }
    with Server(place, **flags) as server:
        wait_for(lambda: bool(variable(place, "journal_round_at")))
        wait_for(lambda: variable(place, "artifact_roots") == '["/"]')
        for name, case in PLANTS.items():
            now = system_clock()
            plant(place, case.statements, now)
            rows = found_in(place)
            assert [row for row in rows if row[0] == case.name] == [expected(case, now)], name
            for query in ({}, {"class": case.name}):
                body = server.client.get("/v1/audit", params=query).json()
                assert as_rows(body) == [r for r in rows if not query or r[0] == case.name], name
                assert body["counts"] == {row[0]: 1 for row in rows if not query or r_is(row, case)}
            put_back(place, healthy)
            assert server.client.get("/v1/audit").json()["findings"] == [], name
        wrong = server.client.get("/v1/audit", params={"class": "nonsense"})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid")


def r_is(row: tuple[Any, ...], case: Plant) -> bool:
    return bool(row[0] == case.name)


def as_rows(body: dict[str, Any]) -> list[Row]:
    names = ("class", "severity", "owner", "entry", "since")
    rows = [tuple(each[name] for name in names) for each in body["findings"]]
    return sorted(rows)


def variable(place: Place, name: str) -> str | None:
    rows = place.ask("SELECT value FROM settings WHERE name = ?", name)
    return rows[0][0] if rows else None


def put_back(place: Place, healthy: Dump) -> None:
    """Every row as it was, but for the settings."""
    with place.unguarded() as connection:
        connection.execute("BEGIN")
        for table in TABLES:
            if table != "settings":
                connection.execute(f"DELETE FROM {table}")
                for row in healthy[table]:
                    marks = ", ".join("?" * len(row))
                    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)
        connection.execute("COMMIT")


# How it is reported


def test_a_healthy_database_has_no_findings_and_a_summary(planted: World) -> None:
    url = ["--database-url", planted.url]
    code, out, err = run_cli("audit", *url)
    assert (code, err) == (0, "")
    assert out.startswith("No findings.\n\nlast sweep ")
    for fact in (
        "overdue owners      0",
        "oldest drain until  nobody drains",
        "brake               not engaged",
        "entries by holders  1 by 1, 2 by 2",
        f"journal rows        {planted.sql('SELECT COUNT(*) FROM events')[0][0]}",
        f"{COPYING}     2      5",
        f"{TUNED}     1      8",
    ):
        assert f"\n{fact}\n" in out
    _, out, _ = run_cli("audit", "--json", *url)
    body = json.loads(out)
    assert (body["worst"], body["counts"], body["findings"]) == (None, {}, [])
    assert body["summary"]["entries_by_holders"] == {"1": 1, "2": 2}
    assert body["summary"]["largest_owners"][0] == {"owner": str(TUNED), "refs": 1, "bytes": 8}
    assert run_cli("verify", *url) == (0, "No findings.\n", "")


def test_the_audit_changes_nothing(planted: World) -> None:
    before = dump_of(planted.place)
    for arguments in (["audit"], ["audit", "--check-files"], ["verify"]):
        run_cli(*arguments, "--database-url", planted.url)
    assert dump_of(planted.place) == before


def test_the_audit_does_not_stop_at_the_first_finding_and_shows_the_worst_first(
    planted: World,
) -> None:
    names = ["an owner without a lease", "a lease that lapsed long ago", "a copy that is not there"]
    names += ["a refusal that stands", "content that nobody registered"]
    for name in names:
        if name != "an owner without a lease":
            plant(planted.place, PLANTS[name].statements, planted.clock.now)
    plant(planted.place, NEW_OWNER.format(name="NULL", at="old"), planted.clock.now)
    code, out, _ = run_cli("audit", "--json", "--database-url", planted.url)
    found = [(each["severity"], each["class"]) for each in json.loads(out)["findings"]]
    assert code == 1
    assert found == [
        ("corruption", "missing_blob"),
        ("fault", "unresolved_conflict"),
        ("leak", "lapsed_lease"),
        ("leak", "orphan_blob"),
        ("note", "ghost_owner"),
    ]
    code, out, _ = run_cli(
        *("audit", "--json", "--class", "lapsed_lease", "--class", "ghost_owner"),
        *("--database-url", planted.url),
    )
    assert json.loads(out)["counts"] == {"ghost_owner": 1, "lapsed_lease": 1}


def test_all_findings_are_counted_and_the_first_thousand_listed(planted: World) -> None:
    rows = ", ".join(
        f"('left', '_base', '{number}', '{checksum(b'')}', 0, 1, 5, 5)"
        for number in range(FINDINGS_MAX + 5)
    )
    planted.sql(
        "INSERT INTO entries (slug, suffix, filename, checksum, size, generation, created_at, "
        f"updated_at) VALUES {rows}"
    )
    plant(planted.place, PLANTS["a copy that is not there"].statements, planted.clock.now)
    for flags in ([], ["--check-files"]):
        arguments = ["audit", *flags, "--class", "missing_blob", "--class", "orphan_entry"]
        code, out, _ = run_cli(*arguments, "--json", "--database-url", planted.url)
        body = json.loads(out)
        assert body["counts"] == {"missing_blob": 1, "orphan_entry": FINDINGS_MAX + 5}
        assert (code, len(body["findings"]), body["worst"]) == (1, FINDINGS_MAX, "corruption")
    _, out, _ = run_cli("audit", "--class", "orphan_entry", "--database-url", planted.url)
    assert "\n... and 5 more\n\n1005 findings: orphan_entry 1005\n" in out


def test_an_audit_that_cannot_run_exits_2(planted: World) -> None:
    for arguments in (
        ["audit", "--class", "nonsense", "--database-url", planted.url],
        ["audit", "--check-files", "--artifact-root", "/no/such", "--database-url", planted.url],
        ["audit", "--database-url", "sqlite:////no/such/registry.db"],
        ["verify", "--nonsense"],
    ):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, "")
        assert err


def test_the_footprint_adds_up_what_every_owner_holds(planted: World) -> None:
    planted.unregister(TUNED)
    assert planted.sql(
        "SELECT instance_id, lora_slug, worker_name, state, refs, bytes, copied, in_place, "
        "ended_at IS NULL FROM owner_footprint ORDER BY owner_id"
    ) == [
        ("1", "", None, "active", 2, 5, 1, 1, 1),
        ("2", "", None, "active", 2, 5, 0, 2, 1),
        ("3", "tuned", "rank-0", "detached", 0, 0, 0, 0, 0),
    ]


# Conflicts


def test_a_conflict_is_over_when_the_refused_owner_succeeds_or_leaves(planted: World) -> None:
    """Also when it only offers again what it held before, or was never let in."""

    def offer(owner: Owner, content: bytes) -> object:
        return planted.hold(owner, {CONFIG: content}, lease=LEASE_MAX_MS)

    stranger = worker(7)
    for owner, resolve in (
        (SHARING, lambda: planted.attach(SHARING, {CONFIG: b"{}"}, lease=LEASE_MAX_MS)),
        (SHARING, lambda: planted.attach(SHARING, {CONFIG: b"{}"}, lease=LEASE_MAX_MS)),
        (stranger, lambda: planted.unregister(stranger)),
        (stranger, lambda: planted.attach(stranger, {CONFIG: b"{}"}, lease=LEASE_MAX_MS)),
        (stranger, lambda: planted.unregister(stranger)),
    ):
        for _ in range(2):
            assert isinstance(offer(owner, b"other"), Conflict)
            assert conflicts(planted) == [str(owner)]
        resolve()
        assert conflicts(planted) == []
        said = "SELECT COUNT(*) FROM events WHERE kind <> 'uploaded'"
        before = planted.sql(said)
        resolve()
        assert planted.sql(said) == before  # It is said once.
    planted.place.assert_sound()


def conflicts(world: World) -> list[str | None]:
    return [row[2] for row in found_in(world.place) if row[0] == "unresolved_conflict"]


def test_a_conflict_is_forgotten_after_an_hour(planted: World) -> None:
    planted.clock.now -= CONFLICT_MS - MINUTE
    assert isinstance(planted.hold(worker(7), {CONFIG: b"other"}), Conflict)
    assert conflicts(planted) == [str(worker(7))]
    planted.sql("UPDATE events SET at = at - 60001 WHERE kind = 'refused'")
    assert conflicts(planted) == []


# Files in place


@pytest.fixture
def in_place(world: World, tmp_path: Path) -> World:
    """Four files of one owner, held in place below two directories."""
    world.clock.now = system_clock()
    for directory in ("models", "elsewhere"):
        (tmp_path / directory).mkdir()
    artifacts = []
    for name in ("models/same", "models/changed", "models/gone", "elsewhere/same"):
        path = tmp_path / name
        path.write_text(name)
        found = hashing.hash_file(str(path), max_bytes=100)
        each = key(path.name, path.parent.name)
        artifacts.append(Artifact(each, found.checksum, found.size, str(path), found.identity))
    outcome = world.do(register.register, Registration(worker(1), tuple(artifacts)))
    assert isinstance(outcome, Registered)
    return world


def test_files_that_changed_or_are_gone_or_outside_of_the_roots_are_found_by_looking(
    in_place: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view knows only of the last look; `--check-files` looks."""
    arguments = ("audit", "--json", "--database-url", in_place.url)
    (tmp_path / "models/changed").write_text("other bytes")
    (tmp_path / "models/gone").unlink()
    (tmp_path / "models/same").touch()
    only_notes = {"immortal_owner": 1}
    assert json.loads(run_cli(*arguments)[1])["counts"] == only_notes
    code, out, _ = run_cli(*arguments, "--check-files")
    assert code == 1
    assert json.loads(out)["counts"] == only_notes | {"drifted_ref": 1, "missing_file": 1}
    roots = ["--artifact-root", tmp_path / "models"]
    code, out, _ = run_cli(*arguments, "--check-files", *roots)
    body = json.loads(out)
    assert body["counts"] == only_notes | {
        "drifted_ref": 1,
        "missing_file": 1,
        "path_outside_roots": 1,
    }
    named = {each["class"]: (each["owner"], each["entry"]) for each in body["findings"]}
    assert named["path_outside_roots"] == (str(worker(1)), "elsewhere/_base/same")
    assert named["missing_file"] == (str(worker(1)), "models/_base/gone")
    assert named["drifted_ref"] == (str(worker(1)), "models/_base/changed")
    monkeypatch.setenv("REGISTRY_ARTIFACT_ROOTS", f"{tmp_path}/models:{tmp_path}/elsewhere")
    code, out, _ = run_cli(*arguments, "--check-files", "--class", "path_outside_roots")
    assert (code, json.loads(out)["counts"]) == (0, {})
    in_place.sql("UPDATE owner_refs SET status = 'missing' WHERE path LIKE '%gone'")
    _, out, _ = run_cli(*arguments, "--check-files", "--class", "missing_file")
    assert json.loads(out)["counts"] == {"missing_file": 1}  # Not once more for having looked.


def test_a_ref_that_is_released_while_its_file_is_looked_at_is_not_reported(
    in_place: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look takes its time, and no transaction is open meanwhile."""
    from registry.content.file_audit import check_files

    for each in (tmp_path / "models").iterdir():
        each.unlink()
    found = check_files(in_place.database, None)
    assert next(found).kind == "missing_file"
    in_place.unregister(worker(1))
    assert list(found) == []


# The database itself


@pytest.fixture
def large(template: Place, tmp_path: Path) -> World:
    """A SQLite file with content that fills pages of its own."""
    assert isinstance(template, SQLitePlace)
    path = tmp_path / "large.db"
    shutil.copyfile(template.path, path)
    world = World(path, Clock(system_clock()))
    world.attach(COPYING, {key("large.bin"): b"x" * 50_000}, lease=LEASE_MAX_MS)
    world.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    world.close()
    return world


def verified(world: World) -> list[tuple[str, str | None, str]]:
    """What `verify` finds, and that the command says the same."""
    code, out, err = run_cli("verify", "--json", "--database-url", world.url)
    assert err == ""
    body = json.loads(out)
    assert body["summary"] is None
    assert code == (1 if body["findings"] else 0)
    return [(each["class"], each["entry"], each["detail"]) for each in body["findings"]]


@on_sqlite
def test_content_whose_bytes_rotted_is_found_by_its_checksum(large: World) -> None:
    """One byte in a page that holds nothing but content: SQLite does not see it."""
    flip(large.path, large.path.read_bytes().index(b"x" * 4000) + 100)
    with sql(large.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ((kind, entry, detail),) = verified(large)
    assert (kind, entry) == ("integrity", checksum(b"x" * 50_000))
    assert detail == "its bytes have another checksum; restore a backup"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


@on_sqlite
def test_a_page_that_rotted_is_found_and_the_other_looks_go_on(large: World) -> None:
    """The journal's index of entries is overwritten; content is hashed all the same."""
    with sql(large.path) as connection:
        query = "SELECT pageno FROM dbstat WHERE name = 'ix_events_entry_id' AND pagetype = 'leaf'"
        try:
            (page,) = connection.execute(query).fetchone()
        except sqlite3.OperationalError:
            root = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_entry_id'"
            (page,) = connection.execute(root).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    for offset in range(8):
        flip(large.path, (page - 1) * size + offset)
    flip(large.path, large.path.read_bytes().index(b"x" * 4000) + 100)
    found = verified(large)
    assert {kind for kind, _, _ in found} == {"integrity"}
    assert ("integrity", checksum(b"x" * 50_000), found[-1][2]) == found[-1]
    assert len(found) > 1


@on_sqlite
def test_a_foreign_key_that_leads_nowhere_is_found(planted: World) -> None:
    plant(planted.place, "DELETE FROM owners WHERE instance_id = '3'", planted.clock.now)
    found = verified(planted)
    # And nobody holds what was registered: the journal knows the owner by its name.
    assert [kind for kind, _, _ in found] == ["integrity", "journal_says_held"]
    assert "of owner_refs refers to nothing in owners" in found[0][2]


def test_a_ref_to_other_content_than_is_registered_is_found(planted: World) -> None:
    case = PLANTS["an entry of which nobody has the bytes"]
    plant(planted.place, case.statements, planted.clock.now)
    ((kind, entry, detail),) = verified(planted)
    assert (kind, entry) == ("integrity", str(ADAPTER))
    assert detail.startswith(f"a ref holds {checksum(b'{}')} where")


def test_a_size_that_is_not_the_content_s_is_found(planted: World) -> None:
    plant(planted.place, "UPDATE entries SET size = 99 WHERE id = 1", planted.clock.now)
    detail = "its content has 2 bytes, not 99; restore a backup"
    assert verified(planted) == [("integrity", str(CONFIG), detail)]


def test_a_registration_whose_ref_is_gone_without_a_word_is_found(planted: World) -> None:
    """Only by reading the journal; the view sees nothing wrong, as another holds the entry."""
    plant(planted.place, f"DELETE FROM owner_refs WHERE {REF_OF_SHARING}", planted.clock.now)
    assert found_in(planted.place) == []
    ((kind, entry, detail),) = verified(planted)
    assert (kind, entry) == ("journal_says_held", str(CONFIG))
    assert "nothing says that it was released" in detail
    planted.attach(SHARING, {CONFIG: b"{}"}, lease=LEASE_MAX_MS)
    assert verified(planted) == []


def test_the_other_way_round_is_found_as_well(planted: World) -> None:
    case = PLANTS["a ref whose event is not in the journal"]
    plant(planted.place, case.statements, planted.clock.now)
    assert [kind for kind, _, _ in verified(planted)] == ["journal_says_gone"]


# Speed, counted in steps of SQLite's machine


def steps_of(path: Path, query: str) -> int:
    """Thousands of instructions that a query takes."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    with sql(path) as connection:
        connection.set_progress_handler(tick, 1000)
        connection.execute(query).fetchall()
    return count


def test_the_work_of_an_audit_grows_with_the_rows_and_not_with_their_square(
    tmp_path: Path,
) -> None:
    """2,000 owners share 10 files: judged by key alone, the journal would take minutes."""
    counts = []
    for owners in (500, 2000):
        world = World(tmp_path / f"{owners}.db", Clock(system_clock()))
        world.attach_many((worker(number) for number in range(owners)), files=0, shared=10)
        world.unregister(worker(1))
        from registry.store.reads.verify import _HELD

        counts.append([steps_of(world.path, query) for query in ("SELECT * FROM leaks", _HELD)])
        world.close()
    for few, many in zip(*counts, strict=True):
        assert many < 6 * few
