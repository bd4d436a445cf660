"""The documentation is complete and true.

Whatever a user can name (commands, options, settings, routes, errors, findings, events, tables,
columns) is documented, and nothing else is. Shell and Python blocks are typed as a reader would
type them, SQL is run on a database with a past, links lead somewhere.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from registry import cli
from registry.config import SETTINGS
from registry.core.policy import Policy
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Owner,
    RefStatus,
    Registration,
    Removal,
    Unregistration,
)
from registry.core.setting_rules import Setting
from registry.errors import error_classes
from registry.mirror.ledger import LedgerCounts
from registry.mirror.status import MirrorStatus
from registry.mirror.status_server import metrics_of
from registry.server import auth
from registry.server.http import STATUS
from registry.server.openapi.spec import STORAGE, RequestSpec
from registry.server.routes.owners import PATH as OWNER_PATH
from registry.server.routes.table import CALLS
from registry.store.engine import Connection
from registry.store.opening import copy_database, run_query
from registry.store.ops import blobs, expire, file_status, leases, register, unregister
from registry.store.ops.settings_table import Adoption, adopt
from registry.store.reads.audit import CLASSES
from registry.store.sqlite.engine import Database
from registry.store.sqlite.migrate import prepare
from registry.store.sqlite.views import VIEWS
from registry.store.tables import metadata
from tests.documents import DOCUMENTS, Block, Reader, anchors, blocks, links, prose, section
from tests.support import ROOT, Server, checksum, sql

DOCS = ROOT / "docs"
TYPED = ("console", "sh", "bash", "python", "pycon", "reader")
COMMON = "## Options that many commands have"

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


# What a reader types

MISSING = [tool for tool in ("bash", "curl", "make") if shutil.which(tool) is None]


def typed_blocks(document: Path) -> list[Block]:
    return [block for block in blocks(document) if block.language in TYPED]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if typed_blocks(each)], ids=name_of
)
def test_what_a_document_shows_is_what_comes_out(document: Path, tmp_path: Path) -> None:
    with Reader(tmp_path, activated=document.parent == DOCS) as reader:
        problems = [problem for block in typed_blocks(document) for problem in reader.do(block)]
        log = reader.service_log
    assert not problems, "\n\n".join([*problems, f"The service's log:\n{log}"])


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_a_reader_notices_what_is_not_as_it_is_shown(tmp_path: Path) -> None:
    right = (
        "$ echo a  b; echo 2026-01-31T12:00:00.000Z\na b\n2000-01-01T00:00:00.000Z\n",
        "$ printf 'a\\nb\\nc\\n'\na\n...\nc\n",
        "$ echo one two\n...two\n",
        "$ echo said \\\n    once\nsaid once\n",
        "$ false\n$ echo $?\n1\n",
        "$ echo not compared\n$ WORD=kept\n$ echo $WORD\nkept\n",
    )
    wrong = (
        "$ echo one\ntwo\n",
        "$ echo one; echo two\none\n",
        "$ false\n",
        "$ no-such-command\n",
        "$ false\n$ echo $?\n2\n",
    )
    with Reader(tmp_path, activated=False) as reader:
        assert [text for text in right if reader.do(Block("console", text, 1))] == []
        assert [text for text in wrong if not reader.do(Block("console", text, 1))] == []
        assert reader.do(Block("sh", "false\ntrue\n", 1))
        assert reader.do(Block("pycon", ">>> 1 + 1\n3\n", 1))


def test_every_block_says_what_it_is() -> None:
    known = {*TYPED, "sql", "text", "json", "toml", "ini", "yaml", "http", "nginx"}
    found = {(name_of(each), block.line): block for each in DOCUMENTS for block in blocks(each)}
    assert {at: block.language for at, block in found.items() if block.language not in known} == {}


# Links


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    assert [link for link in links(document) if not leads_somewhere(document, link)] == []


def leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    return target.exists() and (not anchor or anchor in anchors(target))


def test_every_page_is_in_the_index() -> None:
    listed = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert {path.name for path in DOCS.glob("*.md")} - listed == {"README.md"}


def test_headings_are_no_titles() -> None:
    """Only the first word of a heading begins with a capital, unless it is a name."""
    names = re.compile(
        r"(Python|LoRAs?|Kubernetes|Dynamo|SQLite|PostgreSQL|Prometheus|OpenAPI|Datasette)\b"
    )
    wrong = [
        f"{name_of(document)}: {heading}"
        for document in DOCUMENTS
        for heading in re.findall(r"^#+ (.+)$", prose(document), re.M)
        for word in re.sub(r"`[^`]*`|\(.*?\)|\[.*?\]|^S\d+", "", heading).split()[1:]
        if word[0].isupper() and not (word.isupper() or names.match(word))
    ]
    assert wrong == []


# Commands


def commands() -> dict[str, Any]:
    """Every command that does something, by how it is called."""
    found: dict[str, Any] = {}
    for name, (home, _) in cli.COMMANDS.items():
        command = cli._loaded(home)
        if isinstance(command, TyperGroup):
            found |= {f"{name} {each}": inner for each, inner in command.commands.items()}
        else:
            found[name] = command
    return found


def options_of(command: Any) -> set[str]:
    options = {
        option
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return {option for option in options if option.startswith("--")} - {"--help"}


def mentioned_options(text: str) -> set[str]:
    """Options in code spans."""
    return {
        option for span in re.findall(r"`[^`]+`", text) for option in re.findall(r"--[a-z-]+", span)
    }


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_command_is_documented_with_all_its_options(name: str) -> None:
    page = DOCS / "cli.md"
    documented = mentioned_options(section(page, f"## `{name}`"))
    options = options_of(commands()[name])
    if name in ("serve", "config show", "doctor"):
        options -= {flag for setting in SETTINGS for flag in flags_of(setting)}
    assert options - documented - mentioned_options(section(page, COMMON)) == set()
    assert documented - options_of(commands()[name]) - {"--help"} == set()


def test_no_other_command_is_documented() -> None:
    headings = re.findall(r"^## `(.+)`$", prose(DOCS / "cli.md"), re.M)
    assert sorted(headings) == sorted(commands())


# Settings


def flags_of(setting: Setting) -> set[str]:
    return {setting.flag, f"--no-{setting.flag.removeprefix('--')}"}


def test_every_setting_is_documented_with_its_default_and_what_is_allowed() -> None:
    rows = table_rows((DOCS / "settings.md").read_text(encoding="utf-8"))
    documented = {row[0]: row[1:3] for row in rows if len(row) == 4}
    documented.pop("setting", None)
    expected = {
        f"`{setting.name}`": [as_cell(setting.default_shown), as_cell(setting.allowed)]
        for setting in SETTINGS
    }
    assert documented == expected


def as_cell(text: str) -> str:
    return text.replace("|", "\\|")


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without the lines below their heads."""
    lines = [line for line in text.splitlines() if re.match(r"\|.*\|$", line)]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip() for cell in row] for row in cells if not re.match(r"-+$", row[0].strip())]


