"""A call of the client ends in its time, however slowly something answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.client import AsyncRegistryClient, RegistryClient, Resolver
from registry.client.cache import BlobCache
from registry.client.resolver import FetchLimits
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.discovery.cards import Card
from registry.errors import RegistryError, ServiceUnreachable, SettingsError
from tests.peers import Peer, elapsed, read_request

TIMEOUT_S = 0.2
BOUND_S = 8.0
"""Far above the timeout, for a loaded machine; without a deadline these calls have no end."""

ONCE = RetryPolicy(attempts=1)
OWNER = Owner("dynamo", "backend", "generate", 1)
KEY = ArtifactKey("tiny", "_base", "config.json")
CONTENT = b'{"a": 1}'

Manner = Callable[[Peer, socket.socket], None]


def silent(peer: Peer, connection: socket.socket) -> None:
    peer.ended.wait(60)


def drips(start: bytes, part: bytes) -> Manner:
    """Sends the start of an answer, and then parts of it for ever."""

    def manner(peer: Peer, connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(start)
        peer.drip(connection, part)

    return manner


def drips_a_handshake(peer: Peer, connection: socket.socket) -> None:
    connection.recv(1)
    # A record of TLS that would have 16,000 bytes.
    connection.sendall(b"\x16\x03\x03\x3e\x80")
    peer.drip(connection, b"\x02")


MANNERS: dict[str, Manner] = {
    "silence": silent,
    "a status line that drips": drips(b"HTTP/1.1 200", b" "),
    "headers that drip": drips(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "interim answers without end": drips(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a body that drips": drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "chunks that drip": drips(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"
    ),
    "a body without a length that drips": drips(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "an error that drips": drips(b"HTTP/1.1 503 X\r\nContent-Length: 100000\r\n\r\n", b" "),
    "trailers that drip": drips(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n"
    ),
}
manners = pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)


def use(client: RegistryClient, what: str, into: Path) -> None:
    if what == "renew":
        client.renew(OWNER)
    elif what == "upload":
        client.upload(checksum_of(CONTENT), CONTENT)
    elif what == "list":
        list(client.artifacts())
    else:
        with (into / "file").open("w+b") as file:
            client.download(KEY, checksum_of(CONTENT), len(CONTENT), file)


EVERY = ["renew", "upload", "list", "download"]
CALLS = [(manner, "renew") for manner in MANNERS] + [("a body that drips", w) for w in EVERY[1:]]


@pytest.mark.parametrize(("name", "what"), CALLS)
def test_a_blocking_call_ends_in_its_time(tmp_path: Path, name: str, what: str) -> None:
    manner = MANNERS[name]
    with (
        Peer(lambda connection: manner(peer, connection)) as peer,
        RegistryClient(peer.url, timeout_s=TIMEOUT_S, retries=ONCE) as client,
    ):

        def call() -> None:
            with pytest.raises(RegistryError):
                use(client, what, tmp_path)

        assert elapsed(call) < BOUND_S


@manners
def test_a_call_of_the_asyncio_client_ends_in_its_time(manner: Manner) -> None:
    async def call(url: str) -> None:
        async with AsyncRegistryClient(url, timeout_s=TIMEOUT_S, retries=ONCE) as client:
            with pytest.raises(RegistryError):
                await client.renew(OWNER)
            with pytest.raises(RegistryError):
                [each async for each in client.artifacts()]

    with Peer(lambda connection: manner(peer, connection)) as peer:
        assert elapsed(lambda: asyncio.run(call(peer.url))) < BOUND_S


async def renew_soon(url: str) -> None:
    async with AsyncRegistryClient(url, timeout_s=TIMEOUT_S, retries=ONCE) as client:
        with pytest.raises(ServiceUnreachable):
            await client.renew(OWNER)


def renew_now(url: str) -> None:
    with (
        RegistryClient(url, timeout_s=TIMEOUT_S, retries=ONCE) as client,
        pytest.raises(ServiceUnreachable),
    ):
        client.renew(OWNER)


both = pytest.mark.parametrize(
    "call", [renew_now, lambda url: asyncio.run(renew_soon(url))], ids=["blocking", "asyncio"]
)


@both
def test_a_handshake_that_drips_ends_in_its_time(call: Callable[[str], None]) -> None:
    with Peer(lambda connection: drips_a_handshake(peer, connection)) as peer:
        assert elapsed(lambda: call(peer.url.replace("http:", "https:"))) < BOUND_S


@both
def test_a_name_that_is_looked_up_without_end_ends_in_its_time(
    call: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def look_up(*args: Any, **kwargs: Any) -> Any:
        ended.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert elapsed(lambda: call("http://registry.test:8090")) < BOUND_S
    finally:
        ended.set()


@both
def test_the_addresses_of_a_name_share_the_time(
    call: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody answers at these: they are for documentation.
    addresses = [f"192.0.2.{number}" for number in range(1, 30)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert elapsed(lambda: call("http://registry.test")) < BOUND_S


@both
@pytest.mark.parametrize(
    "host", ["a" * 300, "a..b", "xn--a", "a" * 64 + ".test", "no-such-host.invalid", ".test"]
)
def test_a_host_that_cannot_be_one_is_unreachable(call: Callable[[str], None], host: str) -> None:
    # Of some it is seen before they are asked that this is no URL.
    with suppress(SettingsError):
        call(f"http://{host}")


@both
def test_no_thread_for_a_name_is_an_error_of_ours(
    call: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        call("http://registry.test")


def test_redirects_without_end_end_in_their_time(tmp_path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            head = f"HTTP/1.1 302 X\r\nLocation: {peer.url}/x\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())

    with Peer(behave) as peer:
        file = {"path": f"{peer.url}/config.json", "checksum": checksum_of(b"x"), "size": 1}
        resolver = Resolver(
            cache=BlobCache(tmp_path), limits=FetchLimits(deadline_s=5), retries=ONCE
        )
        with pytest.raises(ServiceUnreachable, match="in a circle"):
            resolver.fetch_card(Card({"model_info": {"hf_config_json": file}}))


@pytest.mark.parametrize("name", ["silence", "a body that drips"])
def test_a_fetch_ends_at_its_deadline(tmp_path: Path, name: str) -> None:
    with Peer(lambda connection: MANNERS[name](peer, connection)) as peer:
        resolver = Resolver(
            peer.url,
            cache=BlobCache(tmp_path),
            limits=FetchLimits(deadline_s=TIMEOUT_S),
            retries=ONCE,
        )

        def call() -> None:
            with pytest.raises(RegistryError):
                resolver.fetch("tiny")

        assert elapsed(call) < BOUND_S


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), 1e300])
def test_a_timeout_that_is_none_is_a_wrong_setting(timeout_s: float) -> None:
    with pytest.raises(SettingsError, match="timeout"):
        RegistryClient("http://registry", timeout_s=timeout_s)
    with pytest.raises(SettingsError, match="timeout"):
        AsyncRegistryClient("http://registry", timeout_s=timeout_s)


@pytest.mark.parametrize("deadline_s", [0, -1, float("inf"), float("nan")])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    with pytest.raises(RegistryError, match="deadline"):
        FetchLimits(deadline_s=deadline_s)
