"""`metadata-registry doctor`: what is easily got wrong is found, with what to do about it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from registry.cli import checks
from registry.cli.checks import CheckState, NamedCheck, make_all, ok
from registry.cli.checks_database import check_past, check_space, compare_clocks
from registry.server import tokens
from registry.server.tokens import Role
from registry.store.sqlite import place
from tests.commands import run_here
from tests.exchanges import key_of, new_slug, worker
from tests.places import Place, on_both, on_sqlite
from tests.ports import free_port
from tests.support import Server, sql

pytestmark = on_both

ALL = (
    *("settings", "database", "file_system", "space", "clock", "open_files", "artifact_root"),
    *("access", "certificate", "address", "pages", "service", "service_clock", "token"),
    *("discovery", "public_url"),
)


@dataclass(frozen=True)
class Looked:
    """What a look said: of each check its state, and what to read of it."""

    code: int
    states: dict[str, str]
    said: dict[str, str]
    error: str


def look(*words: object, **variables: str) -> Looked:
    done = run_here("doctor", "--json", *words, **variables)
    answer = json.loads(done.stdout)
    lines = answer["checks"]
    states = {each["check"]: each["state"] for each in lines}
    said = {each["check"]: f"{each['found']} {each['todo']}" for each in lines}
    assert answer["status"] == ("failing" if "failed" in states.values() else "ok")
    assert done.returncode == int("failed" in states.values()), done
    if done.returncode:
        assert json.loads(done.stderr)["code"] == "refused"
    for each in lines:
        assert len(each["found"]) > 10, each
        assert each["todo"].endswith((".", "?")) or not each["todo"], each
    return Looked(done.returncode, states, said, done.stderr)


def of(place: Place, *more: object) -> list[object]:
    return ["--database-url", place.url, "--port", 0, *more]


def test_beside_a_running_service_all_is_well(shared_server: Server, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = look(
        *of(shared_server.place, "--url", shared_server.url),
        *("--artifact-root", tmp_path, "--public-url", shared_server.url),
        *("--discovery", f"file:{tmp_path / 'kv'}"),
    )
    assert found.code == 0
    assert set(found.states) >= set(ALL)
    is_file = shared_server.place.url.startswith("sqlite")
    expected = dict.fromkeys(ALL, "ok") | {"certificate": "skipped", "discovery": "note"}
    if not is_file:  # The servers of the tests run without fsync, which services warn of.
        expected |= {"file_system": "skipped", "space": "skipped", "service": "note"}
        assert "fsync" in found.said["service"]
    assert found.states == expected
    table = run_here("doctor", *of(shared_server.place, "--url", shared_server.url))
    assert table.returncode == 0
    assert table.stdout.splitlines()[0].split()[:2] == ["CHECK", "STATE"]
    assert len(table.stdout.splitlines()) == len(ALL) + 1


@on_sqlite
def test_before_the_first_start_it_says_what_will_be_made_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    found = look("--port", port)
    assert found.code == 0
    assert found.states["database"] == found.states["service"] == "note"
    assert "serve` makes it" in found.said["database"]
    assert f"Nothing answers at http://127.0.0.1:{port}" in found.said["service"]
    assert os.listdir(tmp_path) == []


@on_sqlite
@pytest.mark.parametrize(
    ("words", "check", "says"),
    [
        (["--database-url", "sqlite:////nowhere/registry.db"], "database", "mkdir -p /nowhere"),
        (["--database-url", "sqlite:///FOLDER/notes.txt"], "database", "notes.txt"),
        (["--database-url", "postgresql://127.0.0.1:9/none"], "database", "127.0.0.1"),
        (["--artifact-root", "/nowhere"], "artifact_root", "No such file or directory"),
        (["--artifact-root", "FOLDER/notes.txt"], "artifact_root", "no directory"),
        (["--token-file", "FOLDER/notes.txt"], "access", "chmod 600"),
        (["--token-file", "FOLDER/none.toml"], "access", "token new"),
        (["--require-read-token"], "access", "--token-file"),
        (["--host", "0.0.0.0"], "access", "--token-file"),
        (["--discovery-namespace", "prod"], "access", "--discovery"),
        (["--tls-certificate", "FOLDER/notes.txt"], "certificate", "notes.txt"),
        (["--host", "192.0.2.1", "--insecure"], "address", "no such address"),
        (["--url", "http://127.0.0.1:9"], "service", "does not answer"),
        (["--url", "127.0.0.1:8090"], "service", "http://127.0.0.1:8090"),
        (["--discovery", "etcd://127.0.0.1:9"], "discovery", "127.0.0.1:9"),
        (["--public-url", "http://127.0.0.1:9"], "public_url", "proxy and DNS"),
        (["--min-free-bytes", str(1 << 40)], "space", "Free some space"),
        (["--config", "FOLDER/none.toml"], "settings", "none.toml"),
        (["--brake-fraction", "2"], "settings", "brake-fraction"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_wrong_fails_its_check_and_no_other(
    tmp_path: Path, words: list[str], check: str, says: str
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "notes.txt").chmod(0o644)
    line = [word.replace("FOLDER", str(tmp_path)) for word in words]
    if "--database-url" not in line:
        line += ["--database-url", f"sqlite:///{tmp_path}/registry.db"]
    found = look(*line, *([] if "--port" in line else ["--port", 0]))
    assert [each for each, state in found.states.items() if state == "failed"] == [check]
    assert says in found.said[check]
    assert f"1 check fails: {check}. " in json.loads(found.error)["detail"]


@pytest.mark.parametrize("kind", ["none", "unknown", "reader", "writer"])
@pytest.mark.parametrize("reads_need_one", [False, True])
def test_a_token_is_tried(
    serve: Callable[..., Server], tmp_path: Path, kind: str, reads_need_one: bool
) -> None:
    if kind == "none" and reads_need_one:
        kind = "no token at all"
    file = tmp_path / "tokens.toml"
    made = {
        "unknown": "mreg_" + "0" * 43,
        "reader": tokens.create(file, Role.READ)[1],
        "writer": tokens.create(file, Role.WRITE, namespaces=["prod"])[1],
    }
    server = serve(token_file=file, require_read_token=reads_need_one or [], token=made["writer"])
    variables = {"REGISTRY_TOKEN": made[kind]} if kind in made else {}
    found = look(*of(server.place, "--url", server.url, "--token-file", file), **variables)
    state = {"none": "note", "reader": "note", "writer": "ok"}.get(kind, "failed")
    assert found.states["token"] == state, found
    assert found.states["service"] in ("ok", "note")
    assert found.states["access"] == "note"
    assert "None has the role admin" in found.said["access"]
    for token in made.values():
        assert token not in json.dumps(found.said) + found.error


def test_a_service_that_is_not_well_is_told_of(serve: Callable[..., Server]) -> None:
    server = serve(min_free_bytes=1 << 40)
    found = look(*of(server.place, "--url", server.url))
    if server.place.url.startswith("sqlite"):
        assert found.states["service"] == "failed"
        assert "disk: " in found.said["service"]
    else:
        assert found.states["service"] == "note"


@on_sqlite
def test_an_address_that_a_registry_has_is_fine_and_one_that_another_program_has_is_not(
    server: Server,
) -> None:
    port = server.url.rpartition(":")[2]
    database = ["--database-url", server.place.url]
    found = look(*database, "--port", port)
    assert (found.code, found.states["address"], found.states["service"]) == (0, "ok", "ok")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        threading.Thread(target=hang_up_on_all, args=(taken,), daemon=True).start()
        found = look(*database, "--port", taken.getsockname()[1])
    assert found.states["address"] == "failed"
    assert "--port" in found.said["address"]


def hang_up_on_all(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


@on_sqlite
def test_where_the_service_was_reached_is_looked_at_as_well(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    slug = new_slug()
    server.register_copies(worker(slug), {key_of(slug): b"{}"})
    found = look(*of(server.place, "--url", server.url))
    assert found.states["public_url"] == "ok"
    server.stop()
    found = look(*of(server.place))
    assert (found.code, found.states["public_url"]) == (0, "note")


@on_sqlite
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_database_that_may_not_be_written_is_told_of(server: Server) -> None:
    server.stop()
    path = server.place.url.removeprefix("sqlite:///")
    program = (
        "import os, sys\n"
        "from registry.cli.checks_database import _unless_writable as look\n"
        "os.setuid(1_234_567)\n"
        "print(look(sys.argv[1], os.path.dirname(sys.argv[1])))"
    )
    assert "may not be written by this user (1234567)" in printed(program, path)


def printed(program: str, *arguments: object) -> str:
    """What a program of its own process prints."""
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


@on_sqlite
def test_a_file_system_that_ruins_databases_fails_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 1 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {tmp_path} rw - nfs4 a:/b rw\n"
    )
    monkeypatch.setattr(place, "MOUNTS", mounts)
    url = f"sqlite:///{tmp_path}/registry.db"
    found = look("--database-url", url, "--port", 0)
    assert found.states["file_system"] == "failed"
    assert found.states["database"] == "skipped"
    assert "local disk" in found.said["file_system"]
    monkeypatch.setenv(place.ALLOWED_BY, "false")
    found = look("--database-url", url, "--port", 0, "--allow-unsafe-storage")
    assert (found.code, found.states["file_system"], found.states["database"]) == (
        0,
        "note",
        "note",
    )


@on_sqlite
def test_an_older_schema_is_no_failure_and_a_newer_one_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    assert run_here("db", "upgrade", "0001", "--database-url", url).returncode == 0
    found = look("--database-url", url, "--port", 0)
    assert (found.code, found.states["database"]) == (0, "note")
    assert "db upgrade" in found.said["database"]
    assert run_here("db", "upgrade", "--database-url", url).returncode == 0
    with sql(tmp_path / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        query = "UPDATE settings SET value = '9999' WHERE name = 'min_program_revision'"
        connection.execute(query)
    found = look("--database-url", url, "--port", 0)
    assert found.states["database"] == "failed"
    assert "newer version" in found.said["database"]


@on_sqlite
def test_a_certificate_is_read(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem = tmp_path / "chain.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    found = look("--tls-certificate", pem, "--port", 0, "--database-url", f"sqlite:///{tmp_path}/r")
    assert found.states["certificate"] in ("ok", "note")


# Pieces


@on_sqlite
@pytest.mark.parametrize(
    ("there", "state"),
    [(10_500, "ok"), (8_500, "ok"), (13_500, "note"), (7_000, "note"), (99_000, "failed")],
)
def test_clocks_may_differ_by_a_little(there: int, state: str) -> None:
    assert compare_clocks("clock", "it", 10_000, 11_000, there).state == state


@on_sqlite
def test_a_clock_that_went_back_is_noticed() -> None:
    assert check_past(100_000, 99_000).state is CheckState.OK
    behind = check_past(100_000, 50_000)
    assert behind.state is CheckState.FAILED
    assert "50 s behind" in behind.found


@on_sqlite
def test_room_for_a_copy_is_wished_for(tmp_path: Path) -> None:
    large = tmp_path / "registry.db"
    with large.open("wb") as file:
        file.truncate(1 << 43)
    line = check_space(str(tmp_path), str(large), 1)
    assert line.state is CheckState.NOTE
    assert "backup" in line.found


@on_sqlite
@pytest.mark.parametrize(("limit", "state"), [(40, "failed"), (1000, "note"), (9_000, "ok")])
def test_too_few_open_files_are_told_of(limit: int, state: str) -> None:
    program = (
        "import resource, sys\n"
        "from registry.cli.checks_here import check_open_files\n"
        "from registry.config import Settings\n"
        "limit = int(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 40), limit))\n"
        "print(check_open_files(Settings()).state)"
    )
    assert printed(program, limit) == f"{state}\n"


@on_sqlite
def test_what_hangs_fails_and_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIMIT_S", 0.3)
    began = time.monotonic()

    def hang() -> Any:
        time.sleep(5)

    lines = make_all([NamedCheck("hung", hang), NamedCheck("well", lambda: [ok("well", "It is.")])])
    assert time.monotonic() - began < 3
    assert [(line.check, line.state) for line in lines] == [("hung", "failed"), ("well", "ok")]
    assert "0.3 s" in lines[0].found
