"""Discovery by Kubernetes, against a stand-in for its API server that speaks real HTTP. With real
workers and frontends of NVIDIA Dynamo at both ends: tests/interop."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from registry.core.records import Owner
from registry.discovery import (
    Change,
    Kind,
    Record,
    Scannable,
    instance_record,
    model_record,
    open_discovery,
)
from registry.discovery.cards import make_card
from registry.discovery.kubernetes import KubernetesDiscovery, api, feed
from registry.discovery.kubernetes.settings import read_settings
from registry.errors import DiscoveryUnavailable, SettingsError
from registry.mirror import Mirror, MirrorMode, MirrorSettings
from tests.apiservers import LABEL, SLICES, WORKERS, ApiServer
from tests.etcds import Watcher
from tests.support import wait_for

pytest.importorskip("lightkube", reason="the extra `kubernetes` is not installed")

CARD = make_card("Org/Tiny", [])
MODEL, MODEL_2 = (
    model_record(Owner("dynamo", "backend", "generate", number), CARD) for number in (0xABC, 0xDEF)
)
ADAPTER = model_record(Owner("dynamo", "backend", "generate", 0xABC, "my_adapter"), CARD)
INSTANCE = instance_record(MODEL.key.owner, "h:1")
CHANGED = model_record(MODEL.key.owner, make_card("Org/Tiny", [], fields={"context_length": 7}))
POD, POD_2 = ("worker-0", "uid-of-0"), ("worker-1", "uid-of-1")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


Opener = Callable[..., KubernetesDiscovery]


@pytest.fixture
def open_store(server: ApiServer, tmp_path: Path) -> Iterator[Opener]:
    opened: list[KubernetesDiscovery] = []

    def open_one(*, patience_s: float = 60.0, **user: Any) -> KubernetesDiscovery:
        config = server.kubeconfig(tmp_path / "config", **user)
        settings = read_settings("kubernetes:", {"KUBECONFIG": str(config)})
        opened.append(KubernetesDiscovery(settings, patience_s=patience_s))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def store(open_store: Opener) -> KubernetesDiscovery:
    return open_store()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silences end early, so that nobody has to wait for them."""
    monkeypatch.setattr(feed, "SILENCE_MAX_S", 0.5)
    monkeypatch.setattr(api, "ANSWER_MAX_S", 1.0)


def worker_object(pod: tuple[str, str] | None, *records: Record) -> dict[str, Any]:
    """What a worker in a pod applies."""
    data: dict[str, Any] = {"endpoints": {}, "model_cards": {}, "event_channels": {}}
    for record in records:
        part = "model_cards" if record.key.kind is Kind.MODEL else "endpoints"
        data[part][record.key.name] = dict(record.content)
    owners = [{"apiVersion": "v1", "kind": "Pod", "name": pod[0], "uid": pod[1]}] if pod else []
    return {"metadata": {"ownerReferences": owners}, "spec": {"data": data}}


def publish(server: ApiServer, pod: tuple[str, str], *records: Record) -> None:
    server.apply(WORKERS, pod[0], worker_object(pod, *records))


# What is live


def test_records_are_live_while_their_pod_is_ready(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL, ADAPTER, INSTANCE)
    assert store.list(Kind.MODEL) == []
    server.set_ready(POD)
    assert store.list(Kind.MODEL) == [MODEL, ADAPTER]
    assert store.list(Kind.INSTANCE) == [INSTANCE]
    assert store.find(ADAPTER.key) == ADAPTER
    assert isinstance(store, Scannable)
    assert list(store.scan(Kind.MODEL)) == [MODEL, ADAPTER]
    server.set_ready(POD, ready=False)
    assert store.list(Kind.MODEL) == store.list(Kind.INSTANCE) == []
    assert store.find(ADAPTER.key) is None


def endpoint(**fields: Any) -> dict[str, Any]:
    return {"addresses": ["127.0.0.1"], **fields}


