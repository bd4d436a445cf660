"""What the service says of itself: who can read it, how much it is, and what it keeps to itself."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.core.log_pump import LogPump
from registry.core.logs import JsonFormatter, TextFormatter, fields, tell
from registry.core.records import ArtifactKey, Owner
from registry.server import tokens
from registry.server.tokens import Role
from tests.exchanges import Line
from tests.support import Server, bearer, checksum, copied, owner_body, sql, wait_for

OWNER = Owner("logs", "backend", "generate", 1)
KEY = ArtifactKey("model", "_base", "config.json")
CONTENT = b'{"marker": "CONTENT-OF-A-FILE"}'


def lines_of(server: Server) -> list[dict[str, Any]]:
    """The records of a log that is written as JSON."""
    return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]


def answered(server: Server, **wanted: object) -> list[dict[str, Any]]:
    """The access lines with these fields."""
    return [
        line
        for line in lines_of(server)
        if line["logger"] == "registry.access" and wanted.items() <= line.items()
    ]


def test_a_request_is_one_line_with_what_it_was_and_what_became_of_it(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    _, token = tokens.create(tmp_path / "tokens.toml", Role.ADMIN, name="root")
    server = serve(log_format="json", token_file=tmp_path / "tokens.toml", token=token)
    answer = server.client.delete(f"/v1/owners/{OWNER}", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    wait_for(lambda: answered(server, method="DELETE") != [])
    (line,) = answered(server, method="DELETE")
    assert line.pop("milliseconds") > 0
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "registry.access",
        "message": "answered",
        "method": "DELETE",
        "path": f"/v1/owners/{OWNER}",
        "route": "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}",
        "status": 200,
        "request_id": "mine-1",
        "actor": "root",
    }


def test_the_request_id_leads_from_the_answer_to_the_log_and_the_journal(
    serve: Callable[..., Server],
) -> None:
    server = serve(log_format="json")
    registered = server.register_copies(OWNER, {KEY: CONTENT})
    request_id = registered.headers["x-request-id"]
    wait_for(lambda: answered(server, request_id=request_id) != [])
    with sql(server.database) as connection:
        rows = connection.execute(
            "SELECT DISTINCT request_id FROM events WHERE kind <> 'uploaded'"
        ).fetchall()
    assert rows == [(request_id,)]


def test_reads_and_probes_are_told_of_at_debug_only_and_errors_always(
    serve: Callable[..., Server],
) -> None:
    quiet, loud = serve(log_format="json"), serve(log_format="json", log_level="debug")
    assert quiet.register_copies(OWNER, {KEY: CONTENT}).status_code == 200
    for server in (quiet, loud):
        for _ in range(2):
            assert server.fetch(KEY).status_code == 200
        etag = f'"{checksum(CONTENT)}"'
        assert server.fetch(KEY, if_none_match=etag).status_code == 304
        assert server.client.get("/metrics").status_code == 200
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/v1/metadata/none/_base/x").status_code == 404
        assert server.client.get("/v1/owners").status_code == 200
        wait_for(lambda server=server: answered(server, path="/v1/owners") != [])  # type: ignore[misc]
    told = {(line["path"], line["status"]) for line in answered(quiet)}
    assert told == {
        (f"/v1/blobs/{checksum(CONTENT)}", 201),
        ("/v1/registrations", 200),
        ("/v1/metadata/none/_base/x", 404),
        ("/v1/owners", 200),
    }
    assert len(answered(loud, path=f"/v1/metadata/{KEY}", status=200, level="debug")) == 2
    assert len(answered(loud, path=f"/v1/metadata/{KEY}", status=304)) == 1
    for path in ("/live", "/health", "/metrics"):
        assert answered(loud, path=path, level="debug")
    missing = answered(quiet, status=404)
    assert [(line["level"], line["code"]) for line in missing] == [("info", "not_registered")]


def test_what_the_service_could_not_do_is_a_warning_with_its_cause(
    serve: Callable[..., Server],
) -> None:
    server = serve(log_format="json", busy_timeout_s=0.1, log_level="warning")
    with sql(server.database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert server.client.delete(f"/v1/owners/{OWNER}").status_code == 503
        connection.execute("ROLLBACK")
    wait_for(lambda: answered(server, status=503) != [])
    (line,) = answered(server, status=503)
    assert (line["level"], line["code"]) == ("warning", "busy")
    assert "locked" in line["detail"]


SECRETS = ("TOKEN-OF-SOMEBODY", "QUERY-SECRET", "COOKIE-SECRET", "CONTENT-OF-A-FILE", "PASSWORD")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_and_no_content_is_ever_logged(
    serve: Callable[..., Server], tmp_path: Path, log_format: str
) -> None:
    _, token = tokens.create(tmp_path / "tokens.toml", Role.ADMIN)
    server = serve(
        log_format=log_format,
        log_level="debug",
        token_file=tmp_path / "tokens.toml",
        token=token,
        require_read_token=True,
    )
    assert server.register_copies(OWNER, {KEY: CONTENT}).status_code == 200
    assert server.fetch(KEY).content == CONTENT
    wrong = {
        **bearer("mreg_TOKEN-OF-SOMEBODY"),
        "cookie": "session=COOKIE-SECRET",
        "proxy-authorization": "Basic PASSWORD",
    }
    server.client.get("/v1/owners?token=QUERY-SECRET", headers=wrong)
    server.client.get("/v1/metadata/a/_base/b?token=QUERY-SECRET", headers=wrong)
    server.client.get("/v1/owners?token=QUERY-SECRET")
    server.client.post("/v1/registrations", content=CONTENT, headers={"cookie": wrong["cookie"]})
    body = {"owner": owner_body(OWNER), "artifacts": [copied(KEY, b"x")], "PASSWORD": 1}
    server.client.post("/v1/registrations", json=body)
    server.client.put(f"/v1/blobs/{checksum(b'other')}", content=CONTENT)
    with Line(server) as line:
        line.send(b"GET / HTTP/1.1\r\nAuthorization: Bearer TOKEN-OF-SOMEBODY\r\nnonsense\r\n\r\n")
        line.read_rest()
    with Line(server) as line:
        line.ask("/live", "Authorization: Bearer TOKEN-OF-SOMEBODY" + "x" * 100_000)
        line.read_rest()
    server.stop()
    assert "status=401" in server.log or '"status": 401' in server.log
    for secret in (*SECRETS, token, token.removeprefix("mreg_")):
        assert secret not in server.log


def test_what_comes_from_outside_cannot_break_a_line(serve: Callable[..., Server]) -> None:
    server = serve()
    with Line(server) as line:
        for target in ("/a%0aINFO%20forged", "/a%1b[31mred", "/%F0%9F%98%80"):
            line.ask(target, "X-Request-Id: a\tb")
            assert line.read_answer().status_code == 404
    server.client.get("/v1/metadata/a/_base/%0aforged%1b")
    server.client.get("/v1/owners/a/b/c/%0a/_base")
    server.client.get("/end")
    wait_for(lambda: "/end" in server.log)
    lines = server.log.splitlines()
    assert all(line.isprintable() for line in lines)
    assert all(line[:2] == "20" for line in lines if not line.startswith("listening"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_and_an_end_say_only_what_matters(
    serve: Callable[..., Server], workers: int
) -> None:
    server = serve(workers=workers, from_nothing=True)
    server.stop()
    lines = server.log.splitlines()
    assert "with schema revision" in lines[0]
    assert " INFO registry serving address=" in lines[1]
    assert lines[2].startswith("listening on ")
    assert lines[3].endswith("INFO registry the service has ended")
    assert len(lines) == 4


@pytest.fixture
def pumped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[logging.Formatter], list[str]]]:
    """Sends the log of this process into a pipe, as the service does; gives the lines so far."""
    read, write = os.pipe()
    pump = LogPump(write)
    monkeypatch.setattr(logging.getLogger(), "handlers", [pump])
    os.set_blocking(read, False)

    def lines(form: logging.Formatter) -> list[str]:
        pump.setFormatter(form)
        pump.flush()
        with suppress(BlockingIOError):
            return os.read(read, 1 << 16).decode().splitlines()
        return []

    yield lines
    pump.close()
    os.close(read)


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()])
def test_a_line_is_the_same_with_a_record_and_without(
    pumped: Callable[[logging.Formatter], list[str]], form: logging.Formatter
) -> None:
    pumped(form)
    log = logging.getLogger("registry.access")
    values: dict[str, object] = {
        "path": "/v1/a\u001b[31m\nb\u202e",
        "status": 200,
        "milliseconds": 0.25,
        "actor": None,
        "code": "none",
        "detail": 'a "quoted" ä',
    }
    log.warning("answered", extra=fields(**values))
    tell(log, logging.WARNING, "answered", values)
    first, second = (re.sub(r"[-\d]+T[:\d.]+Z", "NOW", line) for line in pumped(form))
    assert first == second


@pytest.mark.parametrize("where", ["filter", "handler", "no propagation", "level"])
def test_whoever_hears_or_filters_the_log_is_not_passed_over(
    pumped: Callable[[logging.Formatter], list[str]], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pumped(TextFormatter())
    log, above = logging.getLogger("registry.access"), logging.getLogger("registry")
    heard: list[logging.LogRecord] = []
    if where == "filter":
        monkeypatch.setattr(log, "filters", [lambda record: False])
    elif where == "handler":
        handler = logging.Handler()
        monkeypatch.setattr(handler, "emit", heard.append)
        monkeypatch.setattr(above, "handlers", [handler])
    elif where == "no propagation":
        monkeypatch.setattr(above, "propagate", False)
    else:
        monkeypatch.setattr(logging.getLogger().handlers[0], "level", logging.ERROR)
    tell(log, logging.WARNING, "answered", {"status": 200})
    assert len(pumped(TextFormatter())) == len(heard) == (where == "handler")


def test_a_traceback_is_one_json_record() -> None:
    record = failing_record()
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "it failed: a\nb"
    assert found["trace"].endswith("ValueError: wrong")
    assert found["path"] == "/tmp"


def test_a_traceback_follows_its_readable_line() -> None:
    first, *trace = TextFormatter().format(failing_record()).splitlines()
    assert first.endswith("ERROR registry it failed: a\\nb path=/tmp count=3")
    assert trace[-1] == "  ValueError: wrong"


def failing_record() -> logging.LogRecord:
    try:
        raise ValueError("wrong")
    except ValueError:
        return logging.getLogger("registry").makeRecord(
            "registry",
            logging.ERROR,
            __file__,
            1,
            "it failed: %s",
            ("a\nb",),
            sys.exc_info(),
            extra=fields(path=Path("/tmp"), count=3, left_out=None),
        )
