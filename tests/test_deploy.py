"""What is under `deploy/` is true to the program, and is reached from the documentation."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry import cli
from registry.config import OTHER_VARIABLES, SETTINGS, Settings
from registry.server.routes.table import CALLS
from tests.documents import links, section
from tests.kustomizations import build
from tests.support import ROOT
from tests.test_docs import DOCS, table_rows
from tests.test_kubernetes_manifests import KUSTOMIZATIONS, containers, pods

DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
IMAGE = DEPLOY / "Containerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"
PORTS = {"registry": Settings().port, "mirror": 8091}
MIRROR_PATHS = {"/metrics", "/health"}


def name_of(path: Path) -> str:
    return path.relative_to(DEPLOY).as_posix()


of_every_file = pytest.mark.parametrize("path", FILES, ids=name_of)


# The documentation


def reached() -> set[Path]:
    """Every file that a reader comes to from docs/README.md."""
    found, todo = set[Path](), [DOCS / "README.md"]
    while todo:
        page = todo.pop()
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target not in found and target.is_file():
                found.add(target)
                todo += [target] if target.suffix == ".md" else []
    return found


def test_every_file_is_reached_from_the_documentation() -> None:
    assert [name_of(path) for path in FILES if path not in reached()] == []


def test_a_file_that_names_a_page_names_one_that_is_there() -> None:
    for path in FILES:
        for page in re.findall(r"docs/[a-z-]+\.md", path.read_text()):
            assert (ROOT / page).is_file(), f"{name_of(path)}: {page}"


# Variables, flags, ports, paths


@of_every_file
def test_every_variable_is_one_of_ours(path: Path) -> None:
    named = set(re.findall(r"\bREGISTRY_[A-Z_]+\b", path.read_text()))
    assert named - {setting.variable for setting in SETTINGS} - OTHER_VARIABLES == set()


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile, each with its words in one line."""
    lines = [line for line in IMAGE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command of ours that is given somewhere, with where it stands."""
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["metadata-registry"]
    yield "Containerfile: CMD", json.loads(found["CMD"])
    check = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2])
    assert check[0] == "metadata-registry"
    yield "Containerfile: HEALTHCHECK", check[1:]
    for folder in KUSTOMIZATIONS:
        for name, pod in pods(build(folder)):
            for container in containers(pod):
                yield f"{name}: {container['name']}", container["args"]
    unit = (DEPLOY / "metadata-registry.service").read_text()
    (start,) = re.findall("^ExecStart=(.*)$", unit, re.M)
    yield "unit", shlex.split(start)[1:]
    for name, service in compose()["services"].items():
        if "build" in service and "command" in service:
            yield f"compose: {name}", service["command"]


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_command_line_is_understood() -> None:
    lines = list(command_lines())
    assert len(lines) >= 8
    for where, (name, *words) in lines:
        command = cli._loaded(cli.COMMANDS[name][0])
        context = command.make_context(name, words)  # Raises what it would be answered.
        assert not context.args, where


def test_the_documents_name_files_and_commands_of_deploy_that_are_there() -> None:
    for page in ("install.md", "kubernetes.md"):
        text = (DOCS / page).read_text()
        for path in re.findall(r"\bdeploy/[\w./-]+", text):
            assert (ROOT / path.rstrip("./")).exists(), f"{page}: {path}"


def test_ports_are_those_that_are_listened_on() -> None:
    assert dict(instructions())["EXPOSE"] == str(PORTS["registry"])
    for folder in KUSTOMIZATIONS:
        objects = build(folder)
        for _, pod in pods(objects):
            for container in containers(pod):
                for port in container.get("ports", ()):
                    assert port["containerPort"] == PORTS[container["name"]]
        for each in objects:
            if each["kind"] == "Service":
                assert [port["port"] for port in each["spec"]["ports"]] == [PORTS["registry"]]
    (published,) = compose()["services"]["registry"]["ports"]
    assert published == f"127.0.0.1:{PORTS['registry']}:{PORTS['registry']}"
    scraped = yaml.safe_load((DEPLOY / "monitoring/prometheus.yaml").read_text())
    ports = [job["dns_sd_configs"][0]["port"] for job in scraped["scrape_configs"]]
    assert ports == [PORTS["registry"], PORTS["mirror"]]
    assert f"server replica:{PORTS['registry']}" in (DEPLOY / "nginx.conf").read_text()


def test_probed_paths_are_answered() -> None:
    known = {call.path for call in CALLS if call.method == "GET"}
    for folder in KUSTOMIZATIONS:
        for _, pod in pods(build(folder)):
            for container in containers(pod):
                paths = {
                    container[probe]["httpGet"]["path"]
                    for probe in ("startupProbe", "livenessProbe", "readinessProbe")
                    if probe in container
                }
                assert paths <= (MIRROR_PATHS if container["name"] == "mirror" else known)
    for location in re.findall(r"location (/\S*)", (DEPLOY / "nginx.conf").read_text()):
        assert any(call.path.startswith(location) for call in CALLS), location


# Metrics


def metrics() -> set[str]:
    """Every metric of ours; other tests hold the tables complete and true."""
    rows = table_rows(section(DOCS / "operations.md", "## Metrics"))[1:]
    rows += table_rows(section(DOCS / "operations.md", "## A mirror"))[1:]
    return {name for row in rows for name in re.findall("`([^`]+)`", row[0])}


@of_every_file
def test_every_metric_is_one_of_ours(path: Path) -> None:
    named = re.findall(r"\b(?:metadata_registry|process)_[a-z_]+\b", path.read_text())
    plain = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert plain - metrics() - {"metadata_registry"} == set()


# The image and compose


def test_the_image_is_built_as_a_careful_reader_wants_it() -> None:
    found = instructions()
    by_name = dict(found)
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert all(re.fullmatch(r"docker\.io/library/python:\$\{PYTHON\}-slim", each) for each in bases)
    assert not {"ADD", "MAINTAINER", "SHELL"} & by_name.keys()
    user, _, group = by_name["USER"].partition(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(by_name[name]), list), "no shell is needed"
    assert "org.opencontainers.image.licenses" in by_name["LABEL"]
    for name, rest in found:
        if name == "RUN" and "pip" in rest:
            assert "--require-hashes" in rest or "--no-index" in rest
    assert by_name["VOLUME"] == by_name["WORKDIR"] == "/data"
    assert by_name["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint has no wheel for this machine")
def test_the_containerfile_has_nothing_that_hadolint_finds() -> None:
    done = subprocess.run([HADOLINT, IMAGE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_is_made_of_is_there_and_nothing_else_is_sent() -> None:
    copied = [
        word
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)
    lines = (ROOT / ".containerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied)


def test_the_services_of_compose_are_closed_and_their_files_are_there() -> None:
    found = compose()
    for name, service in found["services"].items():
        assert re.search(r":v?\d[\w.-]*$", service["image"]) or "build" in service, name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in found["volumes"] or (DEPLOY / source).is_file(), f"{name}: {volume}"
        if "build" in service:
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    profiles = {name: service.get("profiles") for name, service in found["services"].items()}
    assert [name for name, profile in profiles.items() if profile is None] == ["registry"]
    assert {name for name, each in profiles.items() if each == ["fleet"]} == {
        *("postgres", "replica", "nginx"),
    }
    assert found["services"]["replica"]["deploy"]["replicas"] == 2
