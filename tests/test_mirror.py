"""A mirror in copy mode: what an unchanged fleet's cards name is held, renewed and released."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from registry.client import Worker
from registry.core.model_revisions import revision_slug
from registry.core.records import ArtifactKey
from registry.discovery import Kind, RecordKey, model_record
from registry.discovery.cards import CardFile, make_card
from registry.discovery.file import FileDiscovery
from registry.errors import SettingsError
from registry.mirror import Mirror, MirrorMode, MirrorSettings, settings
from registry.mirror.status_server import CONNECTIONS_MAX
from tests.commands import run_here
from tests.fileservers import Manner, Request
from tests.mirrors import (
    CONTENTS,
    FleetWorker,
    MirrorProcess,
    expected,
    folder_url,
    held_by,
    killed_at,
    owner_of,
    wait_until_held,
    wait_until_released,
)
from tests.models import make_model
from tests.support import Server, checksum, copied, wait_for


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileDiscovery]:
    opened = FileDiscovery(tmp_path / "kv")
    yield opened
    opened.close()


@pytest.fixture
def discovery(tmp_path: Path) -> str:
    return folder_url(tmp_path / "kv")


def settings_of(discovery: str, server: Server, **fields: object) -> MirrorSettings:
    given = {"linger_s": 0.5, "lease_ttl_s": 60.0, **fields}
    return MirrorSettings(discovery, server.url, **given)  # type: ignore[arg-type]


def test_files_of_a_card_are_held_for_its_owner_and_released_when_it_is_gone(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(settings_of(discovery, server)) as mirror:
        wait_until_held(server, owner)
        path = "/v1/metadata/dynamo/backend/generate/org_tiny/_base/config.json"
        assert server.client.get(path).content == CONTENTS["config.json"]
        record = server.client.get(f"/v1/owners/{owner}").json()
        assert record["lease"]["ttl_s"] == 60
        worker.leave()
        wait_until_released(server, owner)
        assert all(worker.files.times(name) == 1 for name in CONTENTS)
        assert mirror.report().fetched_files == len(CONTENTS)
    assert server.client.get("/v1/audit").json()["worst"] in (None, "note")


def test_content_that_many_cards_name_is_fetched_once(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    with ExitStack() as stack:
        owners = [owner_of(number) for number in range(1, 13)]
        workers = [stack.enter_context(FleetWorker(store, owner)) for owner in owners]
        stack.enter_context(Mirror(settings_of(discovery, server)))
        for owner in owners:
            wait_until_held(server, owner)
        for name in CONTENTS:
            assert sum(worker.files.times(name) for worker in workers) == 1


def test_what_the_registry_has_is_neither_fetched_nor_uploaded(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    for content in CONTENTS.values():
        assert server.upload(content).status_code == 201
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(settings_of(discovery, server)):
        wait_until_held(server, owner)
        assert worker.files.asked == []


def test_a_lora_is_an_owner_of_its_own(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    base, lora = owner_of(7), owner_of(7, lora="adapter")
    with (
        FleetWorker(store, base) as worker,
        FleetWorker(store, lora) as loaded,
        Mirror(settings_of(discovery, server)),
    ):
        wait_until_held(server, base)
        wait_until_held(server, lora)
        path = "/v1/metadata/dynamo/backend/generate/org_tiny/adapter/config.json"
        assert server.client.get(path).status_code == 200
        loaded.leave()
        wait_until_released(server, lora)
        assert held_by(server, base) == expected()
        worker.leave()
        wait_until_released(server, base)


def wrong(request: Request) -> None:
    request.head(200, Content_Length=len(request.content))
    request.send(bytes(len(request.content)))


def absent(request: Request) -> None:
    request.head(404, Content_Length=0)


@pytest.mark.parametrize("manner", [wrong, absent])
def test_another_worker_that_has_the_content_is_asked_when_one_has_it_not(
    server: Server, store: FileDiscovery, discovery: str, manner: Manner
) -> None:
    bad, good = owner_of(1), owner_of(2)
    manners = dict.fromkeys(CONTENTS, manner)
    with (
        FleetWorker(store, bad, manners=manners),
        FleetWorker(store, good),
        Mirror(settings_of(discovery, server)),
    ):
        wait_until_held(server, bad)
        wait_until_held(server, good)


def test_a_worker_that_comes_back_within_the_linger_keeps_its_files(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owner = owner_of(7)
    with (
        FleetWorker(store, owner) as worker,
        Mirror(settings_of(discovery, server, linger_s=2.0)) as mirror,
    ):
        wait_until_held(server, owner)
        worker.leave()
        wait_for(lambda: mirror.report().counts.lingering == 1)
        worker.publish()
        wait_for(lambda: mirror.report().counts.mirrored == 1)
        worker.leave()
        wait_until_released(server, owner)
        kinds = [
            event["kind"]
            for event in server.client.get("/v1/events", params={"owner": str(owner)}).json()[
                "events"
            ]
        ]
        assert kinds.count("detached") == 1


def test_a_card_of_a_worker_of_the_registry_is_left_alone(
    server: Server, store: FileDiscovery, discovery: str, tmp_path: Path
) -> None:
    owner = owner_of(7)
    with Mirror(settings_of(discovery, server)) as mirror:
        with Worker(server.url, owner, discovery=store) as worker:
            worker.attach(make_model(tmp_path / "model"), name="Org/Tiny")
            before = held_by(server, owner)
            wait_for(lambda: mirror.report().counts.left_alone == 1)
            assert mirror.report().counts.mirrored == 0
            assert mirror.report().fetched_files == 0
            assert held_by(server, owner) == before
        wait_for(lambda: mirror.report().counts.cards == 0)


def test_nothing_is_unregistered_that_no_mirror_registered(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    """Not even if the owner had a card that was mirrored, and is another one's by now."""
    mine, other = owner_of(7), owner_of(8)
    with FleetWorker(store, mine) as worker, Mirror(settings_of(discovery, server)) as mirror:
        wait_until_held(server, mine)
        line = [copied(ArtifactKey("org_tiny", "_base", "config.json"), CONTENTS["config.json"])]
        for owner in (mine, other):
            answer = server.register(owner, line, worker_name=f"of-{owner.instance_id}")
            assert answer.status_code == 200
        worker.leave()
        wait_for(lambda: mirror.report().counts == type(mirror.report().counts)())
        assert held_by(server, mine) == expected()
        assert held_by(server, other)


