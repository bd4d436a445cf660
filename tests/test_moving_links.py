"""Paths that are given through symlinks are followed anew when what they lead to changes, and the
rule of what may be held holds each time (S13): a Kubernetes ConfigMap, a `current` release."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry import MetadataArtifactRegistry
from registry.client import Worker
from registry.core.records import ArtifactKey
from tests.commands import run_here
from tests.exchanges import journal, key_of, new_slug, problem_of, running, settle, worker
from tests.support import Server, checksum, in_place, wait_for

GOOD, OTHER = b'{"version": 1}', b'{"version": 2}'
LARGE = os.urandom(1_500_000)


@dataclass
class Volume:
    """A directory as Kubernetes mounts a ConfigMap: every file a link through `..data`."""

    at: Path
    count: int = 0

    def update(self, content: bytes, *, outside: bool = False, keep: bool = False) -> None:
        """Swap what all files lead to, at once."""
        before = self.at / os.readlink(self.at / "..data") if self.count else None
        self.count += 1
        name = f"..{self.at.name}-{self.count}"
        folder = (self.at.parent.parent / "outside" if outside else self.at) / name
        (folder / "nested").mkdir(parents=True)
        for each in ("a.json", "nested/b.json"):
            (folder / each).write_bytes(content)
        (self.at / "..tmp").symlink_to(folder if outside else name)
        os.replace(self.at / "..tmp", self.at / "..data")
        if before is not None and not keep:
            shutil.rmtree(before)

    def paths(self) -> list[Path]:
        return [self.at / "a.json", self.at / "nested/b.json"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("links").resolve()
    (base / "root").mkdir()
    (base / "link-root").symlink_to("root")
    return base


@pytest.fixture(scope="module")
def shared(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("moving")
    flags: dict[str, Any] = {"artifact_root": base / "link-root", "content_cache_bytes": 1 << 20}
    with running(folder, **flags) as server:
        yield server


@pytest.fixture
def slug() -> str:
    return new_slug()


def volume_at(folder: Path, slug: str, content: bytes = GOOD) -> Volume:
    volume = Volume(folder / slug)
    volume.at.mkdir()
    (volume.at / "a.json").symlink_to("..data/a.json")
    (volume.at / "nested").symlink_to("..data/nested")
    volume.update(content)
    return volume


@pytest.fixture(params=["root", "link-root"])
def volume(request: pytest.FixtureRequest, base: Path, slug: str) -> Volume:
    return volume_at(base / request.param, slug)


def held(server: Server, volume: Volume, slug: str) -> list[ArtifactKey]:
    keys = [key_of(slug, path.name) for path in volume.paths()]
    lines = [in_place(key, path) for key, path in zip(keys, volume.paths(), strict=True)]
    assert server.register(worker(slug), lines).status_code == 200
    return keys


def unserveable(server: Server, slug: str) -> int:
    settle(server)
    answer = server.client.post(f"/v1/owners/{worker(slug)}/renew")
    count: int = answer.json()["unserveable"]
    return count


def looks(server: Server, slug: str) -> list[str]:
    settle(server)
    return [
        e["kind"] for e in journal(server.database, "drifted", "missing", "restored", slug=slug)
    ]


@pytest.mark.parametrize("content", [GOOD, LARGE], ids=["small", "streamed"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_files_that_lead_to_the_same_bytes_elsewhere_are_served_without_a_pause(
    shared: Server, base: Path, slug: str, content: bytes, warm: bool
) -> None:
    volume = volume_at(base / "root", slug, content)
    keys = held(shared, volume, slug)
    for round_ in range(3):
        for key in keys:
            if warm or round_:
                assert shared.fetch(key).content == content
        volume.update(content, keep=round_ == 1)
        for key, path in zip(keys, volume.paths(), strict=True):
            assert shared.fetch(key).content == content
            assert shared.fetch(key, range="bytes=3-5").content == content[3:6]
            if round_ != 1:
                explained = shared.client.get(f"/v1/artifacts/{key}").json()
                [holder] = explained["holders"]
                assert (holder["path"], holder["status"]) == (os.path.realpath(path), "ok")
    assert looks(shared, slug) == []
    assert unserveable(shared, slug) == 0


def test_files_that_lead_to_other_bytes_are_not_served_and_their_worker_is_told(
    shared: Server, volume: Volume, slug: str
) -> None:
    keys = held(shared, volume, slug)
    assert unserveable(shared, slug) == 0
    volume.update(OTHER)
    for key in keys:
        problem_of(shared.fetch(key), 503, "unserveable")
    assert unserveable(shared, slug) == 2
    volume.update(GOOD)
    for key in keys:
        assert shared.fetch(key).content == GOOD
    assert unserveable(shared, slug) == 0
    assert looks(shared, slug) == ["drifted"] * 2 + ["restored"] * 2


def test_files_that_lead_out_of_the_root_are_not_served(
    shared: Server, volume: Volume, slug: str
) -> None:
    keys = held(shared, volume, slug)
    for key in keys:
        assert shared.fetch(key).content == GOOD
    volume.update(GOOD, outside=True)
    for key in keys:
        problem_of(shared.fetch(key), 503, "unserveable")
    assert unserveable(shared, slug) == 2
    (volume.at / "..data").unlink()
    volume.count = 0
    volume.at = volume.at.rename(volume.at.with_name(f"{slug}-away"))
    for key in keys:
        problem_of(shared.fetch(key), 503, "unserveable")


def test_a_file_that_became_a_link_to_the_same_bytes_in_the_root_is_served(
    shared: Server, base: Path, slug: str
) -> None:
    path = base / "root" / f"{slug}.json"
    path.write_bytes(GOOD)
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, path)])
    assert shared.fetch(key).content == GOOD
    path.rename(base / "root" / f"{slug}-moved.json")
    path.symlink_to(f"{slug}-moved.json")
    assert shared.fetch(key).content == GOOD
    path.unlink()
    path.symlink_to(base / "outside")
    (base / "root" / f"{slug}-moved.json").unlink()
    problem_of(shared.fetch(key), 503, "unserveable")


def test_what_changed_while_the_service_was_down_is_followed_when_it_is_back(
    serve: Callable[..., Server], base: Path, slug: str
) -> None:
    volume = volume_at(base / "root", slug)
    server = serve(artifact_root=base / "root")
    keys = held(server, volume, slug)
    server.stop()
    volume.update(GOOD)
    server = serve(artifact_root=base / "root")
    for key in keys:
        assert server.fetch(key).content == GOOD
    volume.update(GOOD, keep=True)
    done = run_here(
        *("audit", "--check-files", "--database-url", f"sqlite:///{server.database}"),
        *("--artifact-root", str(base / "root")),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_registry_in_process_follows_paths_anew(base: Path, tmp_path: Path, slug: str) -> None:
    volume = volume_at(base / "root", slug)
    with MetadataArtifactRegistry(f"sqlite:///{tmp_path}/registry.db", [base / "root"]) as registry:
        key = (slug, "_base", "a.json")
        registry.register(worker(slug), *key, volume.at / "a.json")
        volume.update(GOOD)
        assert registry.read(*key) == GOOD
        found = registry.get(*key)
        assert found is not None
        assert found.read_bytes() == GOOD
        [holder] = registry.explain(*key).holders
        assert holder.path == os.path.realpath(volume.at / "a.json")


def test_a_worker_warns_when_its_files_are_not_served(
    shared: Server, base: Path, slug: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base / "root" / slug
    folder.mkdir()
    (folder / "config.json").write_bytes(GOOD)
    owner = worker(slug)
    with Worker(shared.url, owner, lease_ttl_s=1) as held_by:
        held_by.attach(folder, name=slug, in_place=True)
        (folder / "config.json").write_bytes(OTHER)
        problem_of(shared.fetch(key_of(slug, "config.json")), 503, "unserveable")
        wait_for(lambda: "1 files of" in caplog.text)
        (folder / "config.json").write_bytes(GOOD)
        assert shared.fetch(key_of(slug, "config.json")).content == GOOD
    assert caplog.text.count("are not served from here") == 1
    assert checksum(GOOD) != checksum(OTHER)