# HTTP


def heading_of(call: RequestSpec) -> str:
    return f"### `{call.method} {call.path.replace(OWNER_PATH, '/v1/owners/{owner}')}`"


def documented_calls() -> list[RequestSpec]:
    """Every call that has a section: not the HEAD of what is there to GET."""
    got = {call.path for call in CALLS if call.method == "GET"}
    return [call for call in CALLS if call.method != "HEAD" or call.path not in got]


def test_every_route_is_documented_and_no_other() -> None:
    headings = re.findall("^### `[A-Z]+ /.*", prose(DOCS / "http.md"), re.M)
    assert sorted(headings) == sorted(map(heading_of, documented_calls()))


@pytest.mark.parametrize("call", documented_calls(), ids=heading_of)
def test_a_route_is_documented_with_role_parameters_and_errors(call: RequestSpec) -> None:
    text = section(DOCS / "http.md", heading_of(call))
    needed = auth.role_needed(call.method, call.path)
    assert ("no token" if needed is None else f"role `{needed}`") in text
    errors = {error.code for error in call.problems if error not in STORAGE}
    if not call.path.startswith("/v1/metadata/"):  # Its headers are those of RFC 9110.
        names = {parameter.name for parameter in call.parameters}
        assert names - set(re.findall("`([^`]+)`", text)) == set()
    listed = re.search("^Errors: (.*?)^(?=$|#)", text + "\n\n", re.M | re.S)
    found = set(re.findall("`([^`]+)`", listed[1])) if listed else set()
    assert errors - found == set()
    assert (found & STATUS_CODES) - errors == set()


