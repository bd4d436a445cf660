"""The command line as users meet it: separate processes, their output and their exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import __version__
from registry.cli import COMMANDS, output
from registry.cli.exit_codes import exit_code_of
from registry.cli.output import ProgressBar
from registry.cli.tables import Column, print_table
from registry.cli.text import counted, shown_size
from registry.config import SETTINGS
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.core.text import printable
from registry.errors import error_classes
from registry.store.tables import HEAD_REVISION
from tests.forks import TERMINAL, Done, Forks, Surroundings
from tests.support import ROOT, Server, copied, wait_for

CONTENTS = {"config.json": b"{}", "tokenizer.json": b"[1]" * 1000}
OWNER = "dynamo/backend/generate/7/_base"
ATTACH = ("--name", "Org/Tiny", "--endpoint", "dynamo/backend/generate", "--instance-id", "7")

Run = Callable[..., Done]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has set nothing, but for a cache of the test's own."""
    ours = {"PYTHONWARNINGS": "error", "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80"}
    rest = {name: value for name, value in os.environ.items() if "REGISTRY_" not in name}
    return rest | ours


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as made:
        yield made


@pytest.fixture
def run(tmp_path: Path, forks: Forks) -> Run:
    """Runs the command with arguments; keywords are variables."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*args: object, **variables: str) -> Done:
        surroundings = Surroundings(cache | variables)
        return forks.run(*args, surroundings=surroundings, directory=tmp_path)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory; one of its two metadata files is a symlink."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_bytes(CONTENTS["config.json"])
    (tmp_path / "blob").write_bytes(CONTENTS["tokenizer.json"])
    (directory / "tokenizer.json").symlink_to("../blob")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def rows_of(text: str) -> list[list[str]]:
    """The lines of a plain table, split at its gaps; the first is the header."""
    lines = [line.split("  ") for line in text.splitlines()]
    return [[cell.strip() for cell in line if cell.strip()] for line in lines]


# Help and usage


def test_the_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"metadata-registry {command}" in done.stdout
    assert done.stderr == ""


def test_every_setting_is_a_flag_of_serve_with_help_and_default(run: Run) -> None:
    text = " ".join(run("serve", "--help").stdout.split())
    for setting in SETTINGS:
        assert f"{setting.flag} " in text
        assert f"{setting.rule.help} Default: {setting.default_shown}." in text


def test_the_version_is_shown_and_differs_where_the_schema_does(run: Run) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"metadata-registry {__version__}\n")
    # 0.N.x knows the schema up to revision N: so a message that names versions tells them apart.
    assert int(__version__.split(".")[1]) == int(HEAD_REVISION)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["attach", "--help"]])
def test_simple_commands_load_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, contextlib, io, registry.cli as c\n"
        f"sys.argv[1:] = {arguments}\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    c.main()\n"
        "print(*sys.modules)"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "typer" in loaded
    assert not {"sqlalchemy", "starlette", "uvicorn", "alembic", "httpx2", "rich.table"} & loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "error: No such command 'nonsense'"),
        (["attach"], "error: Missing argument 'MODEL_DIR'"),
        (["attach", "model"], "error: Missing option '--name'"),
        (["serve", "--port", "x"], "error: Invalid value for '--port'"),
        (["serve", "--port", "65536"], "error: --port is 65536; it must be a whole number from 0"),
        (["serve", "--log-level", "loud"], "error: --log-level is 'loud'; it must be one of"),
        (["serve", "--config", "none.toml"], "error: The settings file none.toml cannot be read"),
        (["serve", "--artifact-root", "none"], "error: The artifact root none is not a directory"),
        (["detach", "a/b/c"], "error: An owner is namespace/component/endpoint/instance_id/suffix"),
        (["detach", "a/b/c/007/_base"], "error: instance_id is '007'"),
        (["owners", "a/b/c/-1/_base"], "error: instance_id is '-1'"),
        (["explain", "a/b"], "error: An artifact is SLUG/SUFFIX/FILENAME"),
        (["fetch", "Org/Tiny", "--url", "http://h"], "error: slug is 'Org/Tiny'"),
        (["fetch", "tiny", "--endpoint", "a/b"], "error: An endpoint is namespace/component/end"),
        (["ls", "--url", "h:8090"], "error: 'h:8090' is not the URL of a service"),
        (["attach", "none", *ATTACH], "error: 'none' cannot be listed: No such file"),
        (["attach", ".", *ATTACH], "error: '.' has no metadata file to register"),
        (["attach", ".", *ATTACH, "--lora", "__"], "error: The name '__' has no letter"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(
    run: Run, arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_alone_shows_the_help(run: Run) -> None:
    done = run()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_bad_variables_stop_serve_with_their_name(run: Run) -> None:
    done = run("serve", REGISTRY_WORKERS="many")
    assert done.returncode == 2
    assert done.stderr.startswith("error: REGISTRY_WORKERS is 'many'; it must be a whole number")


def test_a_service_that_does_not_answer_exits_2(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run("ls", REGISTRY_URL=f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: The service at http://127.0.0.1:{port} does not answer" in done.stderr


def test_every_error_has_an_exit_code() -> None:
    codes = {code: exit_code_of(cls()) for code, cls in error_classes().items()}
    refused = {code for code, exit_code in codes.items() if exit_code == 1}
    assert {"conflict", "not_registered", "unserveable", "checksum_mismatch"} <= refused
    assert not {"unreachable", "busy", "settings", "invalid", "file_unreadable"} & refused
    assert exit_code_of(PermissionError(13, "Permission denied", "out")) == 2


def test_errors_of_one_exit_code_are_told_apart_by_their_json(run: Run, server: Server) -> None:
    old, new = Owner("a", "b", "c", 1), Owner("a", "b", "c", 2)
    for owner in (old, new):
        assert server.register(owner, [], worker_name="w", lease_ttl_s=60).status_code == 200
    for owner, code in ((old, "superseded"), (Owner("a", "b", "c", 3), "lease_gone")):
        done = run("renew", owner, "--json", "--url", server.url)
        assert (done.returncode, done.stdout) == (1, "")
        problem = json.loads(done.stderr)
        assert list(problem)[:3] == ["code", "title", "detail"]
        assert problem["code"] == code


def test_going_back_is_asked_for_and_needs_a_yes(run: Run, tmp_path: Path, forks: Forks) -> None:
    database = ("--database-url", f"sqlite:///{tmp_path}/registry.db")
    assert run("db", "upgrade", *database).returncode == 0
    unasked = run("db", "downgrade", "0001", *database)
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert "There is no terminal to ask at: say --yes." in unasked.stderr
    assert run("db", "current", *database).stdout.startswith(HEAD_REVISION)
    done = run("db", "downgrade", "0001", "--yes", "--json", *database)
    assert json.loads(done.stdout) == {"before": HEAD_REVISION, "revision": "0001"}
    assert json.loads(run("db", "upgrade", "--json", *database).stdout) == {
        "before": "0001",
        "revision": HEAD_REVISION,
    }


def test_dropping_a_model_is_asked_for_and_shows_what_goes(run: Run, server: Server) -> None:
    """Whoever holds them, the files go; the owners stay."""
    base, lora = Owner("a", "b", "c", 1), Owner("a", "b", "c", 2, "tuned")
    keys = {suffix: ArtifactKey("tiny", suffix, "c.json") for suffix in ("_base", "tuned")}
    kept = ArtifactKey("other", "_base", "c.json")
    server.register_copies(base, {keys["_base"]: b"{}", kept: b"{}"})
    server.register_copies(lora, {keys["_base"]: b"{}", keys["tuned"]: b"[1]"})
    to = ("--url", server.url)

    def held() -> set[str]:
        artifacts = server.client.get("/v1/artifacts").json()["artifacts"]
        return {f"{each['slug']}/{each['suffix']}" for each in artifacts}

    everything = {"tiny/_base", "tiny/tuned", "other/_base"}
    shown = run("rm", "tiny", "--dry-run", *to)
    assert rows_of(shown.stdout) == [
        ["MODEL", "FILES", "SIZE", "HOLDERS"],
        ["tiny/_base", "1", "2 B", "2"],
        ["tiny/tuned", "1", "3 B", "1"],
    ]
    would = json.loads(run("rm", "tiny/tuned", "--dry-run", "--json", *to).stdout)
    assert [each["suffix"] for each in would["artifacts"]] == ["tuned"]
    unasked = run("rm", "tiny", *to)
    assert unasked.returncode == 2
    assert "say --yes" in unasked.stderr
    assert run("rm", "tiny", "--json", *to).returncode == 2
    assert held() == everything

    dropped = json.loads(run("rm", "tiny/tuned", "--yes", "--json", *to).stdout)
    assert [(each["owner"], each["released"]) for each in dropped] == [(None, 1)]
    assert held() == everything - {"tiny/tuned"}
    done = run("rm", "tiny", "--yes", *to)
    assert done.stdout == "Dropped 1 file of tiny, 2 refs released.\n"
    assert held() == {"other/_base"}
    owners = server.client.get("/v1/owners").json()["owners"]
    assert [(each["state"], each["refs"]) for each in owners] == [("active", 1), ("active", 0)]

    again = run("rm", "tiny", "--yes", *to)
    assert (again.returncode, again.stdout) == (1, "")
    assert "Nothing is registered under tiny." in again.stderr
    for wrong in ("Tiny", "tiny/", "tiny/_other", "tiny/_base/c.json", ""):
        assert run("rm", wrong, "--yes", *to).returncode == 2


# A model's life


def test_a_model_is_attached_shared_kept_and_removed(run: Run, server: Server, model: Path) -> None:
    url = {"REGISTRY_URL": server.url}
    attached = run("attach", model, *ATTACH, **url)
    assert attached.returncode == 0
    assert attached.stderr == ""
    lines = attached.stdout.splitlines()
    assert rows_of(attached.stdout)[:3] == [
        ["OUTCOME", "SIZE", "URL"],
        ["created", "2 B", f"{server.url}/v1/metadata/org_tiny/_base/config.json"],
        ["created", "3.0 kB", f"{server.url}/v1/metadata/org_tiny/_base/tokenizer.json"],
    ]
    assert lines[-2:] == ["2 files, 3.0 kB; uploaded 2", f"owner {OWNER}"]
    served = server.client.get(lines[1].split()[-1].removeprefix(server.url))
    assert served.content == b"{}"

    shared = run("attach", model, *ATTACH[:-1], "8", **url)
    assert [row[0] for row in rows_of(shared.stdout)[1:3]] == ["shared", "shared"]
    assert "uploaded 0" in shared.stdout
    other = shared.stdout.split()[-1]

    listed = rows_of(run("ls", **url).stdout)
    assert listed == [
        ["KEY", "SIZE", "HOLDERS", "CHECKSUM"],
        ["org_tiny/_base/config.json", "2 B", "2", checksum_of(b"{}")],
        ["org_tiny/_base/tokenizer.json", "3.0 kB", "2", checksum_of(CONTENTS["tokenizer.json"])],
    ]
    assert [row[:3] for row in rows_of(run("owners", **url).stdout)[1:]] == [
        [OWNER, "active", "2"],
        [other, "active", "2"],
    ]
    assert "org_tiny/_base/config.json" in run("owners", OWNER, **url).stdout

    explained = run("explain", "org_tiny/_base/config.json", **url)
    assert explained.returncode == 0
    assert checksum_of(b"{}") in explained.stdout
    assert OWNER in explained.stdout
    assert other in explained.stdout

    kept = run("detach", OWNER, **url)
    assert kept.returncode == 0
    assert rows_of(kept.stdout)[1] == ["kept", "org_tiny/_base/config.json", "1"]
    assert kept.stdout.endswith("released 2: removed 0, kept 2\n")
    removed = run("detach", other, **url)
    assert rows_of(removed.stdout)[1] == ["removed", "org_tiny/_base/config.json", "0"]
    assert removed.stdout.endswith("released 2: removed 2, kept 0\n")
    again = run("detach", other, **url)
    assert (again.returncode, again.stdout) == (0, "released 0: removed 0, kept 0\n")

    gone = run("explain", "org_tiny/_base/config.json", **url)
    assert gone.returncode == 1
    assert gone.stderr == "error: org_tiny/_base/config.json is not registered.\n"
    assert "removed" in gone.stdout


def test_json_is_that_of_the_service(run: Run, server: Server, model: Path) -> None:
    def answer(*args: object) -> Any:
        return json.loads(run(*args, "--json", "--url", server.url).stdout)

    attached = answer("attach", model, *ATTACH)
    assert attached["owner"]["instance_id"] == "7"
    assert attached["lease"] is None
    assert attached["artifacts"][0]["url"] == "/v1/metadata/org_tiny/_base/config.json"
    get = server.client.get
    assert answer("ls") == get("/v1/artifacts").json()
    assert answer("ls", "--filename", "config.json") == (
        get("/v1/artifacts", params={"filename": "config.json"}).json()
    )
    assert answer("owners") == get("/v1/owners").json()
    assert answer("owners", OWNER) == get(f"/v1/owners/{OWNER}").json()
    key = "org_tiny/_base/config.json"
    assert answer("explain", key) == get(f"/v1/artifacts/{key}").json()
    receipt = answer("detach", OWNER)
    assert (receipt["released"], len(receipt["removed"]), receipt["kept"]) == (2, 2, [])
    gone = answer("explain", key)
    assert gone["entry"] is None
    assert gone["events"] == get(f"/v1/artifacts/{key}").json()["events"]


def test_a_lora_is_attached_under_its_own_suffix(run: Run, server: Server, model: Path) -> None:
    done = run("attach", model, *ATTACH, "--lora", "My Adapter", "--url", server.url)
    assert "/v1/metadata/org_tiny/my_adapter/config.json" in done.stdout
    assert done.stdout.endswith("owner dynamo/backend/generate/7/my_adapter\n")


def test_without_an_instance_id_every_attach_is_another_owner(
    run: Run, server: Server, model: Path
) -> None:
    done = [run("attach", model, *ATTACH[:-2], "--url", server.url).stdout for _ in range(2)]
    owners = {Owner.parse(text.split()[-1]) for text in done}
    assert len(owners) == 2


def test_files_are_attached_in_place_below_an_artifact_root(
    run: Run, serve: Callable[..., Server], model: Path, tmp_path: Path
) -> None:
    server = serve(artifact_root=[tmp_path])
    done = run("attach", model.name, *ATTACH, "--in-place", "--url", server.url)
    assert done.returncode == 0
    assert "2 files, 3.0 kB; in place" in done.stdout
    explained = run("explain", "org_tiny/_base/tokenizer.json", "--url", server.url)
    assert f"  {tmp_path / 'blob'}  ok" in explained.stdout


def test_in_place_without_a_root_is_refused(run: Run, server: Server, model: Path) -> None:
    done = run("attach", model, *ATTACH, "--in-place", "--url", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no artifact root" in done.stderr


def test_a_conflict_names_the_keys_and_who_holds_them(
    run: Run, server: Server, model: Path
) -> None:
    holder = Owner("dynamo", "backend", "other", 1)
    key = ArtifactKey("org_tiny", "_base", "config.json")
    server.register_copies(holder, {key: b"other"})
    done = run("attach", model, *ATTACH, "--url", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    registered, offered = checksum_of(b"other")[:19], checksum_of(b"{}")[:19]
    assert done.stderr.splitlines()[1:] == [
        f"  {key}: registered {registered}, offered {offered}",
        f"    held by {holder} (active)",
    ]
    assert run("owners", OWNER, "--url", server.url).returncode == 1


def test_an_odd_file_is_left_out_and_pointed_out(run: Run, server: Server, model: Path) -> None:
    (model / "vocab.json").symlink_to("nowhere")
    done = run("attach", model, *ATTACH, "--url", server.url)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: 'vocab.json' is left out: it is a link to what cannot")
    assert len(done.stderr.splitlines()) == 1
    done = run("attach", model, *ATTACH, "--url", server.url, "--exclude", "vocab.*")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_file_that_a_model_needs_is_an_error_unless_it_is_excluded(
    run: Run, server: Server, model: Path
) -> None:
    (model / "tokenizer.json").unlink(missing_ok=True)
    (model / "tokenizer.json").symlink_to("nowhere")
    done = run("attach", model, *ATTACH, "--url", server.url)
    assert done.returncode == 2
    assert "tokenizer.json' is a link to what cannot be read" in done.stderr
    done = run("attach", model, *ATTACH, "--url", server.url, "--exclude", "tokenizer.json")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_is_fetched_into_a_directory(
    run: Run, server: Server, model: Path, tmp_path: Path
) -> None:
    run("attach", model, *ATTACH, "--url", server.url)
    done = run("fetch", "org_tiny", "--to", "out", "--url", server.url)
    assert done.returncode == 0
    assert rows_of(done.stdout)[1] == ["downloaded", "2 B", "out/config.json"]
    assert done.stdout.endswith("2 files, 3.0 kB, verified; downloaded 2\n")
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert fetched == CONTENTS

    again = run("fetch", "org_tiny", "--json", "--url", server.url)
    files = json.loads(again.stdout)["files"]
    assert [(each["filename"], each["downloaded"]) for each in files] == [
        ("config.json", False),
        ("tokenizer.json", False),
    ]
    assert Path(files[0]["path"]).read_bytes() == b"{}"
    assert Path(files[0]["path"]).is_relative_to(tmp_path / "cache/metadata-registry/blobs")

    missing = run("fetch", "org_tiny", "--suffix", "none", "--to", "none", "--url", server.url)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "error: Nothing is registered under org_tiny/none.\n"
    assert not (tmp_path / "none").exists()


def test_a_directory_that_cannot_be_made_exits_2(
    run: Run, server: Server, model: Path, tmp_path: Path
) -> None:
    run("attach", model, *ATTACH, "--url", server.url)
    (tmp_path / "file").write_text("in the way")
    done = run("fetch", "org_tiny", "--to", "file/out", "--url", server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


# Terminals, pipes, signals


def long_key(server: Server) -> str:
    key = ArtifactKey("s" * 100, "_base", "f" * 100 + ".json")
    server.upload(b"x")
    server.register(Owner("a", "b", "c", 1), [copied(key, b"x")])
    return str(key)


def test_keys_are_never_shortened_in_a_pipe(run: Run, server: Server) -> None:
    key = long_key(server)
    assert run("ls", "--url", server.url).stdout.splitlines()[1].split()[0] == key


@pytest.mark.parametrize("command", ["ls", "owners", "models", "explain"])
def test_no_name_is_broken_on_a_terminal_of_80_columns(
    forks: Forks, server: Server, tmp_path: Path, command: str
) -> None:
    owner = Owner("dynamo", "backend", "generate", 14594360683070792150)
    key = ArtifactKey("org_model-3-8b-instruct", "_base", "tokenizer_config.json")
    server.register_copies(owner, {key: b"x"}, worker_name="node-1-gpu-0", lease_ttl_s=60)
    names = {"ls": key, "owners": owner, "models": f"{key.slug}/{key.suffix}", "explain": owner}
    words = [command, *([key] if command == "explain" else []), "--url", server.url]
    on_terminal = Surroundings(stdout=TERMINAL)
    done = forks.run(*words, surroundings=on_terminal, directory=tmp_path)
    assert any(str(names[command]) in line for line in done.stdout.splitlines())
    wide = forks.run(*words, "--wide", surroundings=on_terminal, directory=tmp_path)
    piped = forks.run(*words, surroundings=Surroundings(), directory=tmp_path)
    plain = wide.stdout.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert [line.split()[:2] for line in plain.splitlines()] == [
        line.split()[:2] for line in piped.stdout.splitlines()
    ]


def test_lists_are_sorted_filtered_and_reduced_to_names(run: Run, server: Server) -> None:
    url = {"REGISTRY_URL": server.url}
    few, many = Owner("a", "b", "c", 1), Owner("z", "b", "c", 2)
    small, large = ArtifactKey("m", "_base", "a"), ArtifactKey("n", "_base", "b")
    server.register_copies(few, {small: b"x"}, worker_name="w", lease_ttl_s=60)
    server.register_copies(many, {small: b"x", large: b"long" * 99})
    server.client.post(f"/v1/owners/{few}/drain", json={})

    def names(*words: object) -> list[str]:
        return run(*words, "-q", **url).stdout.split()

    assert names("ls") == [str(small), str(large)]
    assert names("ls", "--sort", "size") == [str(large), str(small)]
    assert names("ls", "--sort", "holders") == [str(small), str(large)]
    assert names("owners", "--sort", "files") == [str(many), str(few)]
    assert names("owners", "--sort", "lease") == [str(few), str(many)]
    for option, value in (("--namespace", "a"), ("--worker", "w"), ("--state", "draining")):
        assert names("owners", option, value) == [str(few)]
    assert names("models", "--sort", "size") == ["n/_base", "m/_base"]
    assert names("models", "--slug", "m") == ["m/_base"]
    assert names("models", "--unserveable") == []
    listed = json.loads(run("models", "--sort", "size", "--json", **url).stdout)["models"]
    assert [each["slug"] for each in listed] == ["n", "m"]


def test_a_closed_pipe_is_quiet(run: Run, server: Server, environ: dict[str, str]) -> None:
    long_key(server)
    command = [sys.executable, "-m", "registry", "ls", "--url", server.url]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environ, timeout=60)
    os.close(writer)
    assert done.stderr == b""


def test_an_interrupt_exits_130_without_a_traceback(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "registry", "ls", "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_appears_when_work_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", 0.0)
    with ProgressBar() as progress:
        progress("Hashing", 1, 4)
        wait_for(lambda: "Hashing" in terminal.getvalue())
        progress("Uploading", 1, 4)
        wait_for(lambda: "Uploading" in terminal.getvalue())


def test_quick_work_leaves_no_trace_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with ProgressBar() as progress:
        progress("Hashing", 4, 4)
    assert terminal.getvalue() == ""
    assert threading.active_count() <= before


def test_no_progress_is_shown_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", 0.0)
    with ProgressBar() as progress:
        progress("Hashing", 1, 4)
    assert stderr.getvalue() == ""


def test_text_from_elsewhere_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("PATH")], [["/a\x1b[2J\n[red]ü"]])
    assert capsys.readouterr().out == "PATH\n/a\\x1b[2J\\n[red]ü\n"
    assert printable("\u202e\ud800") == "\\u202e\\ud800"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (999_950_000, "1.0 GB"),
        (2**40, "1099.5 GB"),
    ],
)
def test_sizes_are_short(size: int, text: str) -> None:
    assert shown_size(size) == text


def test_one_is_not_plural() -> None:
    assert (counted(1, "file"), counted(0, "file")) == ("1 file", "0 files")
