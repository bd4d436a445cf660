"""Every command on a registry in PostgreSQL: it works, and says the same of the same rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.commands import run_here
from tests.every_command import CASES, KEY, World, a_world, words_of
from tests.forks import Done, Forks, Surroundings
from tests.postgres import Cluster, Clusters
from tests.replicas import assert_sound_at, start

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class PostgresWorld(World):
    """A world whose databases are copies in PostgreSQL of those of another one."""

    cluster: Cluster
    source: str
    database_url: str

    def copy(self) -> str:
        return copied(self.source, self.cluster)

    def to_database(self) -> list[object]:
        return ["--database-url", self.database_url]


def copied(source: str, cluster: Cluster) -> str:
    url = cluster.new_database()
    done = run_here("db", "copy", "--from", source, "--to", url)
    assert done.returncode == 0, done
    return url


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with a_world(tmp_path_factory.mktemp("original")) as made:
        yield made


@pytest.fixture(scope="module")
def world(original: World, clusters: Clusters) -> Iterator[PostgresWorld]:
    cluster = clusters.get()
    source = f"sqlite:///{original.database}"
    served = copied(source, cluster)
    with start(served) as server:
        yield PostgresWorld(
            original.folder,
            server.url,
            original.model,
            original.database,
            original.numbers,
            server,
            cluster=cluster,
            source=source,
            database_url=copied(source, cluster),
        )
    assert_sound_at(served)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as made:
        yield made


NOT_THERE = {"db backup": "pg_dump"}
"""What PostgreSQL has tools of its own for."""


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_command_does_its_work_on_postgresql(
    world: PostgresWorld, forks: Forks, name: str
) -> None:
    done = run(forks, world, words_of(name, world))
    if name in NOT_THERE:
        assert done.returncode == 1
        assert NOT_THERE[name] in done.stderr
    else:
        assert done.returncode == CASES[name].code, done


SAME = [
    *(["sql", f"SELECT * FROM {view} ORDER BY 1, 2, 3"] for view in ("holders", "leaks")),
    ["sql", "SELECT id, kind, slug, owner_id, entry_id FROM events ORDER BY id"],
    ["audit"],
    ["db", "current"],
    ["verify"],
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_a_command_says_the_same_of_both_engines(
    original: World, world: PostgresWorld, forks: Forks, words: list[str]
) -> None:
    said = [
        run(forks, world, [*words, "--json", *each.to_database()]) for each in (original, world)
    ]
    first, second = (without_times(json.loads(each.stdout)) for each in said)
    assert first == second
    assert [each.returncode for each in said] == [0, 0]


@pytest.fixture(scope="module")
def services(original: World, clusters: Clusters) -> Iterator[list[str]]:
    """Services of either engine on the same rows, and nobody has asked for anything yet."""
    source = f"sqlite:///{original.database}"
    on_sqlite = f"sqlite:///{original.new('same.db')}"
    run_here("db", "copy", "--from", source, "--to", on_sqlite)
    with start(on_sqlite) as one, start(copied(source, clusters.get())) as other:
        yield [one.url, other.url]


@pytest.mark.parametrize("name", ["ls", "owners", "models", "explain", "events"])
def test_a_service_says_the_same_on_both_engines(
    original: World, services: list[str], forks: Forks, name: str
) -> None:
    words = [name, str(KEY)] if name == "explain" else [name]
    said = [run(forks, original, [*words, "--json", "--url", url]) for url in services]
    first, second = (without_times(json.loads(each.stdout)) for each in said)
    assert first == second
    assert str(KEY.slug) in json.dumps(first) or name == "owners"


def run(forks: Forks, world: World, words: list[Any]) -> Done:
    return forks.run(*words, surroundings=Surroundings(), directory=world.folder)


TIMES = re.compile(r"_s$|_at$|^at$|^since$|_ms$|^path$|^seconds$|^size$|_bytes$")


def without_times(value: Any) -> Any:
    """Without what differs from one moment, or one place, to the next."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if not TIMES.search(key)}
    return [without_times(each) for each in value] if isinstance(value, list) else value