STATUS_CODES = {error.code for error in STATUS}


def test_every_error_is_documented_with_its_status() -> None:
    rows = table_rows(section(DOCS / "http.md", "## Errors"))
    statuses = {error.code: str(status) for error, status in STATUS.items()}
    assert {row[0].strip("`"): row[1] for row in rows[1:]} == statuses
    rows = table_rows(section(DOCS / "cli.md", "## Errors"))
    others = error_classes().keys() - statuses.keys()
    assert {row[0].strip("`") for row in rows[1:]} == others


SOMETIMES_SHOWN = {
    "metadata_registry_worker_restarts_total",
    "metadata_registry_tls_certificate_end_timestamp_seconds",
    "metadata_registry_discovery_up",
    "metadata_registry_discovery_age_seconds",
    "metadata_registry_discovery_cards",
}
"""Metrics that only several workers have, or HTTPS, or a comparison with discovery."""


def test_every_metric_is_documented(server: Server) -> None:
    server.client.get("/v1/owners")
    server.client.get("/v1/metadata/no/_base/model")
    text = server.client.get("/metrics").text
    shown = {name for name in re.findall(r"^# TYPE (\S+)", text, re.M) if name[-8:] != "_created"}
    rows = table_rows(section(DOCS / "operations.md", "## Metrics"))
    documented = {name for row in rows[1:] for name in re.findall("`([^`]+)`", row[0])}
    assert documented == shown | SOMETIMES_SHOWN


def test_every_metric_of_a_mirror_is_documented() -> None:
    report = MirrorStatus().report(LedgerCounts())
    shown = set(re.findall(r"^# TYPE (\S+)", metrics_of(report), re.M))
    rows = table_rows(section(DOCS / "operations.md", "## A mirror"))
    assert {row[0].strip("`") for row in rows[1:]} == shown


def test_every_health_check_is_documented(server: Server) -> None:
    checks = server.client.get("/health").json()["checks"]
    rows = table_rows(section(DOCS / "operations.md", "## Health"))
    assert {row[0].strip("`") for row in rows[1:]} == checks.keys()


# The database


@pytest.mark.parametrize("name", [*metadata.tables, *VIEWS])
def test_a_table_or_view_is_documented_with_all_its_columns(name: str, scene: Path) -> None:
    text = section(DOCS / "schema.md", f"## {name}")
    if name == "clock":
        documented = set(re.findall("`([a-z_]+)`", text))
    else:
        rows = table_rows(text)
        documented = {column for row in rows for column in re.findall("`([a-z_]+)`", row[0])}
    if name == "events":
        documented -= kinds()
    if name == "settings":
        documented = {"name", "value"} if "`name`" not in text else documented
    with sql(scene) as connection:
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
    if name != "settings":
        assert documented == columns


def test_every_row_of_the_settings_table_is_documented(scene: Path) -> None:
    text = section(DOCS / "schema.md", "## settings")
    documented = {name for row in table_rows(text) for name in re.findall("`([a-z_]+)`", row[0])}
    with sql(scene) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM settings")}
    assert names - documented == set()


def kinds() -> set[str]:
    """The kinds of events, from the constraint that allows them."""
    checks = [str(getattr(each, "sqltext", "")) for each in metadata.tables["events"].constraints]
    return {kind for check in checks for kind in re.findall("'([a-z_]+)'", check)}


