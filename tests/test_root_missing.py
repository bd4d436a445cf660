"""Files whose artifact root is not there, or not configured, any more: all are told (S12, S13)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.core.records import ArtifactKey
from tests.exchanges import journal, problem_of, worker
from tests.support import Server, in_place, wait_for

CONTENT = b"these bytes were registered"
OFTEN = (
    "-c",
    "from registry.service import root_checks as r; r.AGAIN_S = 1; import registry.cli as c; c.main()",
)
"""A program that looks again at once at what others noted as missing."""


def key(slug: str) -> ArtifactKey:
    return ArtifactKey(slug, "_base", "config.json")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(CONTENT)
    return tmp_path / "first", tmp_path / "second"


def register(server: Server, slug: str, root: Path) -> None:
    line = in_place(key(slug), root / "config.json")
    assert server.register(worker(slug), [line]).status_code == 200


def findings(server: Server) -> dict[str, int]:
    return dict(server.client.get("/v1/audit").json()["counts"])


def serveable(server: Server) -> dict[str, bool]:
    models = server.client.get("/v1/models").json()["models"]
    return {model["slug"]: model["serveable"] for model in models}


def warnings(server: Server) -> dict[str, Any]:
    return dict(server.client.get("/health").json()["warnings"])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_below_a_root_that_is_not_configured_any_more_is_told_of_everywhere(
    serve: Callable[..., Server], roots: tuple[Path, Path], workers: int
) -> None:
    first, second = roots
    server = serve(artifact_root=[first, second], workers=workers)
    register(server, "kept", first)
    register(server, "lost", second)
    assert server.stop() == 0
    server = serve(artifact_root=[first], workers=workers)
    wait_for(lambda: serveable(server) == {"kept": True, "lost": False})
    assert server.fetch(key("kept")).content == CONTENT
    problem = problem_of(server.fetch(key("lost")), 503, "unserveable")
    assert "--artifact-root" in problem["detail"]
    wait_for(lambda: "root_missing" in warnings(server).get("files_outside_roots", ""))
    assert findings(server)["root_missing"] == 1
    assert "missing_file" not in findings(server)
    [holder] = server.client.get(f"/v1/artifacts/{key('lost')}").json()["holders"]
    assert holder["status"] == "missing"
    renewed = server.client.post(f"/v1/owners/{worker('lost')}/renew").json()
    assert renewed["unserveable"] == 1
    assert "root_missing" in server.log
    assert server.stop() == 0
    server = serve(artifact_root=[first, second], workers=workers)
    wait_for(lambda: serveable(server) == {"kept": True, "lost": True})
    assert server.fetch(key("lost")).content == CONTENT
    assert "root_missing" not in findings(server)
    kinds = [event["kind"] for event in journal(server.database, "missing", "restored")]
    assert kinds == ["missing", "restored"]


def test_what_another_service_with_other_roots_noted_is_put_right(
    serve: Callable[..., Server], roots: tuple[Path, Path]
) -> None:
    mine = serve(artifact_root=[roots[0]], program=OFTEN)
    register(mine, "kept", roots[0])
    other = serve(artifact_root=[roots[1]])
    wait_for(lambda: serveable(other) == {"kept": False})
    assert other.stop() == 0
    wait_for(lambda: serveable(mine) == {"kept": True})
    assert "root_missing" not in findings(mine)


def test_without_any_root_what_is_in_place_is_lost_and_copies_are_not(
    serve: Callable[..., Server], roots: tuple[Path, Path]
) -> None:
    server = serve(artifact_root=[roots[0]])
    register(server, "lost", roots[0])
    assert server.stop() == 0
    server = serve(artifact_root=[])
    wait_for(lambda: findings(server).get("root_missing") == 1)
    assert serveable(server) == {"lost": False}


def test_a_root_that_goes_while_the_service_runs_is_noticed_and_one_that_comes_back_as_well(
    serve: Callable[..., Server], roots: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = roots
    server = serve(artifact_root=[first, second])
    register(server, "kept", first)
    register(server, "lost", second)
    shutil.move(second, tmp_path / "away")
    wait_for(lambda: "artifact_root" in warnings(server))
    assert str(second) in warnings(server)["artifact_root"]
    wait_for(lambda: serveable(server) == {"kept": True, "lost": False})
    assert findings(server)["root_missing"] == 1
    shutil.move(tmp_path / "away", second)
    wait_for(lambda: serveable(server) == {"kept": True, "lost": True})
    wait_for(lambda: not warnings(server).keys() & {"artifact_root", "files_outside_roots"})
    assert server.fetch(key("lost")).content == CONTENT