def test_an_owner_that_registered_itself_is_left_alone_whatever_its_card_says(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    """As that of a worker which knows the registry by another URL than the mirror."""
    owner = owner_of(7)
    line = [copied(ArtifactKey("org_tiny", "_base", "config.json"), CONTENTS["config.json"])]
    assert server.upload(CONTENTS["config.json"]).status_code == 201
    assert server.register(owner, line, worker_name="gpu-3").status_code == 200
    before = held_by(server, owner)
    with FleetWorker(store, owner) as worker, Mirror(settings_of(discovery, server)) as mirror:
        wait_for(lambda: mirror.problem_of(owner) is not None)
        assert "registered by a worker" in (mirror.problem_of(owner) or "")
        worker.leave()
        wait_for(lambda: mirror.report().counts.cards == 0)
        assert held_by(server, owner) == before
    assert server.client.get(f"/v1/owners/{owner}").json()["worker_name"] == "gpu-3"


def test_only_the_namespaces_that_are_named_are_looked_at(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    """A mirror that is started with another filter unregisters nothing for it."""
    first, second = owner_of(7, namespace="one"), owner_of(8, namespace="two")
    with FleetWorker(store, first), FleetWorker(store, second) as worker:
        with Mirror(settings_of(discovery, server)):
            wait_until_held(server, first)
            wait_until_held(server, second)
        with Mirror(settings_of(discovery, server, namespaces=("one",), linger_s=0.0)) as mirror:
            wait_for(lambda: mirror.report().counts.mirrored == 1)
            worker.leave()
            wait_for(lambda: not store.list(Kind.MODEL)[1:])
            assert mirror.report().counts.cards == 1
            assert held_by(server, second) == expected()


def test_old_and_new_bytes_of_one_model_are_held_side_by_side(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    """S17: a rolling upgrade with changed files waits for nobody, and each goes with its last."""
    old, new = owner_of(1, namespace="v1"), owner_of(2, namespace="v2")
    changed = {**CONTENTS, "config.json": b'{"model_type": "other"}'}
    with FleetWorker(store, old) as before, Mirror(settings_of(discovery, server)) as mirror:
        wait_until_held(server, old)
        with FleetWorker(store, new, changed):
            slug = revision_slug("org_tiny", [(n, checksum(c)) for n, c in changed.items()])
            wait_until_held(server, new, changed, slug)
            assert held_by(server, old) == expected()
            assert mirror.report().counts.revisions == 1
            before.leave()
            wait_until_released(server, old)
            assert held_by(server, new) == expected(changed, slug)


def test_a_card_that_changes_its_files_is_mirrored_as_it_is_now(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker, Mirror(settings_of(discovery, server)):
        wait_until_held(server, owner)
        worker.contents["config.json"] = b'{"model_type": "other"}'
        worker.publish()
        wait_until_held(server, owner, worker.contents)


# Ends and beginnings


def test_a_mirror_that_ends_leaves_what_it_registered_and_the_next_one_takes_it_on(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    stays, leaves = owner_of(1), owner_of(2)
    with FleetWorker(store, stays) as one, FleetWorker(store, leaves) as two:
        with Mirror(settings_of(discovery, server)):
            wait_until_held(server, stays)
            wait_until_held(server, leaves)
        two.leave()
        asked = len(one.files.asked + two.files.asked)
        assert held_by(server, stays) == held_by(server, leaves) == expected()
        with Mirror(settings_of(discovery, server)):
            wait_until_released(server, leaves)
            assert held_by(server, stays) == expected()
        assert len(one.files.asked + two.files.asked) == asked


@pytest.mark.parametrize("point", ["fetch", "uploaded", "registered"])
def test_a_mirror_that_is_killed_while_a_card_comes_is_made_good_by_the_next(
    server: Server, store: FileDiscovery, discovery: str, point: str
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner):
        with MirrorProcess(discovery, server.url, program=killed_at(point)) as killed:
            assert killed.process.wait(30) == -signal.SIGKILL
        with Mirror(settings_of(discovery, server)):
            wait_until_held(server, owner)


@pytest.mark.parametrize("point", ["unregister", "unregistered"])
def test_a_mirror_that_is_killed_while_a_card_goes_is_made_good_by_the_next(
    server: Server, store: FileDiscovery, discovery: str, point: str
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner) as worker:
        with Mirror(settings_of(discovery, server)):
            wait_until_held(server, owner)
        worker.leave()
        options = ("--linger-s", 0)
        with MirrorProcess(discovery, server.url, *options, program=killed_at(point)) as killed:
            assert killed.process.wait(30) == -signal.SIGKILL
        with Mirror(settings_of(discovery, server)):
            wait_until_released(server, owner)


def test_two_mirrors_of_a_store_do_each_other_no_harm(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owners = [owner_of(number) for number in range(1, 6)]
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Mirror(settings_of(discovery, server)))
        workers = [stack.enter_context(FleetWorker(store, owner)) for owner in owners]
        for owner in owners:
            wait_until_held(server, owner)
        workers[0].leave()
        wait_until_released(server, owners[0])
        for owner in owners[1:]:
            assert held_by(server, owner) == expected()


def test_a_registry_that_lost_everything_is_filled_again(
    serve: Callable[..., Server], store: FileDiscovery, discovery: str
) -> None:
    server = serve()
    owner = owner_of(7)
    with FleetWorker(store, owner), Mirror(settings_of(discovery, server)):
        wait_until_held(server, owner)
        port = server.address[1]
        server.kill()
        for path in server.database.parent.glob("registry.db*"):
            path.unlink()
        wait_until_held(serve(port=port), owner)


def test_a_registry_that_is_not_there_yet_is_waited_for(
    serve: Callable[..., Server], store: FileDiscovery, discovery: str
) -> None:
    first = serve()
    port = first.address[1]
    first.stop()
    owner = owner_of(7)
    with FleetWorker(store, owner), Mirror(settings_of(discovery, first)) as mirror:
        wait_for(lambda: mirror.report().registry_age_s is None)
        wait_until_held(serve(port=port), owner)


def test_leases_are_renewed_all_together(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owners = [owner_of(number) for number in range(1, 9)]
    with ExitStack() as stack:
        for owner in owners:
            stack.enter_context(FleetWorker(store, owner))
        stack.enter_context(Mirror(settings_of(discovery, server, lease_ttl_s=3.0)))
        for owner in owners:
            wait_until_held(server, owner)

        def renewals() -> float:
            text = server.client.get("/metrics").text
            return sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith("metadata_registry_requests_total") and "/v1/renewals" in line
            )

        wait_for(lambda: renewals() >= 4)
        states = {each["state"] for each in server.client.get("/v1/owners").json()["owners"]}
        assert states == {"active"}


# Settings


BAD_SETTINGS: dict[str, dict[str, object]] = {
    "a bridge without a second store": {"mode": MirrorMode.BRIDGE},
    "a second store without a bridge": {"to": "file:/other"},
    "a bridge into the store it reads": {"mode": MirrorMode.BRIDGE, "to": "file:/kv"},
    "a linger below 0": {"linger_s": -1.0},
    "a linger that is no number": {"linger_s": float("nan")},
    "a lease that is too short": {"lease_ttl_s": 0.5},
    "a namespace that is none": {"namespaces": ("a/b",)},
    "a root that is relative": {"local_roots": ("models",)},
    "a URL that is none": {"public_url": "registry:8090"},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_contradict_each_other_are_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        MirrorSettings("file:/kv", "http://127.0.0.1:1", **BAD_SETTINGS[name])  # type: ignore[arg-type]


def test_a_worker_name_tells_the_store_and_never_names_two_instances(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one = MirrorSettings(f"file:{tmp_path}", "http://r")
    same = MirrorSettings(f"file:{tmp_path}/link/", "http://r")
    other = MirrorSettings(f"file:{tmp_path}/kv", "http://r")
    assert one.worker_name(owner_of(7)) == same.worker_name(owner_of(7))
    assert one.worker_name(owner_of(7)) != one.worker_name(owner_of(8))
    assert one.worker_prefix != other.worker_prefix
    named = [MirrorSettings(f"file:{tmp_path}/{n}", "http://r", name="a") for n in range(2)]
    assert named[0].worker_prefix == named[1].worker_prefix != one.worker_prefix


@pytest.mark.parametrize(
    ("url", "is_of_one_host"),
    [
        ("file:/var/run/dynamo", True),
        ("etcd://127.0.0.1:2379", True),
        ("etcd://localhost:2379,localhost:2380", True),
        ("kubernetes:", True),
        ("etcd://etcd:2379", False),
    ],
)
def test_a_store_of_one_host_is_not_taken_for_that_of_another(
    monkeypatch: pytest.MonkeyPatch, url: str, is_of_one_host: bool
) -> None:
    here = MirrorSettings(url, "http://r").worker_prefix
    monkeypatch.setattr(settings, "_host", lambda: "another host")
    assert (MirrorSettings(url, "http://r").worker_prefix != here) == is_of_one_host


def test_how_one_logs_in_to_an_etcd_does_not_change_which_store_it_is() -> None:
    urls = ["etcd://a,b:2379/p/", "etcd://user:pw@b,a/p"]
    prefixes = {MirrorSettings(url, "http://r").worker_prefix for url in urls}
    assert len(prefixes) == 1


# The command


def test_once_does_what_is_to_be_done_and_says_how_it_went(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owner, gone = owner_of(7), owner_of(8)
    words = ("mirror", discovery, "--url", server.url, "--once", "--linger-s", "0.2", "--json")
    with FleetWorker(store, owner) as worker, FleetWorker(store, gone) as leaving:
        done = run_here(*words)
        assert (done.returncode, json.loads(done.stdout)["mirrored"]) == (0, 2), done.stderr
        leaving.leave()
        assert run_here(*words).returncode == 0
        assert held_by(server, owner) == expected()
        assert held_by(server, gone) == {}
        assert all(worker.files.times(n) + leaving.files.times(n) == 1 for n in CONTENTS)


def test_once_fails_when_a_card_cannot_be_mirrored(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    manners = {"config.json": absent}
    with (
        FleetWorker(store, owner_of(7), manners=manners),
        FleetWorker(store, owner_of(8), {"a": b"a"}),
    ):
        done = run_here("mirror", discovery, "--url", server.url, "--once")
    assert done.returncode == 1
    assert "2 cards: 1 mirrored, 0 left alone, 1 failed" in done.stdout
    assert done.stderr.count("warning:") == 1
    assert "answers 404" in done.stderr


def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    words = ("mirror", discovery, "--url", server.url, "--dry-run")
    with FleetWorker(store, owner_of(7)) as worker:
        done = run_here(*words)
        assert done.returncode == 0, done.stderr
        assert f"register  {owner_of(7)}" in done.stdout
        (step,) = json.loads(run_here(*words, "--json").stdout)["steps"]
        assert (step["step"], step["owner"]) == ("register", str(owner_of(7)))
        assert worker.files.asked == []
    assert server.client.get("/v1/owners").json()["owners"] == []


def test_a_dry_run_tells_what_is_held_from_what_is_still_to_be_registered(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    words = ("mirror", discovery, "--url", server.url, "--linger-s", "0")

    def steps(*options: str) -> list[tuple[str, str]]:
        done = run_here(*words, "--dry-run", "--json", *options)
        assert done.returncode == 0, done.stderr
        return [(each["step"], each["owner"]) for each in json.loads(done.stdout)["steps"]]

    held, other = owner_of(7), owner_of(8)
    with FleetWorker(store, held):
        assert run_here(*words, "--once").returncode == 0
        assert steps() == []
        assert steps("--mode", "rewrite") == [("rewrite", str(held))]
        assert run_here(*words, "--once", "--mode", "rewrite").returncode == 0
        assert steps("--mode", "rewrite") == []
        with FleetWorker(store, other, {"config.json": b"other"}):
            assert steps() == [("register", str(other))]
            assert run_here(*words, "--once").returncode == 0
            assert steps() == []  # Held under the slug of a revision.


def test_a_dry_run_shows_where_files_come_from_whole(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    path = "/v1/metadata/" + 30 * "long_name/" + "config.json"
    card = make_card("m", [CardFile("http://127.0.0.1:1" + path, checksum(b"a"), 1)])
    store.publish(model_record(owner_of(7), card))
    words = ("mirror", discovery, "--url", server.url, "--dry-run")
    (step,) = json.loads(run_here(*words, "--json").stdout)["steps"]
    assert step["detail"] == f"1 file under m, as http://127.0.0.1:1{path}"
    assert step["detail"] in run_here(*words).stdout
    failed = run_here("mirror", discovery, "--url", server.url, "--once")
    assert failed.stderr.count(path) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--once", "--dry-run"), "--once and --dry-run"),
        (("--lease-ttl-s", "0"), "--lease-ttl-s"),
        (("--linger-s", "-1"), "--linger-s"),
        (("--namespace", "bad/ns"), "--namespace"),
        (("--local-root", "/nowhere/models"), "'/nowhere/models' (--local-root) is no directory"),
        (("--mode", "bridge", "--to", "kubernetes:ns"), "Kubernetes"),
        (("--port", "99999"), "port must be 0-65535. Choose another"),
    ],
)
def test_wrong_usage_is_refused_by_the_name_of_the_option(
    discovery: str, options: tuple[str, ...], said: str
) -> None:
    done = run_here("mirror", discovery, "--url", "http://127.0.0.1:1", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_kubernetes_is_only_copied_from_whatever_is_installed() -> None:
    for options in (("--mode", "rewrite"), ("--mode", "bridge", "--to", "file:/kv")):
        done = run_here("mirror", "kubernetes:ns", *options)
        assert done.returncode == 2
        assert "Kubernetes" in done.stderr
        assert "KUBECONFIG" not in done.stderr


def test_once_says_what_it_waits_for_and_why_it_fails(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    words = ("mirror", discovery, "--url", server.url, "--linger-s", "0.2", "--once")
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(FleetWorker(store, owner_of(number)))
        assert run_here(*words).returncode == 0
    for number in range(3):
        store.withdraw(RecordKey(Kind.MODEL, owner_of(number)))
    done = run_here(*words)
    assert done.returncode == 1
    assert done.stderr.count("waiting 0.2 s to see whether 3 cards come back") == 1
    assert "3 owners held back" in done.stdout


def test_a_store_or_a_namespace_in_which_nothing_is_is_named(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    words = ("--url", server.url, "--once", "--namespace", "elsewhere")
    empty = run_here("mirror", discovery, *words)
    assert empty.returncode == 0
    assert empty.stderr.count("does not exist yet") == 1
    with FleetWorker(store, owner_of(7)):
        done = run_here("mirror", discovery, *words)
    assert done.returncode == 0
    assert done.stderr.count("warning:") == 1
    assert "(elsewhere); cards of others: 1" in done.stderr


def test_whoever_says_nothing_to_a_mirror_does_not_keep_others_from_asking(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    with MirrorProcess(discovery, server.url) as mirror, ExitStack() as stack:
        host, port = mirror.status_url.removeprefix("http://").split(":")
        for _ in range(CONNECTIONS_MAX + 20):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))

        def answers() -> bool:
            try:
                return httpx2.get(f"{mirror.status_url}/metrics").status_code == 200
            except httpx2.TransportError:
                return False

        wait_for(answers, 20)


def test_a_mirror_tells_how_it_is_doing_until_it_is_told_to_end(
    server: Server, store: FileDiscovery, discovery: str
) -> None:
    owner = owner_of(7)
    with FleetWorker(store, owner), MirrorProcess(discovery, server.url) as mirror:
        url = mirror.status_url
        wait_until_held(server, owner)
        wait_for(lambda: httpx2.get(f"{url}/health").json()["mirrored"] == 1)
        health = httpx2.get(f"{url}/health")
        assert health.status_code == 200
        assert health.json()["fetched_bytes"] == sum(map(len, CONTENTS.values()))
        metrics = httpx2.get(f"{url}/metrics").text
        assert "metadata_registry_mirror_mirrored_cards 1\n" in metrics
        assert httpx2.get(f"{url}/v1/owners").status_code == 404
        mirror.process.terminate()
        assert mirror.process.wait(15) == 0
        wait_for(lambda: "the mirror has ended; what is registered stays" in mirror.log)
    assert held_by(server, owner) == expected()