READY = {"ready": True}
TARGET = {"kind": "Pod", "name": POD[0], "uid": POD[1]}
LIVE: dict[str, tuple[dict[str, Any], bool]] = {
    "ready": (endpoint(conditions=READY, targetRef=TARGET), True),
    "by hand, without a uid": (endpoint(conditions=READY, targetRef={"name": POD[0]}), True),
    "not said to be ready": (endpoint(conditions={"serving": True}, targetRef=TARGET), False),
    "without conditions": (endpoint(targetRef=TARGET), False),
    "without a pod": (endpoint(conditions=READY), False),
    "another pod": (endpoint(conditions=READY, targetRef=TARGET | {"name": "other"}), False),
    "made anew": (endpoint(conditions=READY, targetRef=TARGET | {"uid": "other"}), False),
}


@pytest.mark.parametrize(("given", "is_live"), LIVE.values(), ids=LIVE.keys())
def test_only_an_endpoint_that_is_ready_makes_its_pod_live(
    server: ApiServer, store: KubernetesDiscovery, given: dict[str, Any], is_live: bool
) -> None:
    publish(server, POD, MODEL)
    server.apply(SLICES, "slice", {"metadata": {"labels": LABEL}, "endpoints": [given]})
    assert store.list(Kind.MODEL) == ([MODEL] if is_live else [])


