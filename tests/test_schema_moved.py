"""The schema moves under a running service: it says so, writes nothing, and is not ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry import MetadataArtifactRegistry, Owner
from registry.core.records import ArtifactKey
from registry.errors import StorageUnavailable
from registry.store.sqlite.file_guard import REPEATED_AFTER_S
from registry.store.tables import HEAD_REVISION
from tests.support import ROOT, Server, sql, wait_for

KEY = ArtifactKey("m", "_base", "config.json")
NEWER = "0099"


def owner(number: int) -> Owner:
    return Owner("ns", "c", "e", number)


def move(path: Path, revision: str, needed: str, *changes: str) -> None:
    """What another program's upgrade or downgrade does, in one transaction."""
    with sql(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.execute(
            "UPDATE settings SET value = ? WHERE name = 'min_program_revision'", (needed,)
        )
        for change in changes:
            connection.execute(change)
        connection.execute("COMMIT")


MOVES: dict[str, tuple[str, str, str, str, str]] = {
    "a newer program's": (
        NEWER,
        NEWER,
        "ALTER TABLE owners RENAME COLUMN state TO condition",
        "ALTER TABLE owners RENAME COLUMN condition TO state",
        "Install a newer version",
    ),
    "an older program's": (
        "0001",
        "0001",
        "ALTER TABLE events RENAME COLUMN owner_id TO former",
        "ALTER TABLE events RENAME COLUMN former TO owner_id",
        "db upgrade",
    ),
}


@pytest.mark.parametrize("whose", MOVES)
def test_a_service_whose_schema_moved_is_not_ready_and_says_why_until_it_is_moved_back(
    serve: Callable[..., Server], database_path: Path, whose: str
) -> None:
    revision, needed, there, back, says = MOVES[whose]
    server = serve()
    assert server.register_copies(owner(1), {KEY: b"{}"}).status_code == 200
    with sql(database_path) as connection:
        query = "SELECT value FROM settings WHERE name = 'min_program_revision'"
        ((needed_before,),) = connection.execute(query).fetchall()
    move(database_path, revision, needed, there)
    answer = server.register(owner(2), [])
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert "changed while it was in use" in answer.json()["detail"]
    assert says in answer.json()["detail"]
    for path in ("/v1/owners", "/v1/models", "/v1/audit"):
        assert server.client.get(path).status_code == 503
    wait_for(lambda: server.fetch(KEY).status_code == 503)
    health = server.client.get("/health")
    assert health.status_code == 503
    assert says in health.json()["checks"]["schema"]
    assert says in health.json()["checks"]["database"]
    wait_for(lambda: says in server.log)
    assert "Traceback" not in server.log
    move(database_path, HEAD_REVISION, needed_before, back)
    wait_for(lambda: server.client.get("/health").status_code == 200, REPEATED_AFTER_S + 30)
    assert server.register(owner(2), []).status_code == 200
    assert server.fetch(KEY).content == b"{}"


def test_a_newer_schema_that_admits_this_program_and_other_changes_stop_nobody(
    serve: Callable[..., Server], database_path: Path
) -> None:
    server = serve()
    server.register_copies(owner(1), {KEY: b"{}"})
    for number, change in enumerate(("CREATE TABLE note (text TEXT)", "DROP TABLE note"), 2):
        move(database_path, NEWER, HEAD_REVISION, change)
        assert server.register(owner(number), []).status_code == 200
        assert server.fetch(KEY).content == b"{}"
        move(database_path, HEAD_REVISION, HEAD_REVISION)
    with sql(database_path) as connection:
        connection.execute("VACUUM")
    assert server.register(owner(9), []).status_code == 200
    assert server.client.get("/health").status_code == 200


def test_a_registry_in_process_refuses_as_well(database_path: Path) -> None:
    file = ROOT / "README.md"
    with MetadataArtifactRegistry(f"sqlite:///{database_path}") as registry:
        registry.register(owner(1), "m", "_base", "a", file)
        move(database_path, NEWER, NEWER, "ALTER TABLE owners RENAME COLUMN state TO condition")
        with pytest.raises(StorageUnavailable, match="Install a newer version"):
            registry.register(owner(2), "m", "_base", "b", file)
        with pytest.raises(StorageUnavailable, match="Install a newer version"):
            registry.explain("m", "_base", "a")
        move(
            database_path,
            HEAD_REVISION,
            HEAD_REVISION,
            "ALTER TABLE owners RENAME COLUMN condition TO state",
        )
