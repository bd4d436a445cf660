"""Fixtures: a migrated database in a folder of its own, and service processes on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from registry.db.engine import Database
from registry.db.schema import prepare
from tests.support import Server, assert_sound


@pytest.fixture
def database_path(tmp_path: Path) -> Iterator[Path]:
    """Where a test's database is; checked when the test is over."""
    path = tmp_path / "registry.db"
    yield path
    if path.exists():
        assert_sound(path)


@pytest.fixture
def database(database_path: Path) -> Iterator[Database]:
    """A migrated database."""
    url = f"sqlite:///{database_path}"
    prepare(url)
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def serve(database_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts service processes on the test's database; they are stopped when the test is over."""
    with ExitStack() as servers:

        def start(**flags: Any) -> Server:
            return servers.enter_context(Server(database_path, **flags))

        yield start


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A service process with the settings as they come."""
    return serve()
