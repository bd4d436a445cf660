"""Fixtures: a migrated database in a folder of its own, and service processes on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from registry.store.sqlite.engine import Database
from registry.store.sqlite.migrate import prepare
from tests.fleet import World
from tests.postgres import Cluster, Clusters
from tests.support import Server, assert_sound

# Chosen by HYPOTHESIS_PROFILE: `default` is for every run, `thorough` for a night or a change of
# the store. The database fixtures are shared by the examples of a test; each restores them.
settings.register_profile(
    "default",
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("default"), max_examples=3000, stateful_step_count=60
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


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
def world(database_path: Path) -> Iterator[World]:
    """A migrated database whose time is passed in."""
    opened = World(database_path)
    yield opened
    opened.close()


@pytest.fixture
def serve(database_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts service processes on the test's database; they are stopped when the test is over."""
    with ExitStack() as servers:

        def start(**flags: Any) -> Server:
            return servers.enter_context(Server(database_path, **flags))

        yield start


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service process for the tests of a module that take owners and keys of their own."""
    path = tmp_path_factory.mktemp("shared") / "registry.db"
    with Server(path) as started:
        yield started
    assert_sound(path)


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A service process with the settings as they come."""
    return serve()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """PostgreSQL servers for all tests of this process, one of each version that is asked for."""
    started = Clusters()
    yield started
    started.close()


@pytest.fixture
def cluster(clusters: Clusters) -> Cluster:
    """The PostgreSQL server of the newest version. Others have databases there: do not end it."""
    return clusters.get()


@pytest.fixture
def postgres_url(cluster: Cluster) -> Iterator[str]:
    """A migrated database in PostgreSQL."""
    with cluster.database() as url:
        yield url