def test_slices_of_other_services_do_not_count(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    ready = endpoint(conditions=READY, targetRef=TARGET)
    server.apply(SLICES, "slice", {"metadata": {"labels": {}}, "endpoints": [ready]})
    assert store.list(Kind.MODEL) == []


def test_a_pod_in_two_slices_is_live_until_the_last_one_has_it_not(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD)
    server.set_ready(POD, POD_2, name="slice-2")
    server.delete(SLICES, "slice")
    assert store.list(Kind.MODEL) == [MODEL]
    server.set_ready(POD_2, name="slice-2")
    assert store.list(Kind.MODEL) == []


def test_an_object_that_no_pod_owns_belongs_to_the_pod_of_its_name(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    server.apply(WORKERS, POD[0], worker_object(None, MODEL))
    # As of two containers of a pod: named otherwise, and owned by it.
    server.apply(WORKERS, "worker-1-engine", worker_object(POD_2, MODEL_2))
    server.set_ready(POD, POD_2)
    assert store.list(Kind.MODEL) == [MODEL, MODEL_2]


def test_what_two_workers_tell_under_one_key_counts_for_the_first(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD_2, CHANGED)
    publish(server, POD, MODEL)
    server.set_ready(POD, POD_2)
    assert store.list(Kind.MODEL) == [MODEL]
    server.set_ready(POD_2)
    assert store.list(Kind.MODEL) == [CHANGED]


def test_all_pages_of_a_large_fleet_are_read(
    server: ApiServer, store: KubernetesDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [(f"worker-{number:03}", f"uid-{number}") for number in range(300)]
    records = [model_record(Owner("n", "c", "e", 0x1000 + number), CARD) for number in range(300)]
    for pod, record in zip(pods, records, strict=True):
        publish(server, pod, record)
    server.set_ready(*pods)
    assert store.list(Kind.MODEL) == records
    # Pages that would be too large are asked for again with fewer objects.
    monkeypatch.setattr(api, "PAGE_MAX_BYTES", 60_000)
    assert store.list(Kind.MODEL) == records


def test_it_is_only_read(store: KubernetesDiscovery) -> None:
    with pytest.raises(DiscoveryUnavailable, match=r"not published: .*is only read.*--mode copy"):
        store.publish(MODEL)
    with pytest.raises(DiscoveryUnavailable, match=r"not withdrawn: .*is only read"):
        store.withdraw(MODEL.key)


def test_no_mirror_rewrites_it(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    with pytest.raises(SettingsError, match="Use mode copy"):
        Mirror(MirrorSettings("kubernetes:", "http://127.0.0.1:9", mode=MirrorMode.REWRITE))


# What others wrote

HOSTILE: dict[str, dict[str, Any]] = {
    "no spec": {},
    "a spec that is none": {"spec": 7},
    "data that are none": {"spec": {"data": []}},
    "cards that are none": {"spec": {"data": {"model_cards": ["x"]}}},
    "a name that is none": {"spec": {"data": {"model_cards": {"../x": {}}}}},
    "a record that is none": {"spec": {"data": {"model_cards": {MODEL_2.key.name: 7}}}},
    "another's record": {
        "spec": {"data": {"model_cards": {MODEL_2.key.name: dict(MODEL.content)}}}
    },
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_record_hides_no_other(
    server: ApiServer,
    store: KubernetesDiscovery,
    content: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.apply(WORKERS, POD_2[0], content)
    publish(server, POD, MODEL)
    server.set_ready(POD, POD_2)
    assert store.list(Kind.MODEL) == store.list(Kind.MODEL) == [MODEL]
    assert caplog.text.count("is left out") == 1


def test_a_worker_whose_object_is_empty_for_a_moment_has_not_left(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    server.apply(WORKERS, POD[0], {**worker_object(POD), "spec": {"data": None}})
    publish(server, POD_2, MODEL_2)
    server.set_ready(POD, POD_2)
    watcher.wait_until(MODEL, MODEL_2)
    assert all(change.record for change in watcher.changes)


def test_more_than_can_be_held_is_an_error(
    server: ApiServer, store: KubernetesDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, POD, MODEL)
    publish(server, POD_2, MODEL_2)
    with monkeypatch.context() as patch:
        patch.setattr(api, "LISTING_MAX_NAMES", 1)
        with pytest.raises(DiscoveryUnavailable, match="more than 1 dynamoworkermetadatas"):
            store.list(Kind.MODEL)
    monkeypatch.setattr(api, "PAGE_MAX_BYTES", 300)
    with pytest.raises(DiscoveryUnavailable, match="more than 300 bytes"):
        store.list(Kind.MODEL)


# Watching


def test_a_watch_tells_what_is_live_and_then_every_change(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL, INSTANCE)
    server.set_ready(POD)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    wait_for(lambda: watcher.listings == 1)
    publish(server, POD, MODEL, ADAPTER, INSTANCE)
    watcher.wait_until(MODEL, ADAPTER)
    publish(server, POD, CHANGED, INSTANCE)
    watcher.wait_until(CHANGED)
    publish(server, POD_2, MODEL_2)
    server.set_ready(POD, POD_2)
    watcher.wait_until(CHANGED, MODEL_2)
    server.set_ready(POD_2)
    watcher.wait_until(MODEL_2)
    server.delete(WORKERS, POD_2[0])
    watcher.wait_until()
    assert not any(change.relisted for change in watcher.changes)
    assert watcher.listings == 1


def test_a_watch_of_nothing_says_that_it_is_all(store: KubernetesDiscovery) -> None:
    watcher = Watcher(store)
    wait_for(lambda: watcher.listings == 1)
    assert watcher.changes == []


def feeds() -> set[threading.Thread]:
    """The threads that follow a server."""
    return {each for each in threading.enumerate() if each.name == "registry-kubernetes"}


def test_closing_a_store_ends_a_watch_that_waits(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    store.close()
    wait_for(lambda: watcher.has_ended and not feeds(), 5)
    assert watcher.error is None


def test_a_watch_that_nobody_wants_any_more_leaves_nothing_behind(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD)
    changes = store.watch(Kind.MODEL)
    next(changes)
    assert len(feeds()) == 2
    del changes
    wait_for(lambda: not feeds(), 5)


def test_connections_that_break_off_lose_nothing(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD, POD_2)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    for _ in range(3):
        server.stop()
        publish(server, POD_2, MODEL_2)
        publish(server, POD_2)
        publish(server, POD, CHANGED)
        server.start()
        watcher.wait_until(CHANGED)
        server.drop()
        publish(server, POD, MODEL)
        watcher.wait_until(MODEL)
    assert not any(change.relisted for change in watcher.changes)
    assert watcher.listings == 1


def forget(server: ApiServer) -> None:
    server.compact()


def forget_and_answer_410(server: ApiServer) -> None:
    server.tells_gone_by_status = True
    server.compact()


def restore(server: ApiServer) -> None:
    """As from a backup of its etcd: what it has is older than what it told."""
    server.version = 1
    server.history.clear()


@pytest.mark.parametrize("act", [forget, forget_and_answer_410, restore])
def test_what_the_server_does_not_know_any_more_is_told_as_a_difference(
    server: ApiServer, store: KubernetesDiscovery, act: Callable[[ApiServer], None]
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD, POD_2)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    wait_for(lambda: sum("watch=true" in each for each in server.requests) == 2)
    server.stop()
    publish(server, POD)
    publish(server, POD_2, MODEL_2)
    act(server)
    server.start()
    watcher.wait_until(MODEL_2)
    wait_for(lambda: watcher.listings == 3)
    assert sorted(watcher.changes[1:], key=lambda change: change.key.name) == [
        Change(MODEL.key, None, relisted=True),
        Change(MODEL_2.key, MODEL_2, relisted=True),
    ]
    publish(server, POD, MODEL)
    watcher.wait_until(MODEL, MODEL_2)
    assert watcher.changes[-1] == Change(MODEL.key, MODEL)


def test_a_watch_in_which_the_server_forgets_what_was_to_come_lists_again(
    server: ApiServer, store: KubernetesDiscovery
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    with server.changed:
        publish(server, POD)
        server.compact()
    watcher.wait_until()
    assert watcher.changes[-1] == Change(MODEL.key, None, relisted=True)


def test_bookmarks_keep_a_quiet_watch_young(server: ApiServer, store: KubernetesDiscovery) -> None:
    server.bookmark_every_s = 0.1
    publish(server, POD, MODEL)
    server.set_ready(POD)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    # Something else changes, and what was told before is forgotten.
    server.apply("pods", "other", {})
    version = server.version
    wait_for(lambda: server.bookmarks.count(version) >= 4)
    server.oldest = version
    server.history.clear()
    server.drop()
    publish(server, POD, CHANGED)
    watcher.wait_until(CHANGED)
    assert watcher.changes[-1] == Change(CHANGED.key, CHANGED)
    assert watcher.listings == 1


@pytest.mark.usefixtures("impatient")
def test_a_frozen_server_is_noticed_and_followed_when_it_goes_on(
    server: ApiServer, store: KubernetesDiscovery, caplog: pytest.LogCaptureFixture
) -> None:
    publish(server, POD, MODEL)
    server.set_ready(POD, POD_2)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    server.frozen = True
    wait_for(lambda: "changes come late" in caplog.text)
    with pytest.raises(DiscoveryUnavailable, match="does not answer in time"):
        store.list(Kind.MODEL)
    server.frozen = False
    publish(server, POD_2, MODEL_2)
    watcher.wait_until(MODEL, MODEL_2)


def test_a_watch_whose_server_stays_away_says_so(server: ApiServer, open_store: Opener) -> None:
    watcher = Watcher(open_store(patience_s=0.5))
    wait_for(lambda: watcher.listings == 1)
    server.stop()
    wait_for(lambda: watcher.has_ended)
    assert "cannot be read" in str(watcher.error)
    server.start()


def test_a_line_that_is_too_long_is_no_end(
    server: ApiServer, store: KubernetesDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LINE_MAX_BYTES", 4_000)
    server.set_ready(POD)
    watcher = Watcher(store)
    wait_for(lambda: watcher.listings == 1)
    long = model_record(MODEL.key.owner, make_card("T", [], fields={"user_data": "x" * 200_000}))
    publish(server, POD, long)
    watcher.wait_until(long)
    assert watcher.changes == [Change(long.key, long, relisted=True)]


# Who may ask


REFUSED: dict[str, tuple[Callable[[ApiServer], object], str]] = {
    "no right to cards": (
        lambda server: server.forbidden.add(WORKERS),
        r"cannot list .*\{apiGroups: \[nvidia.com\], resources: \[dynamoworkermetadatas\], verbs: ",
    ),
    "no right to slices": (
        lambda server: server.forbidden.add(SLICES),
        r"\{apiGroups: \[discovery.k8s.io\], resources: \[endpointslices\], ",
    ),
    "no CRD": (lambda server: server.missing.add(WORKERS), "Install the CRD"),
    "a token that is not taken": (
        lambda server: setattr(server, "token", "other"),
        r"Unauthorized \(status 401\). Its token is not taken",
    ),
}


@pytest.mark.parametrize(("refuse", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_says_what_is_missing(
    server: ApiServer, open_store: Opener, refuse: Callable[[ApiServer], object], says: str
) -> None:
    refuse(server)
    store = open_store(token="mine")
    with pytest.raises(DiscoveryUnavailable, match=says):
        store.list(Kind.MODEL)
    with pytest.raises(DiscoveryUnavailable, match=says):
        list(store.watch(Kind.MODEL))


def test_a_pod_is_in_its_own_namespace_and_reads_its_token_again_when_it_was_changed(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    account = tmp_path / "account"
    account.mkdir()
    authority.cert_pem.write_to_path(account / "ca.crt")
    (account / "namespace").write_text("fleet-2")
    (account / "token").write_text("first\n")
    with ApiServer(token="first", tls=context) as server:
        environ = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            settings = read_settings("kubernetes:", environ, account=account)
        assert settings.namespace == "fleet-2"
        store = KubernetesDiscovery(settings)
        publish(server, POD, MODEL)
        server.set_ready(POD)
        watcher = Watcher(store)
        watcher.wait_until(MODEL)
        (account / "token").write_text("second\n")
        server.token = "second"
        server.drop()
        publish(server, POD, CHANGED)
        watcher.wait_until(CHANGED)
        assert store.list(Kind.MODEL) == [CHANGED]
        assert all("/namespaces/fleet-2/" in each for each in server.requests)
        store.close()


# Where it is


def test_a_namespace_in_the_url_comes_before_that_of_the_context(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    for url in ("kubernetes:", "kubernetes:other"):
        store = open_discovery(url)
        assert store.list(Kind.MODEL) == []
        store.close()
    spaces = [each.split("/")[5] for each in server.requests]
    assert spaces == ["fleet", "fleet", "other", "other"]


@pytest.mark.parametrize(
    "url", ["kubernetes:A", "kubernetes://x", "kubernetes:a/b", "kubernetes:-"]
)
def test_what_is_no_namespace_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="kubernetes:NAMESPACE"):
        open_discovery(url)


def config_of(cluster: str) -> str:
    return (
        f"{{clusters: [{{name: c, cluster: {cluster}}}], current-context: x, "
        "contexts: [{name: x, context: {cluster: c}}]}"
    )


CONFIGS: dict[str, tuple[str | None, str]] = {
    "there is none": (None, "not found"),
    "no YAML": ("{", "is not in YAML"),
    "nothing": ("", "cannot be used"),
    "a list": ("[]", "cannot be used"),
    "no clusters": ("contexts: []", "'clusters' is missing"),
    "no context": ("{clusters: [], contexts: []}", "No current context"),
    "another context": ("{clusters: [], contexts: [], current-context: x}", "'x' not found"),
    "no address": (config_of("{server: nowhere}"), "it names 'default' at 'nowhere'"),
    "authorities that are not there": (
        config_of("{server: 'https://h', certificate-authority: /no/file}"),
        "No such file",
    ),
}


@pytest.mark.parametrize(("text", "says"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_configuration_that_cannot_be_used_is_an_error(
    tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=says) as raised:
        read_settings("kubernetes:", {"KUBECONFIG": str(path)})
    assert "KUBECONFIG" in str(raised.value)


def test_without_any_configuration_it_says_where_one_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"KUBECONFIG is not set, there is no ~/.kube/config"):
        read_settings("kubernetes:", {}, account=tmp_path)


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "lightkube"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightkube", None)
    with pytest.raises(SettingsError, match=r"pip install 'metadata-registry\[kubernetes\]'"):
        open_discovery("kubernetes:")


def test_what_is_no_api_server_is_an_error(tmp_path: Path, server: ApiServer) -> None:
    server.stop()
    store = KubernetesDiscovery(
        read_settings("kubernetes:", {"KUBECONFIG": str(server.kubeconfig(tmp_path / "config"))})
    )
    with pytest.raises(DiscoveryUnavailable, match=r"cannot be read: .*refused"):
        store.list(Kind.MODEL)
    store.close()
    server.start()
