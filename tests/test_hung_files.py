"""A file system that does not answer takes nothing with it that is not on it (S5, S9, S12): not the
probes, not renewals, not copies, not the files of other roots, and not the end of the process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.content.file_pools import THREADS_PER_PLACE
from registry.core.records import ArtifactKey
from tests.commands import run_here
from tests.exchanges import Line, journal, key_of, new_slug, problem_of, running, settle, worker
from tests.mounted import Mounted, mounted, needs_fuse
from tests.support import Server, copied, in_place, opened_by, owner_body, sql, wait_for

pytestmark = needs_fuse

LIMIT_S = 1.5
SOON_S = 20.0
"""Longer than anything takes that waits for no file, on a busy machine. Who waited for a file that
hangs would wait for ever."""
MANY = THREADS_PER_PLACE + 2
CONTENT = b'{"model_type": "llama"}'
LARGE = os.urandom(6 << 20)


@dataclass
class Scene:
    """A service with one root that can hang and one that is as it should be."""

    server: Server
    mount: Mounted
    fine: Path
    slug: str = field(default_factory=new_slug)

    @property
    def hung(self) -> Path:
        return self.mount.at

    def key(self, filename: str) -> ArtifactKey:
        return key_of(self.slug, filename)

    def register(self, number: int, filename: str, path: Path) -> httpx2.Response:
        return self.server.register(worker(self.slug, number), [in_place(self.key(filename), path)])

    def looks(self) -> list[str]:
        settle(self.server)
        return [
            event["kind"]
            for event in journal(self.server.database, "drifted", "missing", slug=self.slug)
        ]


FLAGS: dict[str, Any] = {"file_timeout_s": LIMIT_S, "content_cache_bytes": 1 << 20}


@contextmanager
def sick_and_fine(base: Path) -> Iterator[tuple[Mounted, Path]]:
    """A mount that can hang, and a directory beside it with a link into it."""
    source, fine = base / "source", base / "fine"
    for each in (source, fine):
        each.mkdir()
        (each / "a.json").write_bytes(CONTENT)
        (each / "large.json").write_bytes(LARGE)
        for number in range(MANY):
            (each / f"{number}.json").write_bytes(CONTENT)
    (fine / "link").symlink_to(base / "mount")
    with mounted(source, base / "mount") as mount:
        yield mount, fine


def scene_of(server: Server, mount: Mounted, fine: Path) -> Scene:
    scene = Scene(server, mount, fine)
    held = {
        "a.json": (1, mount.at / "a.json"),
        "b.json": (2, fine / "a.json"),
        "large.json": (3, mount.at / "large.json"),
    }
    for name, (number, path) in held.items():
        # On a busy machine the process behind the mount may take longer than the limit.
        wait_until_answered(partial(scene.register, number, name, path))
    server.register_copies(worker(scene.slug, 4), {scene.key("copy.json"): CONTENT})
    for name in (*held, "copy.json"):
        wait_until_answered(partial(server.fetch, scene.key(name)))
    return scene


def wait_until_answered(ask: Callable[[], httpx2.Response]) -> None:
    wait_for(lambda: ask().status_code == 200)


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, Mounted, Path]]:
    """A service for the tests that leave it running."""
    base = tmp_path_factory.mktemp("hung").resolve()
    with (
        sick_and_fine(base) as (mount, fine),
        running(base, artifact_root=[mount.at, fine], **FLAGS) as server,
    ):
        yield server, mount, fine
        mount.go_on()


@pytest.fixture
def scene(standing: tuple[Server, Mounted, Path]) -> Iterator[Scene]:
    scene = scene_of(*standing)
    yield scene
    scene.mount.go_on()
    wait_for(lambda: scene.server.fetch(scene.key("large.json")).status_code == 200)


@pytest.fixture
def own(serve: Callable[..., Server], tmp_path: Path) -> Iterator[Scene]:
    """A service for one test, that may be stopped."""
    with sick_and_fine(tmp_path.resolve()) as (mount, fine):
        scene = scene_of(serve(artifact_root=[mount.at, fine], **FLAGS), mount, fine)
        yield scene
        mount.go_on()
        scene.server.stop()


def registration(scene: Scene, number: int, path: Path) -> bytes:
    key = scene.key(f"new-{number}.json")
    body = {
        "owner": owner_body(worker(scene.slug, 50 + number)),
        "artifacts": [in_place(key, path)],
    }
    return scene.server.client.build_request("POST", "/v1/registrations", json=body).read()


def ask(scene: Scene, method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reads(scene: Scene, *headers: str, method: str = "GET", name: str = "a.json") -> list[bytes]:
    return [ask(scene, method, f"/v1/metadata/{scene.key(name)}", b"", *headers)] * MANY


def registrations(scene: Scene, folder: Path) -> list[bytes]:
    return [
        ask(scene, "POST", "/v1/registrations", registration(scene, n, folder / f"{n}.json"))
        for n in range(MANY)
    ]


TROUBLES: dict[str, Callable[[Scene], list[bytes]]] = {
    "a read": reads,
    "a look at the head": lambda scene: reads(scene, method="HEAD"),
    "a part": lambda scene: reads(scene, "Range: bytes=0-3"),
    "a large file": lambda scene: reads(scene, name="large.json"),
    "a part of a large file": lambda scene: reads(scene, "Range: bytes=-3", name="large.json"),
    "registrations": lambda scene: registrations(scene, scene.hung),
    "registrations through a link": lambda scene: registrations(scene, scene.fine / "link"),
    "registrations of a way out": lambda scene: registrations(scene, scene.hung / ".." / "fine"),
    "registrations of what is nowhere": lambda scene: registrations(scene, scene.hung / "x" / "y"),
}
"""What is asked of a root that hangs, more often than it has threads."""


@contextmanager
def asked(scene: Scene, requests: list[bytes]) -> Iterator[list[Line]]:
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(scene.server)) for _ in requests]
        for line, request in zip(lines, requests, strict=True):
            line.send(request)
        yield lines


def assert_fine(scene: Scene) -> None:
    """Everything that is not on the file system that hangs is answered."""
    client = httpx2.Client(base_url=scene.server.url, timeout=SOON_S)
    with client:
        for path in ("/live", "/health", "/v1/models", "/v1/audit"):
            assert client.get(path).status_code == 200, path
        for name in ("b.json", "copy.json"):
            answer = client.get(f"/v1/metadata/{scene.key(name)}")
            assert (answer.status_code, answer.content) == (200, CONTENT), name
        renewal = client.post(f"/v1/owners/{worker(scene.slug, 1)}/renew")
        assert renewal.status_code == 200
        explained = client.get(f"/v1/artifacts/{scene.key('a.json')}").json()
        assert [holder["status"] for holder in explained["holders"]] == ["ok"]
        body = {
            "owner": owner_body(worker(scene.slug, 5)),
            "artifacts": [
                in_place(scene.key("elsewhere.json"), scene.fine / "1.json"),
                copied(scene.key("another-copy.json"), CONTENT),
            ],
        }
        assert client.post("/v1/registrations", json=body).status_code == 200


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_file_system_that_hangs_holds_up_nobody_else_and_accuses_nobody(
    scene: Scene, trouble: str
) -> None:
    requests = TROUBLES[trouble](scene)
    scene.mount.hang()
    with asked(scene, requests) as lines:
        assert_fine(scene)
        for line in lines:
            answer = line.read_answer("HEAD" if "head" in trouble else "GET")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            if answer.content:
                assert "does not answer within 1.5 s" in answer.json()["detail"]
                assert answer.json()["code"] == "busy"
        assert_fine(scene)
    assert scene.looks() == []
    scene.mount.go_on()
    wait_for(lambda: scene.server.fetch(scene.key("a.json")).content == CONTENT)
    wait_for(lambda: scene.server.fetch(scene.key("large.json")).content == LARGE)
    assert scene.looks() == []


@pytest.mark.parametrize("trouble", ["a read", "a large file", "registrations"])
def test_a_signal_ends_the_service_while_a_file_system_hangs(own: Scene, trouble: str) -> None:
    requests = TROUBLES[trouble](own)
    own.mount.hang()
    with asked(own, requests):
        assert_fine(own)
        assert own.server.stop() == 0


def test_another_holder_is_read_while_the_file_system_of_one_hangs(scene: Scene) -> None:
    """S5."""
    same = scene.key("a.json")
    scene.server.register(worker(scene.slug, 6), [in_place(same, scene.fine / "a.json")])
    scene.server.register_copies(worker(scene.slug, 7), {same: CONTENT})
    large = scene.key("large.json")
    scene.server.register(worker(scene.slug, 6), [in_place(large, scene.fine / "large.json")])
    scene.mount.hang()
    for number in (7, 6):
        for _ in range(3):
            assert scene.server.fetch(same).content == CONTENT
            assert scene.server.fetch(large, range="bytes=5-9").content == LARGE[5:10]
        scene.server.unregister(worker(scene.slug, number))
    problem_of(scene.server.fetch(same), 503, "busy")
    assert scene.looks() == []


def test_a_stream_whose_file_system_hangs_is_cut_off_and_others_go_on(scene: Scene) -> None:
    with Line(scene.server, receive_buffer_bytes=64 << 10) as line:
        line.ask(f"/v1/metadata/{scene.key('large.json')}")
        assert line.read_head()[0] == 200
        first = line.read(64 << 10)
        scene.mount.hang()
        assert_fine(scene)
        received = first + line.read_rest()
    assert LARGE.startswith(received)
    assert len(received) < len(LARGE)
    assert_fine(scene)
    scene.mount.go_on()
    wait_for(lambda: scene.server.fetch(scene.key("large.json")).content == LARGE)
    assert scene.looks() == []


def descriptors(scene: Scene, path: Path) -> int:
    return opened_by(scene.server.process.pid).count(str(path))


def test_what_was_opened_too_late_is_closed(scene: Scene) -> None:
    path = scene.hung / "large.json"
    requests = reads(scene, name="large.json")
    scene.mount.hang()
    with asked(scene, requests) as lines:
        for line in lines:
            assert line.read_answer().status_code == 503
    scene.mount.go_on()
    wait_for(lambda: scene.server.fetch(scene.key("large.json")).content == LARGE)
    wait_for(lambda: descriptors(scene, path) == 0)


def replaced_by_a_link(scene: Scene, folder: Path) -> None:
    folder.rename(folder.with_name(f"{scene.slug}-moved"))
    folder.symlink_to(scene.hung)


def mounted_over(scene: Scene, folder: Path) -> None:
    subprocess.run(["mount", "--bind", str(scene.hung), str(folder)], check=True)


@pytest.mark.parametrize("change", [replaced_by_a_link, mounted_over])
def test_a_local_file_that_comes_to_lie_on_a_file_system_that_hangs_holds_up_nobody(
    scene: Scene, change: Callable[[Scene, Path], None]
) -> None:
    folder = scene.fine / scene.slug
    folder.mkdir()
    (folder / "a.json").write_bytes(CONTENT)
    key = scene.key("moving.json")
    scene.server.register(worker(scene.slug, 8), [in_place(key, folder / "a.json")])
    time.sleep(2.1)  # So that it is looked at without waiting, as files are that have some age.
    for _ in range(3):
        assert scene.server.fetch(key).content == CONTENT
    if change is replaced_by_a_link:
        scene.mount.hang()
        change(scene, folder)
    else:
        change(scene, folder)
        scene.mount.hang()
    with asked(scene, [ask(scene, "GET", f"/v1/metadata/{key}")] * MANY) as lines:
        assert_fine(scene)
        for line in lines:
            assert line.read_answer().status_code == 503
    scene.mount.go_on()
    if change is mounted_over:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_service_starts_while_a_root_hangs_and_serves_the_others(
    own: Scene, serve: Callable[..., Server]
) -> None:
    own.server.stop()
    own.mount.hang()
    own.server = serve(artifact_root=[own.hung, own.fine], file_timeout_s=LIMIT_S)
    assert f"below the artifact root {own.hung} is not served" in own.server.log
    assert_fine(own)
    problem_of(own.server.fetch(own.key("a.json")), 503, "busy")
    own.mount.go_on()
    wait_for(lambda: own.server.fetch(own.key("a.json")).content == CONTENT)
    assert own.looks() == []


def test_the_scrub_of_a_root_that_hangs_holds_up_nobody(
    own: Scene, serve: Callable[..., Server]
) -> None:
    own.server.stop()
    with sql(own.server.database) as connection:
        connection.execute("UPDATE owner_refs SET verified_at = 1 WHERE path IS NOT NULL")
    own.mount.hang()
    own.server = serve(
        artifact_root=[own.hung, own.fine], file_timeout_s=LIMIT_S, sweep_interval_s=0.2
    )
    wait_for(lambda: "were not looked at and will be later" in own.server.log)
    assert_fine(own)

    def scrubbed() -> bool:
        with sql(own.server.database) as connection:
            query = "SELECT path FROM owner_refs WHERE path IS NOT NULL AND verified_at = 1"
            return {row[0] for row in connection.execute(query)} == {
                str(own.hung / name) for name in ("a.json", "large.json")
            }

    wait_for(scrubbed)
    assert own.looks() == []


def test_the_audit_of_files_gives_a_mount_up_that_does_not_answer(scene: Scene) -> None:
    lines = [in_place(scene.key(f"{n}.json"), scene.hung / f"{n}.json") for n in range(MANY)]
    wait_until_answered(partial(scene.server.register, worker(scene.slug, 9), lines))
    linked = scene.fine / "link" / "0.json"  # Where the link is nothing hangs.
    wait_until_answered(partial(scene.register, 8, "linked.json", linked))
    gone = scene.fine / f"{scene.slug}.json"
    gone.write_bytes(CONTENT)
    assert scene.register(10, "gone.json", gone).status_code == 200
    gone.unlink()
    scene.mount.hang()
    done = run_here(
        *("audit", "--check-files", "--database-url", f"sqlite:///{scene.server.database}"),
        *("--artifact-root", str(scene.fine), "--artifact-root", str(scene.hung)),
    )
    assert done.returncode == 2
    assert "missing_file" in done.stdout
    assert "files were not checked" in done.stderr
    assert "does not answer" in done.stderr
    assert scene.looks() == []


def test_one_file_that_hangs_leaves_threads_to_the_others_of_its_root(scene: Scene) -> None:
    """Whoever asks for it again is refused at once, instead of taking another thread."""
    scene.mount.hang()
    with ThreadPoolExecutor(1) as thread:
        first: Future[httpx2.Response] = thread.submit(scene.server.fetch, scene.key("a.json"))
        problem_of(first.result(), 503, "busy")
    started = time.monotonic()
    for _ in range(2 * THREADS_PER_PLACE):
        problem_of(scene.server.fetch(scene.key("a.json")), 503, "busy")
    assert time.monotonic() - started < THREADS_PER_PLACE * LIMIT_S
