"""Etcds that hold, or answer, whatever others like; and what an etcd's URL may say."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from registry.client import Worker
from registry.core.records import Owner
from registry.discovery import Kind, RecordKey, model_record, open_discovery
from registry.discovery.cards import make_card
from registry.discovery.etcd import EtcdDiscovery, follower, gateway, listing, watch_stream
from registry.discovery.etcd.settings import EtcdSettings, TlsFiles, read_settings
from registry.discovery.record_io import NAMED_MAX, RECORD_MAX_BYTES
from registry.errors import DiscoveryUnavailable, SettingsError
from tests.etcds import Etcd, Watcher, base64_of
from tests.peers import Peer
from tests.support import Server, wait_for

GOOD = Owner("n", "c", "e", 0xABC)
RECORD = model_record(GOOD, make_card("Org/Tiny", []))
KEY = RecordKey(Kind.MODEL, Owner("n", "c", "e", 1))
_numbers = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    data = tmp_path_factory.mktemp("etcd") / "data"
    with Etcd(data, max_request_bytes=40_000_000) as started:
        yield started


@pytest.fixture
def prefix() -> str:
    return f"hostile-{next(_numbers)}/"


@pytest.fixture
def store(etcd: Etcd, prefix: str) -> Iterator[EtcdDiscovery]:
    """A prefix with one good record."""
    opened = EtcdDiscovery(read_settings(f"{etcd.url}/{prefix}", {}))
    opened.publish(RECORD)
    yield opened
    opened.close()


def owners(store: EtcdDiscovery) -> list[Owner]:
    return [record.key.owner for record in store.list(Kind.MODEL)]


# What stands there


IDENTITY = {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 1}
ODD_VALUES: dict[str, bytes] = {
    "nothing": b"",
    "a part of a record": b'{"card_json": {',
    "something behind": b"{} {}",
    "a list": b"[]",
    "null": b"null",
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "no number": b'{"a": NaN}',
    "lists 500 deep": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "lists a million deep": b'{"a": ' + b"[" * 1_000_000,
    "a little too large": b" " * RECORD_MAX_BYTES + b"{}",
    "far too large": b" " * 20_000_000 + b"{}",
    "another namespace": json.dumps(IDENTITY | {"namespace": "other"}).encode(),
    "an instance of another type": json.dumps(IDENTITY | {"instance_id": "1"}).encode(),
    "a LoRA where there is none": json.dumps(IDENTITY | {"model_suffix": "lora"}).encode(),
}


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES.keys())
def test_what_is_no_record_is_left_out_and_named_once(
    etcd: Etcd, prefix: str, store: EtcdDiscovery, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    etcd.put(f"{prefix}{KEY}", value)
    assert owners(store) == owners(store) == [GOOD]
    assert store.find(KEY) is None
    assert caplog.text.count("is left out") == caplog.text.count(KEY.name) > 0
    etcd.put(f"{prefix}{KEY}", b"{}")
    assert owners(store) == [KEY.owner, GOOD]
    etcd.delete(f"{prefix}{KEY}")


def test_a_record_that_becomes_none_is_gone_for_a_watch(
    etcd: Etcd, prefix: str, store: EtcdDiscovery
) -> None:
    watcher = Watcher(store)
    for number, value in enumerate(ODD_VALUES.values()):
        etcd.put(f"{prefix}{KEY}", json.dumps({"user_data": number}))
        wait_for(lambda: KEY in watcher.live)
        etcd.put(f"{prefix}{KEY}", value)
        watcher.wait_until(RECORD)
    etcd.delete(f"{prefix}{KEY}")
    assert not watcher.has_ended


ODD_NAMES = [
    *("", "n/c/e", "n/c/e/01", "n/c/e/0x1", "n/c/e/ABC", "n/c/e/ 1", "n/c/e/1\n", "n/c/e/1/"),
    *("n/c/e/10000000000000000", "n//e/1", "n/c/e/1/_base", "n/c/e/1/x/y", "n/c/e/1\0"),
    *("n/c/e/\u0661", "\xff", "\x1b[31m/c/e/1", "n" * 5000 + "/c/e/1", "../c/e/1/../x"),
]


def test_what_has_no_name_of_a_record_is_left_out(
    etcd: Etcd, prefix: str, store: EtcdDiscovery, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Watcher(store)
    watcher.wait_until(RECORD)
    for name in ODD_NAMES:
        etcd.put(f"{prefix}v1/mdc/{name}", b"{}")
    body = {"key": base64_of(f"{prefix}v1/mdc/".encode() + b"\xff\xfe"), "value": base64_of("{}")}
    etcd.ask("kv/put", body)
    etcd.put(f"{prefix}{KEY}", b"{}")
    assert owners(store) == [KEY.owner, GOOD]
    wait_for(lambda: KEY in watcher.live)
    assert len(watcher.live) == 2
    assert caplog.text.count("is left out") == len(ODD_NAMES) + 1
    assert "\x1b" not in caplog.text


def test_of_many_odd_names_few_are_logged(
    etcd: Etcd, prefix: str, store: EtcdDiscovery, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(NAMED_MAX + 20):
        etcd.put(f"{prefix}v1/mdc/{number}", b"{}")
    assert owners(store) == [GOOD]
    assert caplog.text.count("is left out") == NAMED_MAX


# Too much


@pytest.mark.parametrize(
    ("bound", "value", "says"),
    [
        ("LISTING_MAX_NAMES", 20, "more than 20 keys"),
        ("LISTING_MAX_BYTES", 1 << 20, "more than 1 MiB of records"),
        ("LISTING_MAX_S", 0.0, "cannot be used"),
    ],
)
def test_more_than_a_listing_takes_is_an_error_and_not_an_empty_list(
    etcd: Etcd,
    prefix: str,
    store: EtcdDiscovery,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    value: float,
    says: str,
) -> None:
    for number in range(20):
        etcd.put(f"{prefix}v1/mdc/n/c/e/{number + 10}", b" " * 100_000 + b"{}")
    assert len(owners(store)) == 21
    monkeypatch.setattr(listing, bound, value)
    with pytest.raises(DiscoveryUnavailable, match=says):
        store.list(Kind.MODEL)


def test_records_come_page_by_page_and_large_ones_on_smaller_pages(
    etcd: Etcd, prefix: str, store: EtcdDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [GOOD]
    for number in range(30):
        owner = Owner("n", "c", "e", 0x100 + number)
        expected.append(owner)
        etcd.put(f"{prefix}{RecordKey(Kind.MODEL, owner)}", b" " * 10_000 * (number % 5) + b"{}")
    expected.sort(key=lambda owner: f"{owner.instance_id:x}")
    monkeypatch.setattr(listing, "PAGE_KEYS", 7)
    assert owners(store) == expected
    monkeypatch.setattr(listing, "PAGE_MAX_BYTES", 30_000)
    # At this size a page has one key or none; two values are larger than that.
    assert set(owners(store)) <= set(expected)
    monkeypatch.setattr(listing, "PAGE_MAX_BYTES", 60_000)
    assert owners(store) == expected


def test_more_than_a_watch_holds_is_an_error(
    etcd: Etcd, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EtcdDiscovery(read_settings(f"{etcd.url}/{prefix}", {}), patience_s=0.2)
    watcher = Watcher(store)
    etcd.put(f"{prefix}{KEY}", b"{}")
    wait_for(lambda: KEY in watcher.live)
    for module in (follower, listing):
        monkeypatch.setattr(module, "LISTING_MAX_NAMES", 20)
    for number in range(30):
        etcd.put(f"{prefix}v1/mdc/n/c/e/{number + 10}", b"{}")
    wait_for(lambda: watcher.has_ended)
    assert "more than 20 keys" in str(watcher.error)
    store.close()


def test_a_message_of_a_watch_that_is_too_large_leads_to_a_listing(
    etcd: Etcd, prefix: str, store: EtcdDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(store)
    watcher.wait_until(RECORD)
    monkeypatch.setattr(watch_stream, "LINE_MAX_BYTES", 100_000)
    etcd.put(f"{prefix}{KEY}", b" " * 1_000_000 + b"{}")
    wait_for(lambda: KEY in watcher.live)
    etcd.delete(f"{prefix}{KEY}")
    watcher.wait_until(RECORD)


# What answers is no etcd


def receive(connection: socket.socket) -> bool:
    """One whole request. What is left of one would reset the connection."""
    with connection.makefile("rb") as file:
        length, line = 0, b"-"
        while line.strip():
            line = file.readline()
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return len(file.read(length)) > 0


def answering(content: bytes, status: str = "200 OK") -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        receive(connection)
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)

    return behave


def silent(connection: socket.socket) -> None:
    receive(connection)


def never_ending(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{")
    while True:
        connection.sendall(b" " * (1 << 16))


def same_page(connection: socket.socket) -> None:
    page = {"header": {"revision": "9"}, "kvs": [{"key": base64_of("v1/mdc/a")}], "more": True}
    content = json.dumps(page).encode()
    while receive(connection):
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)


NO_ETCD: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "a web page": (answering(b"<html>"), "none of an etcd"),
    "a missing page": (answering(b"no", "404 Not Found"), "listen-client-http-urls"),
    "a redirect": (answering(b"", "302 Found\r\nlocation: http://127.0.0.1:1/"), "no JSON gateway"),
    "another JSON": (answering(b"[7]"), "none of an etcd"),
    "a deep JSON": (answering(b'{"kvs":' * 100_000), "none of an etcd"),
    "a deep error": (answering(b'{"error":' * 100_000, "500 No"), "no JSON gateway"),
    "no base64": (answering(b'{"kvs": [{"key": "\xc3\xa9"}]}'), "none of an etcd"),
    "no number": (answering(b'{"header": {"revision": "x"}}'), "none of an etcd"),
    "no HTTP": (lambda connection: connection.sendall(b"SSH-2.0\r\n\r\n"), "cannot be used"),
    "nothing": (lambda connection: None, "etcds://"),
    "nothing to what was asked": (silent, "etcds://"),
    "an answer without end": (never_ending, "more than"),
    "the same page again": (same_page, "twice"),
}


@pytest.mark.parametrize(("behave", "says"), NO_ETCD.values(), ids=NO_ETCD.keys())
def test_what_is_no_etcd_is_an_error(
    behave: Callable[[socket.socket], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_MAX_BYTES", 1 << 20)
    with Peer(behave) as peer:
        store = EtcdDiscovery(read_settings(f"etcd://127.0.0.1:{peer.port}", {}))
        with pytest.raises(DiscoveryUnavailable, match=says):
            store.list(Kind.MODEL)
        with pytest.raises(DiscoveryUnavailable, match=str(peer.port)):
            store.publish(RECORD)
        with pytest.raises(DiscoveryUnavailable):
            list(store.watch(Kind.MODEL))
        store.close()


def test_an_etcd_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CALL_MAX_S", 0.5)

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.drip(connection, b" ")

    with Peer(drip) as peer:
        store = EtcdDiscovery(read_settings(f"etcd://127.0.0.1:{peer.port}", {}))
        with pytest.raises(DiscoveryUnavailable, match=r"deadline|in time"):
            store.find(KEY)
        store.close()


def test_a_child_of_the_process_that_opened_a_store_is_told_so(store: EtcdDiscovery) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for act in (lambda: store.list(Kind.MODEL), lambda: store.publish(RECORD)):
            try:
                act()
            except DiscoveryUnavailable as error:
                os.write(write, f"{error}\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read().count(f"opened by process {os.getpid()}") == 2
    assert owners(store) == [GOOD]


# Proxies


def test_a_proxy_is_asked_for_other_hosts_and_never_for_this_one(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def note(connection: socket.socket) -> None:
        asked.append(connection.recv(1 << 16).split(b"\r\n")[0])

    with Peer(note) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        for url in (etcd.url, "etcd://etcd.example"):
            store = EtcdDiscovery(read_settings(url, {}))
            if "example" in url:
                with pytest.raises(DiscoveryUnavailable, match=r"etcd\.example"):
                    store.find(KEY)
            else:
                assert store.find(KEY) is None
            store.close()
    assert set(asked) == {b"POST http://etcd.example:2379/v3/kv/range HTTP/1.1"}


# A worker


def test_a_worker_publishes_in_an_etcd(etcd: Etcd, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    url = f"{etcd.url}/{prefix}"
    store = open_discovery(url)
    with Server(tmp_path / "r.db", artifact_root=tmp_path) as server:
        with Worker(server.url, GOOD, discovery=url) as worker:
            card = worker.attach(tmp_path / "model", name="Org/Tiny")
            assert store.list(Kind.MODEL) == [model_record(GOOD, card)]
        assert store.list(Kind.MODEL) == []
    store.close()


# URLs and variables


URLS: dict[str, tuple[dict[str, str], EtcdSettings]] = {
    "etcd://h": ({}, EtcdSettings(("http://h:2379",))),
    "ETCDS://h:1,g:2/": ({}, EtcdSettings(("https://h:1", "https://g:2"))),
    "etcd://[::1]:7/workers": ({}, EtcdSettings(("http://[::1]:7",), "workers/")),
    "etcd://h//a%20b/": ({}, EtcdSettings(("http://h:2379",), "/a b/")),
    "etcd://u:p%40%2F@h": ({}, EtcdSettings(("http://h:2379",), user=("u", "p@/"))),
    "etcd://u@h": (
        {"ETCD_AUTH_PASSWORD": "p", "ETCD_AUTH_USERNAME": "v", "ETCD_ENDPOINTS": "x:1"},
        EtcdSettings(("http://h:2379",), user=("u", "p")),
    ),
    "etcd:": ({}, EtcdSettings(("http://localhost:2379",))),
    "etcd:///p/": (
        {"ETCD_ENDPOINTS": " http://a:1/, https://b ,c:3,", "ETCD_AUTH_CA": "/ca"},
        EtcdSettings(("http://a:1", "https://b:2379", "http://c:3"), "p/", tls=TlsFiles("/ca")),
    ),
    "etcds:": (
        {"ETCD_ENDPOINTS": "a:1", "ETCD_AUTH_USERNAME": "u", "ETCD_AUTH_PASSWORD": "p"},
        EtcdSettings(("https://a:1",), user=("u", "p")),
    ),
    "etcds://h?ca_file=/a&cert_file=/b%20&key_file=/c": (
        {"ETCD_AUTH_CA": "/other"},
        EtcdSettings(("https://h:2379",), tls=TlsFiles("/a", "/b ", "/c")),
    ),
}


@pytest.mark.parametrize(
    ("url", "environ", "settings"), [(url, *rest) for url, rest in URLS.items()], ids=URLS.keys()
)
def test_a_url_and_dynamos_variables_say_where_an_etcd_is(
    url: str, environ: dict[str, str], settings: EtcdSettings
) -> None:
    assert read_settings(url, environ) == settings


@pytest.mark.parametrize(
    "url",
    [
        *(
            "etcd:h",
            "etcd://h:0",
            "etcd://h:99999",
            "etcd://h:x",
            "etcd://,",
            "etcd://h,",
            "etcd:h:1",
        ),
        *("etcd://a b", "etcd://::1", "etcd://h/%FF", "etcd://h/%00", "etcd://h?x=1", "etcd://h#x"),
        *("etcd://s3cret:s3cret/@h", "etcd://:s3cret@h", "etcd://u:s3cret@"),
        *("etcd://h/" + "x" * 2000, "etcd://h?ca_file", f"etcd://{'h,' * 5000}h"),
    ],
)
def test_what_is_no_url_of_an_etcd_is_refused_and_no_password_is_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="must look like etcd://HOST") as caught:
        open_discovery(url)
    assert "s3cret" not in str(caught.value).replace("@s3cret", "")


@pytest.mark.parametrize(
    ("url", "environ", "says"),
    [
        ("etcd:", {"ETCD_ENDPOINTS": "ftp://h"}, "ETCD_ENDPOINTS names 'ftp://h'"),
        ("etcd:", {"ETCD_ENDPOINTS": "http://u:s3cret@h:1"}, "ETCD_ENDPOINTS names 'http://h:1'"),
        ("etcds:", {"ETCD_ENDPOINTS": "http://h"}, "https://HOST"),
        ("etcd:", {"ETCD_ENDPOINTS": ",".join("h" * 50)}, "at most 32"),
        ("etcd://u@h", {}, "ETCD_AUTH_PASSWORD"),
        ("etcd://u@s3cret@h", {}, "ETCD_AUTH_PASSWORD"),
        ("etcd://h", {"ETCD_AUTH_USERNAME": "u"}, "ETCD_AUTH_PASSWORD"),
        ("etcd://h", {"ETCD_AUTH_CLIENT_KEY": "/k"}, "needs its key"),
    ],
)
def test_variables_that_cannot_be_used_are_named(
    url: str, environ: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        read_settings(url, environ)
    assert "s3cret" not in str(caught.value)


def test_settings_do_not_show_passwords_or_keys() -> None:
    url = "etcds://u:s3cret@h?cert_file=/c&key_file=/k3y"
    settings = read_settings(url, {})
    for text in (repr(settings), str(settings)):
        assert "s3cret" not in text
        assert "k3y" not in text
