"""Fixtures: a migrated database in a folder of its own, and service processes on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from registry.store.opening import open_database
from tests.fleet import World
from tests.places import SQLITE, Place, Places
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


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` is: tests wait for processes and times half of the while."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture
def database_path(tmp_path: Path) -> Iterator[Path]:
    """Where a test's database is; checked when the test is over."""
    path = tmp_path / "registry.db"
    yield path
    if path.exists():
        assert_sound(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked for engines runs on each, if a database is among its fixtures."""
    mark = metafunc.definition.get_closest_marker("engines")
    if mark is not None and "engine_name" in metafunc.fixturenames:
        names = list(mark.args)
        metafunc.parametrize("engine_name", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine of all databases of a test: SQLite, unless it is marked for others."""
    name: str = getattr(request, "param", SQLITE)
    return name


@pytest.fixture(scope="module")
def places(engine_name: str, clusters: Clusters) -> Places:
    """Makes databases of the test's engine."""
    return Places(engine_name, clusters)


@pytest.fixture
def place(places: Places, tmp_path: Path) -> Iterator[Place]:
    """The test's database, which may have to be prepared; checked when the test is over."""
    with places.at(tmp_path) as made:
        yield made


@pytest.fixture
def database(place: Place) -> Iterator[Any]:
    """A migrated database."""
    place.migrate()
    opened = open_database(place.url)
    yield opened
    opened.close()


@pytest.fixture
def world(place: Place) -> Iterator[World]:
    """A migrated database whose time is passed in."""
    opened = World(place)
    yield opened
    opened.close()


@pytest.fixture
def serve(place: Place) -> Iterator[Callable[..., Server]]:
    """Starts service processes on the test's database; they are stopped when the test is over."""
    with ExitStack() as servers:

        def start(**flags: Any) -> Server:
            return servers.enter_context(Server(place, **flags))

        yield start


@pytest.fixture(scope="module")
def shared_server(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service process for the tests of a module that take owners and keys of their own."""
    with places.at(tmp_path_factory.mktemp("shared")) as made, Server(made) as started:
        yield started


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