def test_every_kind_of_event_is_documented() -> None:
    rows = table_rows(section(DOCS / "schema.md", "## events"))
    start = [row[0] for row in rows].index("kind")
    assert {row[0].strip("`") for row in rows[start + 1 :]} == kinds()


def test_every_class_of_finding_is_documented_with_its_severity() -> None:
    rows = table_rows(section(DOCS / "audit.md", "## The findings"))
    documented = {row[0].strip("`"): row[1] for row in rows if len(row) == 4}
    documented.pop("class")
    assert documented == {name: str(severity) for name, severity in CLASSES.items()}


# SQL


def sql_blocks() -> list[Any]:
    return [
        pytest.param(block.text, id=f"{document.stem}:{block.line}")
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language == "sql"
    ]


@pytest.mark.parametrize("query", sql_blocks())
def test_a_query_answers_something_about_a_database_with_a_past(query: str, scene: Path) -> None:
    with closing(sqlite3.connect(f"file:{scene}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query).fetchall()
    assert bool(rows) != ("newest" in query), "no row is good news only where the page says so"


@pytest.mark.parametrize(
    "query", [each for each in sql_blocks() if (each.id or "").startswith("audit:")]
)
def test_a_query_answers_the_same_on_postgresql(
    query: str, scene: Path, scene_in_postgresql: str
) -> None:
    def answers(url: str) -> tuple[tuple[str, ...], int]:
        found = run_query(url, query, timeout_s=60, max_rows=1000)
        return found.columns, len(found.rows)

    assert answers(scene_in_postgresql) == answers(f"sqlite:///{scene}")


@pytest.fixture(scope="module")
def scene_in_postgresql(scene: Path, clusters: Any) -> Iterator[str]:
    """The same registry in PostgreSQL."""
    with clusters.get().database(migrated=False) as url:
        copy_database(f"sqlite:///{scene}", url)
        yield url


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three days behind it, in which something of every kind happened."""
    path = tmp_path_factory.mktemp("scene") / "registry.db"
    url = f"sqlite:///{path}"
    prepare(url)
    database = Database(url)
    try:
        _Past(database).happen()
    finally:
        database.close()
    return path


class _Past:
    """What happened, each at its time before now."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._now = database.clock()
        self._llama = {
            ArtifactKey("llama-3-8b", "_base", name): f"{name} of llama".encode()
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
        }

    def happen(self) -> None:
        with self._at(3 * DAY_MS) as (conn, now):
            adopt(conn, now, [Adoption(Policy(), "0.3.0")])
        self._attach(3 * DAY_MS, self._worker(101), self._llama, worker_name="gpu-a")
        self._attach(3 * DAY_MS, self._worker(102), self._llama)
        self._hold_in_place(2 * DAY_MS)
        self._refuse(30 * HOUR_MS)
        self._attach(20 * HOUR_MS, self._worker(201), self._llama, worker_name="gpu-a")
        self._expire_many(10 * HOUR_MS)
        old = {ArtifactKey("old-model", "_base", "config.json"): b"old"}
        self._attach(6 * HOUR_MS, self._worker(105), old)
        with self._at(5 * HOUR_MS) as (conn, now):
            removal = Removal("old-model", "_base", request_id="deploy-4711", actor="ops")
            unregister.remove(conn, now, [removal])
        with self._at(4 * HOUR_MS) as (conn, now):
            unregister.unregister(conn, now, [Unregistration(self._worker(105))])
        self._attach(2 * HOUR_MS, self._worker(402), self._llama, lease_ttl_ms=60_000)
        self._upload(20 * MINUTE_MS, b"never registered")
        shared = ArtifactKey("llama-3-8b", "law", "tokenizer.json")
        content = {shared: b"tokenizer.json of llama"}
        lora = Owner("prod", "backend", "generate", 102, "law")
        self._attach(90 * MINUTE_MS, lora, content)
        self._refuse(10 * MINUTE_MS)
        self._attach(100 * SECOND_MS, self._worker(401), self._llama, lease_ttl_ms=60_000)
        with self._at(50 * SECOND_MS) as (conn, now):
            leases.drain(conn, now, [leases.Drain(self._worker(102), 30_000)])

    def _hold_in_place(self, ago_ms: int) -> None:
        owner = self._worker(103)
        names = ("config.json", "tokenizer.json")
        keys = [ArtifactKey("phi-4", "_base", name) for name in names]
        artifacts = tuple(
            Artifact(
                key, checksum(str(key).encode()), 9, f"/models/phi-4/{key.filename}", "1:2:9:3:4"
            )
            for key in keys
        )
        with self._at(ago_ms) as (conn, now):
            register.register(conn, now, [Registration(owner, artifacts)])
            refs = conn.run_text(
                "SELECT owner_id, entry_id, path, checksum FROM holders WHERE slug = 'phi-4'"
            )
            states = (RefStatus.DRIFTED, RefStatus.MISSING)
            looks = [
                file_status.Observation(ref[0], ref[1], ref[2], ref[3], status)
                for ref, status in zip(refs, states, strict=True)
            ]
            file_status.observe(conn, now, looks)

    def _refuse(self, ago_ms: int) -> None:
        self._attach(ago_ms, self._worker(104), dict.fromkeys(self._llama, b"%d" % ago_ms))

    def _expire_many(self, ago_ms: int) -> None:
        """A fleet dies at once: the brake engages, an operator releases it, all expire."""
        for number in range(301, 305):
            key = ArtifactKey("llama-3-8b", f"lora-{number}", "adapter_config.json")
            owner = Owner("prod", "backend", "generate", number, key.suffix)
            self._attach(ago_ms, owner, {key: key.suffix.encode()}, lease_ttl_ms=60_000)
        for step in range(8):
            with self._at(ago_ms - step * 90 * SECOND_MS) as (conn, now):
                command = expire.Sweep(force=True, release_brake=step == 6)
                expire.sweep(conn, now, [command])

    def _attach(
        self, ago_ms: int, owner: Owner, contents: dict[ArtifactKey, bytes], **fields: Any
    ) -> None:
        for content in contents.values():
            self._upload(ago_ms, content)
        artifacts = tuple(Artifact(key, checksum(content)) for key, content in contents.items())
        with self._at(ago_ms) as (conn, now):
            register.register(conn, now, [Registration(owner, artifacts, **fields)])

    def _upload(self, ago_ms: int, content: bytes) -> None:
        upload = blobs.Upload(checksum(content), len(content), lambda: content)
        with self._at(ago_ms) as (conn, now):
            blobs.store_blobs(conn, now, [upload])

    @contextmanager
    def _at(self, ago_ms: int) -> Iterator[tuple[Connection, int]]:
        """A write transaction at a time before now."""
        self._database.clock = lambda: self._now - ago_ms
        with self._database.write() as conn:
            yield conn, conn.now

    @staticmethod
    def _worker(instance_id: int) -> Owner:
        return Owner("prod", "backend", "generate", instance_id)


# Promises


def test_every_test_that_is_named_exists() -> None:
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(
            r"^ *(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), re.M
        )
    }
    named = set(re.findall(r"`(test_\w+)`", prose(DOCS / "guarantees.md")))
    assert named, "no test is named"
    assert named - defined == set()


def test_every_rule_has_its_guarantees() -> None:
    rules = re.findall(r"^### (S\d+) ", prose(DOCS / "concepts.md"), re.M)
    assert rules == [f"S{number}" for number in range(1, 18)]
    page = DOCS / "guarantees.md"
    headings = re.findall(r"^## (S\d+ .*)$", prose(page), re.M)
    assert [heading.split()[0] for heading in headings] == rules
    assert [each for each in headings if "`test_" not in section(page, f"## {each}")] == []
