"""Alerts and dashboard: each alert fires and is silent where it should, each query of the dashboard
has an answer in a real Prometheus that scrapes a real service and a real mirror."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
import yaml

from registry.core.records import ArtifactKey, Owner
from tests.documents import anchors, section
from tests.support import ROOT, Server, assert_sound, wait_for

FOLDER = ROOT / "deploy/monitoring"
ALERTS = FOLDER / "alerts.yaml"
CASES = FOLDER / "alerts_test.yaml"
DASHBOARD = FOLDER / "grafana/metadata-registry.json"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
MISSING = "Debian's package prometheus is not installed"
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=MISSING)
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)
SCRAPES_MIN = 4
"""So many that every rate over four scrapes has what it needs."""


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


# Alerts


def test_every_alert_says_how_bad_it_is_and_leads_to_what_to_do() -> None:
    page = ROOT / "docs/operations.md"
    for each in alerts():
        assert each["labels"].keys() == {"severity"}
        assert each["labels"]["severity"] in ("warning", "critical")
        assert each["annotations"].keys() == {"summary", "description", "runbook"}
        path, _, anchor = each["annotations"]["runbook"].partition("#")
        assert ROOT / path == page
        assert anchor in anchors(page)
        text = section(page, f"### {each['alert']}")
        assert text.strip().startswith("Critical.") == (each["labels"]["severity"] == "critical")


def test_every_alert_is_explained_and_no_other() -> None:
    text = section(ROOT / "docs/operations.md", "## What to alert on")
    assert re.findall("^### (.*)$", text, re.M) == [each["alert"] for each in alerts()]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: dict[str, set[bool]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for each in case["alert_rule_test"]:
            fires.setdefault(each["alertname"], set()).add(bool(each["exp_alerts"]))
    assert fires == {each["alert"]: {True, False} for each in alerts()}


def promtool(*words: object) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *map(str, words)], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_well_formed() -> None:
    promtool("check", "rules", "--lint-fatal", ALERTS)
    promtool("check", "config", FOLDER / "prometheus.yaml")


@needs_promtool
def test_each_alert_fires_and_is_silent_where_it_should() -> None:
    promtool("test", "rules", CASES)


@needs_promtool
def test_an_alert_that_would_never_fire_is_found(tmp_path: Path) -> None:
    text = ALERTS.read_text().replace("metadata_registry_brake_engaged ==", "registry_brake ==")
    (tmp_path / ALERTS.name).write_text(text)
    shutil.copy(CASES, tmp_path)
    with pytest.raises(AssertionError, match="RegistryBrake"):
        promtool("test", "rules", tmp_path / CASES.name)


# The dashboard


def panels() -> list[dict[str, Any]]:
    return [each for each in json.loads(DASHBOARD.read_text())["panels"] if each["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query, with the title of its panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_panels_do_not_overlap_and_have_titles_and_units() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles)) >= 20
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    """What nobody looks at and nobody is woken by need not be counted."""
    looked_at = " ".join([*(query for _, query in queries()), ALERTS.read_text()])
    text = section(ROOT / "docs/operations.md", "## Metrics")
    named = set(re.findall(r"`(metadata_registry_\w+)`", text))
    shown = {name for name in named if re.search(rf"\b{name}(_bucket|_sum|_count)?\b", looked_at)}
    assert named - shown == set()


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes a service with all that it can measure, and a mirror; its URL."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "kv").mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(
            Server(
                folder / "registry.db",
                trust=ssl.create_default_context(cafile=folder / "ca.pem"),
                workers=2,
                tls_certificate=folder / "tls.pem",
                discovery=f"file:{folder / 'kv'}",
                public_url="https://localhost",
            )
        )
        stop = threading.Event()
        using = threading.Thread(target=use, args=(server, stop))
        using.start()
        stack.callback(using.join)
        stack.callback(stop.set)
        mirror = stack.enter_context(mirroring(folder, server))
        yield stack.enter_context(prometheus(folder, "{}:{}".format(*server.address), mirror))
    assert_sound(folder / "registry.db")


def use(server: Server, stop: threading.Event) -> None:
    """Writes and reads until it is told to stop, so that every rate is one of something."""
    key = ArtifactKey("mini", "_base", "config.json")
    number = 0
    while not stop.wait(0.2):
        number += 1
        server.register_copies(Owner("a", "b", "c", number % 20), {key: b"{}"}, lease_ttl_s=60)
        server.fetch(key)
        server.client.get("/v1/models")


@contextmanager
def mirroring(folder: Path, server: Server) -> Iterator[str]:
    """A mirror of an empty store; where its metrics are."""
    command = [sys.executable, "-m", "registry", "mirror", f"file:{folder / 'kv'}", "--port", "0"]
    command += ["--url", server.url, "--ca-file", str(folder / "ca.pem"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(read_object(process.stdout))["status_url"]
            yield url.removeprefix("http://")
        finally:
            process.terminate()


def read_object(lines: Any) -> str:
    """A JSON object that goes over several lines."""
    text = ""
    for line in lines:
        text += line
        if line.rstrip() == "}":
            break
    return text


@contextmanager
def prometheus(folder: Path, service: str, mirror: str) -> Iterator[str]:
    """Scrapes every second what a real one scrapes every quarter of a minute."""
    assert PROMETHEUS is not None
    tls = {"scheme": "https", "tls_config": {"ca_file": str(folder / "ca.pem")}}
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [at]}], **how}
        for job, at, how in (
            ("metadata-registry", service, tls),
            ("metadata-registry-mirror", mirror, {}),
        )
    ]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                found = re.search(r"Listening on.*address=(\S+:\d+)", line)
                if found and not found[1].endswith(":0"):
                    break
            else:
                raise AssertionError("Prometheus did not start")
            reading = threading.Thread(target=process.stderr.read, daemon=True)
            reading.start()
            yield f"http://{found[1]}"
        finally:
            process.terminate()
            process.wait(30)
            reading.join()


def rows(client: httpx2.Client, query: str) -> list[Any]:
    """What a Prometheus answers to a query."""
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    return list(answer["data"]["result"])


@needs_prometheus
@pytest.mark.timeout(180)
def test_no_panel_is_empty(tmp_path: Path) -> None:
    with watched(tmp_path) as url, httpx2.Client(base_url=url, trust_env=False) as asked:
        for job in ("metadata-registry", "metadata-registry-mirror"):
            scraped = f'count_over_time(up{{job="{job}"}}[1m]) >= {SCRAPES_MIN}'
            wait_for(lambda scraped=scraped: bool(rows(asked, scraped)))  # type: ignore[misc]
        missing = {f"{title}: {query}" for title, query in queries()}

        def all_answer() -> bool:
            for title, query in queries():
                plain = query.replace("$__rate_interval", "4s").replace("$instance", ".*")
                if any(row["value"][1] != "NaN" for row in rows(asked, plain)):
                    missing.discard(f"{title}: {query}")
            return not missing

        try:
            wait_for(all_answer, 30)
        except AssertionError:
            assert missing == set()
        for each in alerts():
            rows(asked, each["expr"])
