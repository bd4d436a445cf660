"""What a database URL may be. Whatever of it would not be used is refused, at every door."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry import MetadataArtifactRegistry
from registry.errors import DatabaseRefused
from registry.store.sqlite.address import sqlite_path
from tests.commands import run_here

REFUSED = {
    "sqlite:///registry.db?timeout=30": "question mark",
    "sqlite:///registry.db?": "question mark",
    "sqlite:///a?b/registry.db": "question mark",
    "sqlite:///file:registry.db?mode=ro&uri=true": "question mark",
    "sqlite:///file:registry.db": "file:",
    "sqlite:///file::memory:": "in-memory",
    "sqlite:///:memory:": "in-memory",
    "sqlite://": "in-memory",
    "sqlite:///": "in-memory",
    "sqlite://registry.db": "three slashes",
    "sqlite://localhost/registry.db": "three slashes",
    "sqlite://user:secret@/registry.db": "three slashes",
    "sqlite://user:secret@host:1/registry.db": "three slashes",
    "sqlite+aiosqlite:///registry.db": "driver",
    "sqlite+pysqlcipher:///registry.db": "driver",
    "mysql+pymysql://user:secret@host/registry?charset=utf8": "another database",
    "sqlite:///registry.db#main": "fragment",
    "sqlite:///registry%0A.db": "control character",
    "sqlite:///registry%00.db": "control character",
    "sqlite:///registry.db%20": "control character",
    "sqlite:///registry.db ": "control character",
    "sqlite:///registry.db\n": "control character",
    " sqlite:///registry.db": "control character",
    "sqlite:///a\tb.db": "control character",
    "registry.db": "no database URL",
    "/var/lib/registry.db": "no database URL",
    "file:registry.db": "no database URL",
    "sqlite:/user:secret@host": "no database URL",
}
DOORS = [
    ("serve", "--port", "0"),
    ("db", "upgrade"),
    ("db", "downgrade", "0001", "--yes"),
    ("db", "current"),
    ("db", "check"),
    ("db", "backup", "copy"),
    ("db", "restore", "copy"),
    ("audit",),
    ("verify",),
    ("sweep",),
    ("sweep", "--dry-run"),
    ("sql", "SELECT 1"),
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_would_not_be_used_is_refused_with_the_form_that_is(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatabaseRefused) as refused:
        MetadataArtifactRegistry(url)
    assert REFUSED[url] in refused.value.detail
    assert "secret" not in refused.value.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("door", DOORS, ids=" ".join)
def test_every_command_that_opens_a_database_refuses_options(
    door: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here(*door, REGISTRY_DATABASE_URL="sqlite:///registry.db?timeout=30")
    assert done.returncode == 2
    assert "question mark" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_have_any_character_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old name#1.db").touch()
    for url, path in {
        "sqlite:///registry.db": "registry.db",
        "sqlite+pysqlite:///registry.db": "registry.db",
        "sqlite:///./file:odd": "./file:odd",
        "sqlite:////c# & d (ü)/registry.db": "/c# & d (ü)/registry.db",
        "sqlite:///a%3Fb/100%25/c%20d.db": "a?b/100%/c d.db",
        "sqlite:///old name#1.db": "old name#1.db",
    }.items():
        assert sqlite_path(url) == path
