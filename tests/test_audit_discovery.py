"""The registry compared with discovery by the command and by a service: what does not fit is found,
and whoever comes and goes is not (S8). With real stores and services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from registry.discovery import Discovery, open_discovery
from registry.store.reads.audit import OF_DISCOVERY
from tests.compared import (
    CONFIG,
    CONTENT,
    LIVENESS_S,
    ComingAndGoing,
    attached,
    card_record,
    counts,
    hurrying,
    url_of,
    worker,
)
from tests.etcds import Etcd
from tests.fleet import World, run_cli
from tests.ports import free_port
from tests.support import ROOT, Server, checksum, copied, in_place, wait_for, workers_of

ELSEWHERE = "http://10.0.0.7:9000"


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurrying(tmp_path / "site", monkeypatch)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd") / "data") as started:
        yield started


@pytest.fixture(params=["file", "etcd"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file:{tmp_path / 'kv'}"
    url: str = request.getfixturevalue("etcd").url
    return f"{url}/{tmp_path.name}/"


@pytest.fixture
def open_store(quick: None) -> Iterator[Callable[[str], Discovery]]:
    """Opens stores that are closed when the test is over."""
    with ExitStack() as opened:

        def start(url: str) -> Discovery:
            store = open_discovery(url)
            opened.callback(store.close)
            return store

        yield start


def audited(server: Server, store_url: str, *words: object) -> dict[str, Any]:
    """What the command says of the comparison."""
    url = f"sqlite:///{server.database}"
    code, out, err = run_cli(
        *("audit", "--discovery", store_url, "--database-url", url, "--json", *words)
    )
    answer: dict[str, Any] = json.loads(out)
    is_bad = answer["worst"] not in (None, "note")
    assert code == int(is_bad), err
    return answer


def of_discovery(answer: dict[str, Any]) -> dict[str, int]:
    return {name: n for name, n in answer["counts"].items() if name in OF_DISCOVERY}


# What is found


def plant(server: Server, store: Discovery, folder: Path) -> None:
    """One of each, among workers that are as they should be."""
    for number in range(3):
        attached(server, store, worker(number))
    base = server.url
    missing = ArtifactKey("org_gone", "_base", "config.json")
    cards = [
        # Not served: not held at all, not by this endpoint, with other bytes, without any bytes,
        # under a path that can be nobody's.
        (10, "Gone", [(url_of(base, missing), CONTENT)]),
        (11, "Other", [(url_of(base, CONFIG, Owner("n", "c", "other", 1)), CONTENT)]),
        (12, "Changed", [(url_of(base, CONFIG), b"other")]),
        (13, "Lost", [(url_of(base, ArtifactKey("lost", "_base", "a.json")), b"lost")]),
        (14, "Odd", [(f"{base}/v1/metadata/not/a/file/of/any/registry/here", CONTENT)]),
        (20, "Adoptable", [(url_of(ELSEWHERE, CONFIG), CONTENT)]),
        (30, "Mixed", [(url_of(base, CONFIG), CONTENT)]),
        (31, "Mixed", [(url_of(base, ArtifactKey("two", "_base", "config.json")), b"two")]),
    ]
    for number, name, files in cards:
        store.publish(card_record(worker(number), name, files))
    # Files that a card names must be held by somebody; whose cards these are does not matter.
    file = folder / "a.json"
    file.write_bytes(b"lost")
    lost = in_place(ArtifactKey("lost", "_base", "a.json"), file)
    assert server.register(worker(13), [lost]).status_code == 200
    server.register_copies(worker(31), {ArtifactKey("two", "_base", "config.json"): b"two"})
    file.unlink()
    assert server.client.get("/v1/metadata/lost/_base/a.json").status_code == 503
    assert server.register(worker(40), [copied(CONFIG, CONTENT)]).status_code == 200


PLANTED = {
    "advertised_not_served": 5,
    "served_not_advertised": 1,
    "not_adopted": 1,
    "incompatible_cards": 1,
}


def test_each_class_is_found_by_the_command_and_by_the_service(
    serve: Callable[..., Server],
    store_url: str,
    open_store: Callable[[str], Discovery],
    tmp_path: Path,
) -> None:
    store = open_store(store_url)
    server = serve(discovery=store_url, artifact_root=tmp_path)
    plant(server, store, tmp_path)

    answer = audited(server, store_url)
    assert of_discovery(answer) == PLANTED
    assert answer["worst"] == "outage"
    assert answer["discovery"]["cards"] == 11
    found = {(each["class"], each["owner"]): each for each in answer["findings"]}
    not_served = {
        10: ("org_gone/_base/config.json", "nobody holds it"),
        11: (str(CONFIG), "nobody of n/c/other holds it"),
        12: (str(CONFIG), f"says {checksum(b'other')}, while {checksum(CONTENT)} is registered"),
        13: ("lost/_base/a.json", "no holder has its bytes"),
        14: (f"'{server.url}/v1/metadata/not/a/file/of/any/registry/here'", "no file can be"),
    }
    for number, (entry, said) in not_served.items():
        finding = found["advertised_not_served", str(worker(number))]
        assert (finding["entry"], finding["severity"]) == (entry, "outage")
        assert said in finding["detail"]
    assert "discovery lists no card" in found["served_not_advertised", str(worker(40))]["detail"]
    assert ELSEWHERE in found["not_adopted", str(worker(20))]["detail"]
    mixed = found["incompatible_cards", str(worker(31))]
    assert "'config.json'" in mixed["detail"]
    assert str(worker(30)) in mixed["detail"]

    wait_for(lambda: {**PLANTED}.items() <= (counts(server) or {}).items())
    served = server.client.get("/v1/audit?discovery").json()
    assert served["discovery"]["cards"] == 11
    assert served["discovery"]["age_s"] < 30
    for name, count in PLANTED.items():
        assert counts(server, **{"class": name}) == {name: count}
    # Without the parameter nothing is said of discovery.
    plain = server.client.get("/v1/audit").json()
    assert not plain["counts"].keys() & PLANTED.keys()
    assert "discovery" not in plain
    scraped = server.client.get("/metrics").text
    for name, count in PLANTED.items():
        labels = f'{{class="{name}",severity="{OF_DISCOVERY[name]}"}}'
        assert f"metadata_registry_findings{labels} {count}.0" in scraped
    assert "metadata_registry_discovery_up 1.0" in scraped
    assert "metadata_registry_discovery_cards 11.0" in scraped
    assert "metadata_registry_discovery_age_seconds 0" in scraped

    code, out, err = run_cli(
        *("audit", "--discovery", store_url, "--class", "not_adopted"),
        *("--database-url", f"sqlite:///{server.database}"),
    )
    assert (code, out.splitlines()[3:6]) == (
        0,
        ["1 findings: not_adopted 1", "", "Compared with 11 live cards."],
    )
    assert "looking again in 2 s" in err


def test_of_several_processes_one_looks_and_all_answer(
    serve: Callable[..., Server], open_store: Callable[[str], Discovery], tmp_path: Path
) -> None:
    url = f"file:{tmp_path / 'kv'}"
    store = open_store(url)
    server = serve(discovery=url, workers=2)
    gone = card_record(worker(2), "Gone", [(url_of(server.url, CONFIG), b"other")])
    attached(server, store, worker(1))
    store.publish(gone)
    # A connection each: they come to different processes.
    server.client.headers["connection"] = "close"

    def all_answer(expected: int) -> bool:
        found = [counts(server) for _ in range(12)]
        return all(
            each is not None and each.get("advertised_not_served", 0) == expected for each in found
        )

    wait_for(lambda: all_answer(1))
    # Whoever of the two looked is gone now.
    first, second = workers_of(server)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len({*workers_of(server)} - {first}) == 2)
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: tolerant(lambda: all_answer(1)))
    store.withdraw(gone.key)
    wait_for(lambda: all_answer(0))
    (tmp_path / "kv" / "v1" / "mdc").rename(tmp_path / "away")
    (tmp_path / "kv" / "v1" / "mdc").write_text("no directory")
    wait_for(lambda: "discovery" in server.client.get("/health").json()["warnings"])
    wait_for(lambda: "metadata_registry_discovery_up 0.0" in server.client.get("/metrics").text)
    (tmp_path / "kv" / "v1" / "mdc").unlink()
    (tmp_path / "away").rename(tmp_path / "kv" / "v1" / "mdc")
    wait_for(lambda: "can be compared with again" in server.log)
    wait_for(lambda: all_answer(0))
    assert server.log.count("; retrying") == 1


def tolerant(condition: Callable[[], bool]) -> bool:
    """While processes are replaced, connections are reset."""
    try:
        return condition()
    except httpx2.TransportError:
        return False


# What is not found


def test_what_only_looks_like_it_is_not_found(
    serve: Callable[..., Server],
    store_url: str,
    open_store: Callable[[str], Discovery],
    tmp_path: Path,
) -> None:
    store = open_store(store_url)
    server = serve(discovery=store_url, public_url=["http://registry.example:80/below"])
    base = "http://registry.example/below"
    attached(server, store, worker(1))

    def publish(owner: Owner, name: str, *files: tuple[str, bytes], **fields: Any) -> None:
        store.publish(card_record(owner, name, files, **fields))

    # URLs are not compared, and what a mirror keeps in their fragments is not looked at.
    for number, url in enumerate(
        [
            url_of(base, CONFIG),
            url_of(base, CONFIG, worker(1)) + "#origin=http%3A//10.0.0.7/x",
            url_of("HTTP://Registry.Example:80/below", CONFIG),
        ],
        2,
    ):
        server.register_copies(worker(number), {CONFIG: CONTENT})
        publish(worker(number), "Org/Tiny", (url, CONTENT))
    # A revision is served under its own slug (S17).
    revised = server.register_copies(
        worker(10, "other"), {CONFIG: b"new"}, on_conflict="revision"
    ).json()
    slug = revised["artifacts"][0]["slug"]
    assert slug != CONFIG.slug
    key = ArtifactKey(slug, "_base", "config.json")
    publish(worker(10, "other"), "Org/Tiny", (url_of(base, key), b"new"))
    # Other names, other endpoints and other namespaces may differ.
    publish(Owner("dynamo", "prefill", "generate", 1), "Org/Tiny", (url_of(base, key), b"new"))
    # One that drains, one whose lease has lapsed, one that holds nothing.
    server.register_copies(worker(20), {CONFIG: CONTENT})
    assert server.client.post(f"/v1/owners/{worker(20)}/drain").status_code == 200
    server.register_copies(worker(21), {CONFIG: CONTENT}, lease_ttl_s=1)
    assert server.register(worker(22), []).status_code == 200
    # A card of elsewhere whose files a mirror has copied here.
    server.register_copies(worker(23), {CONFIG: CONTENT}, worker_name="mirror-0-17")
    publish(worker(23, "dynamo"), "Org/Tiny", (url_of(ELSEWHERE, CONFIG), CONTENT))

    wait_for(lambda: counts(server) is not None)
    until = time.monotonic() + 2 * LIVENESS_S
    while time.monotonic() < until:
        assert not (counts(server) or {}).keys() & OF_DISCOVERY.keys()
        time.sleep(0.05)
    assert of_discovery(audited(server, store_url, "--public-url", base)) == {}
    # The service has told where it is reached, so that the command knows it as well.
    assert of_discovery(audited(server, store_url)) == {}
    # By another name all of them are elsewhere; that they are registered here says enough.
    answer = audited(server, store_url, "--public-url", "http://another.example")
    assert of_discovery(answer) == {"not_adopted": 1}


def test_an_empty_store_says_nothing_of_the_owners(
    serve: Callable[..., Server], store_url: str, open_store: Callable[[str], Discovery]
) -> None:
    server = serve()
    server.register_copies(worker(1), {CONFIG: CONTENT})
    started = time.monotonic()
    answer = audited(server, store_url)
    assert of_discovery(answer) == {}
    assert answer["discovery"]["cards"] == 0
    # What fits is not looked at twice.
    assert time.monotonic() - started < LIVENESS_S


def test_a_namespace_narrows_what_is_compared(
    serve: Callable[..., Server], open_store: Callable[[str], Discovery], tmp_path: Path
) -> None:
    url = f"file:{tmp_path / 'kv'}"
    store = open_store(url)
    server = serve(discovery=url, discovery_namespace=["ours"])
    for namespace in ("ours", "theirs"):
        attached(server, store, worker(1, namespace))
        server.register_copies(worker(2, namespace), {CONFIG: CONTENT})
    assert of_discovery(audited(server, url)) == {"served_not_advertised": 2}
    narrowed = audited(server, url, "--namespace", "ours")
    [finding] = [each for each in narrowed["findings"] if each["class"] in OF_DISCOVERY]
    assert finding["owner"] == str(worker(2, "ours"))
    assert of_discovery(audited(server, url, "--namespace", "nobody")) == {}
    wait_for(lambda: (counts(server) or {}).get("served_not_advertised") == 1)


def test_what_others_write_hides_nothing_and_takes_little_memory(
    serve: Callable[..., Server], open_store: Callable[[str], Discovery], tmp_path: Path
) -> None:
    url = f"file:{tmp_path / 'kv'}"
    store = open_store(url)
    server = serve(discovery=url)
    attached(server, store, worker(1))
    store.publish(card_record(worker(2), "Gone", [(url_of(server.url, CONFIG), b"other")]))
    wait_for(lambda: (counts(server) or {}).get("advertised_not_served") == 1)
    before = resident_bytes(server.process.pid)
    files = []
    for number, content in enumerate(hostile_cards(server.url), 100):
        files.append(tmp_path / "kv/v1/mdc" / f"dynamo%2Fbackend%2Fgenerate%2F{number:x}")
        files[-1].write_bytes(content)

    def looked() -> int:
        for file in files:
            os.utime(file)
        answer = server.client.get("/v1/audit?discovery").json()
        cards: int = answer["discovery"]["cards"]
        return cards

    wait_for(lambda: looked() > 15)
    found = counts(server) or {}
    assert found["advertised_not_served"] >= 1
    assert "served_not_advertised" not in found
    assert resident_bytes(server.process.pid) - before < 400 << 20
    assert server.client.get("/health").status_code == 200


def hostile_cards(base: str) -> Iterator[bytes]:
    """Cards as nobody should write them: all are live for a moment."""
    many = b'{"card_json": {%s}}' % b",".join(b'"%x":1' % n for n in range(99_000))
    place = b'{"path": "%s", "checksum": "blake3:' + b"0" * 64 + b'", "size": 1}'
    good = url_of(base, CONFIG).encode()
    for _ in range(12):
        yield many
    yield b'{"card_json": {"extra_files": [%s]}}' % b",".join([place % good] * 20_000)
    yield b'{"card_json": ' + b"[" * 60 + b"]" * 60 + b"}"
    yield b"[" * 100_000
    yield b'{"card_json": null}'
    yield b'{"card_json": {"display_name": 7, "extra_files": [{"path": 7, "checksum": []}]}}'
    for bad in (
        b"http://[::1",
        b"http://a:99999999/v1/metadata/a/_base/b",
        b"http://a:b/",
        b"%ff%fe",
        b"x" * 100_000,
        b"http://" + b"u:p@" * 1000 + b"h/v1/metadata/a/_base/c",
        good + b"/../../../%2e%2e/%00",
        b"",
    ):
        yield b'{"card_json": {"display_name": "n", "extra_files": [%s]}}' % (place % bad)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


# Discovery that is away


def test_discovery_that_hangs_holds_up_nothing_and_is_told_of(
    serve: Callable[..., Server], quick: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"etcd://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        server = serve(discovery=url)
        answer = server.client.get("/v1/audit?discovery")
        assert (answer.status_code, answer.json()["code"]) == (503, "discovery_unavailable")
        assert "retry-after" in answer.headers
        wait_for(lambda: "discovery" in server.client.get("/health").json()["warnings"])
        health = server.client.get("/health").json()
        assert health["status"] == "ok"
        detail = server.client.get("/v1/audit?discovery").json()["detail"]
        assert detail == health["warnings"]["discovery"]
        assert "127.0.0.1" in detail
        assert "secret" not in detail + server.log
        assert server.client.get("/v1/audit").status_code == 200
        scraped = server.client.get("/metrics").text
        assert "metadata_registry_discovery_up 0.0" in scraped
        assert "metadata_registry_discovery_age_seconds NaN" in scraped
        assert 'class="not_adopted"' not in scraped
        assert server.stop() == 0
    assert server.log.count("; retrying") == 1


def test_the_command_says_that_discovery_is_away(serve: Callable[..., Server]) -> None:
    url = f"sqlite:///{serve().database}"
    away = f"etcd://127.0.0.1:{free_port()}"
    code, out, err = run_cli("audit", "--discovery", away, "--database-url", url)
    assert (code, out) == (2, "")
    assert "127.0.0.1" in err


def test_ctrl_c_ends_a_command_that_waits(
    serve: Callable[..., Server], open_store: Callable[[str], Discovery], tmp_path: Path
) -> None:
    url = f"file:{tmp_path / 'kv'}"
    server, store = serve(), open_store(url)
    store.publish(card_record(worker(1), "Gone", [(url_of(server.url, CONFIG), b"other")]))
    command = [sys.executable, "-m", "registry", "audit", "--discovery", url]
    with subprocess.Popen(
        [*command, "--database-url", f"sqlite:///{server.database}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},  # It is to wait for as long as it does for users.
        cwd=ROOT,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "1 thing may not fit; looking again in 10 s.\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=8)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


# What is asked wrongly

NOWHERE = {"discovery": "file:/nowhere"}
WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no store": ({"discovery": "redis://a"}, "discovery: 'redis://a' is not the URL"),
    "no namespace": (NOWHERE | {"discovery_namespace": "a/b"}, "namespaces is 'a/b'"),
    "no store to narrow": ({"discovery_namespace": "a"}, "--discovery"),
    "no URL": (NOWHERE | {"public_url": "registry:8090"}, "public_urls"),
    "every address": (
        {"discovery": "file:/a", "host": "0.0.0.0", "insecure": True},
        "--public-url",
    ),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_cannot_work_stop_the_start(database_path: Path, name: str) -> None:
    flags, said = WRONG_SETTINGS[name]
    with pytest.raises(AssertionError) as failed:
        Server(database_path, from_nothing=True, **flags)
    assert said in str(failed.value)
    assert not database_path.exists()


def test_a_service_that_is_not_compared_says_how_it_would_be(server: Server) -> None:
    for query in ("discovery", "discovery=true", "class=not_adopted"):
        problem = server.client.get(f"/v1/audit?{query}")
        assert (problem.status_code, problem.json()["code"]) == (422, "invalid")
        assert "--discovery URL (setting discovery)" in problem.json()["detail"]
    assert server.client.get("/v1/audit?discovery=maybe").status_code == 422
    assert server.client.get("/v1/audit?discovery=false").status_code == 200
    assert "metadata_registry_discovery" not in server.client.get("/metrics").text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--class", "not_adopted"], "say --discovery URL"),
        (["--namespace", "n"], "say --discovery URL"),
        (["--public-url", "http://a"], "say --discovery URL"),
        (["--discovery", "redis://a"], "is not the URL of a discovery store"),
        (["--discovery", "file:/nowhere", "--namespace", "a/b"], "namespace is 'a/b'"),
        (["--discovery", "file:/nowhere", "--public-url", "a"], "public_urls"),
    ],
)
def test_the_command_refuses_what_it_cannot_compare(
    world: World, words: list[str], said: str
) -> None:
    code, out, err = run_cli("audit", *words, "--database-url", world.url)
    assert (code, out) == (2, "")
    assert said in err


# Coming and going


def test_workers_that_come_and_go_raise_no_false_alarm(
    serve: Callable[..., Server], open_store: Callable[[str], Discovery], tmp_path: Path
) -> None:
    url = f"file:{tmp_path / 'kv'}"
    server = serve(discovery=url)
    commands = 0
    with ComingAndGoing(server, url, workers=60, seconds=10) as fleet:
        while fleet.is_on:
            assert not (counts(server) or {}).keys() & OF_DISCOVERY.keys()
            if commands < 3:
                assert of_discovery(audited(server, url)) == {}
                commands += 1
    assert fleet.errors == []
    assert fleet.attached > 60
