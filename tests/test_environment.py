"""What the environment says is used where it is meant, and named where it is wrong: proxies,
certificates, and passwords, which are sent and never shown."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from registry.cli import main
from registry.client import AsyncRegistryClient, RegistryClient, Resolver, Worker
from registry.client.cache import BlobCache
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.core.text import shown_url
from registry.discovery.cards import Card
from registry.errors import RegistryError, ServiceUnreachable, SettingsError
from registry.network.environment import find_proxy, is_loopback
from tests.peers import Peer, answering, json_answer, read_request
from tests.support import ROOT, Server
from tests.test_worker import make_model

ONCE = RetryPolicy(attempts=1)
OWNER = Owner("dynamo", "backend", "generate", 7)
BODY = {
    "namespace": "dynamo",
    "component": "backend",
    "endpoint": "generate",
    "instance_id": "7",
    "lora_slug": None,
}
RENEWED = json_answer(json.dumps({"owner": BODY, "lease": None, "refs": 3}).encode())
DEAD = "http://127.0.0.1:9"
AWAY = "http://registry.test:8090"
SECRET = "s3cretpw"
VARIABLES = [f"{kind}_{what}" for kind in ("HTTP", "HTTPS", "ALL", "NO") for what in ("PROXY",)] + [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def renew(url: str, **options: str) -> None:
    with RegistryClient(url, timeout_s=5, retries=ONCE, **options) as client:  # type: ignore[arg-type]
        client.renew(OWNER)


def renew_in_a_loop(url: str, **options: str) -> None:
    async def use() -> None:
        async with AsyncRegistryClient(url, timeout_s=5, retries=ONCE, **options) as client:  # type: ignore[arg-type]
            await client.renew(OWNER)

    asyncio.run(use())


both = pytest.mark.parametrize("call", [renew, renew_in_a_loop], ids=["blocking", "asyncio"])
Call = Callable[..., None]


# Proxies


@both
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", [DEAD, "socks5://127.0.0.1:9", "no proxy at all://"])
def test_this_host_is_asked_through_no_proxy(
    environment: pytest.MonkeyPatch, call: Call, variable: str, proxy: str
) -> None:
    environment.setenv(variable, proxy)
    with Peer(answering(lambda target: RENEWED)) as peer:
        call(peer.url)
        call(peer.url.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("x.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("::1", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", True),
        ("localhost.example.com", False),
        ("128.0.0.1", False),
        ("registry", False),
        ("[::2]", False),
    ],
)
def test_what_this_host_is_called(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


P = "http://proxy:3128"


@pytest.mark.parametrize(
    ("url", "environ", "variable"),
    [
        ("http://h/", {}, None),
        ("http://h/", {"HTTP_PROXY": P}, "HTTP_PROXY"),
        ("http://h/", {"HTTP_PROXY": "", "ALL_PROXY": P}, "ALL_PROXY"),
        ("http://h/", {"http_proxy": P, "HTTP_PROXY": "x://"}, "http_proxy"),
        ("http://h/", {"HTTPS_PROXY": P}, None),
        ("https://h/", {"HTTPS_PROXY": P}, "HTTPS_PROXY"),
        ("https://h/", {"HTTP_PROXY": P}, None),
        ("http://h/", {"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, None),
        ("http://h/", {"HTTP_PROXY": P, "NO_PROXY": "*"}, None),
        ("http://h/", {"HTTP_PROXY": P, "NO_PROXY": "x, h"}, None),
        ("http://h/", {"HTTP_PROXY": P, "no_proxy": "H"}, None),
        ("http://a.h.test/", {"HTTP_PROXY": P, "NO_PROXY": "h.test"}, None),
        ("http://a.h.test/", {"HTTP_PROXY": P, "NO_PROXY": ".h.test"}, None),
        ("http://a.h.test/", {"HTTP_PROXY": P, "NO_PROXY": "*.h.test"}, None),
        ("http://h.test/", {"HTTP_PROXY": P, "NO_PROXY": "*.h.test"}, "HTTP_PROXY"),
        ("http://ah.test/", {"HTTP_PROXY": P, "NO_PROXY": "h.test"}, "HTTP_PROXY"),
        ("http://h:81/", {"HTTP_PROXY": P, "NO_PROXY": "h:80"}, "HTTP_PROXY"),
        ("http://h:81/", {"HTTP_PROXY": P, "NO_PROXY": "h:81"}, None),
        ("http://h/", {"HTTP_PROXY": P, "NO_PROXY": "h:80"}, None),
        ("http://10.1.2.3/", {"HTTP_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/", {"HTTP_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, "HTTP_PROXY"),
        ("http://10.1.2.3/", {"HTTP_PROXY": P, "NO_PROXY": "10.1.2.3"}, None),
        ("http://[fd00::1]/", {"HTTP_PROXY": P, "NO_PROXY": "fd00::/8"}, None),
        ("http://[fd00::1]:81/", {"HTTP_PROXY": P, "NO_PROXY": "[fd00::1]:81"}, None),
        ("http://h/", {"HTTP_PROXY": P, "NO_PROXY": "10.0.0.0/99, , ://, h/8"}, "HTTP_PROXY"),
        ("http://h/", {"HTTP_PROXY": "proxy:3128"}, "HTTP_PROXY"),
    ],
)
def test_which_variable_decides(url: str, environ: dict[str, str], variable: str | None) -> None:
    proxy = find_proxy(url, environ)
    assert (None if proxy is None else proxy.variable) == variable
    assert proxy is None or proxy.url == P


@both
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "proxy",
    [
        f"socks5://user:{SECRET}@127.0.0.1:9",
        f"socks4://user:{SECRET}@127.0.0.1:9",
        f"ftp://user:{SECRET}@127.0.0.1:9",
        f"http://user:{SECRET}@:9",
        f"http://user:{SECRET}@[::1",
        f"http://user:{SECRET}@h:99999",
        f"http://user:{SECRET}@h:port",
        f"user:{SECRET}@:x",
        "http://",
        "://",
        "http://a b",
    ],
)
def test_a_proxy_that_is_none_is_named(
    environment: pytest.MonkeyPatch, call: Call, variable: str, proxy: str
) -> None:
    environment.setenv(variable, proxy)
    with pytest.raises(SettingsError, match=variable) as raised:
        call(AWAY)
    assert SECRET not in str(raised.value)
    assert "socksio" in str(raised.value) or "NO_PROXY" in str(raised.value)


@both
def test_a_proxy_that_does_not_answer_is_named(environment: pytest.MonkeyPatch, call: Call) -> None:
    environment.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:9")
    with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9, which HTTP_PROXY") as raised:
        call(AWAY)
    assert SECRET not in str(raised.value)


@both
@pytest.mark.parametrize("status", [403, 407, 502, 503, 504])
def test_an_answer_of_a_proxy_says_which(
    environment: pytest.MonkeyPatch, call: Call, status: int
) -> None:
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(json_answer(b"<h1>no</h1>", status))

    with Peer(behave) as peer:
        where = peer.url.removeprefix("http://")
        environment.setenv("HTTP_PROXY", f"http://user:{SECRET}@{where}")
        with pytest.raises(RegistryError, match="which HTTP_PROXY names") as raised:
            call(AWAY)
    assert SECRET not in str(raised.value)
    # The password was used for what it is there for.
    [line] = [each for each in asked[0].split(b"\r\n") if each.startswith(b"Proxy-Authorization")]
    assert b64decode(line.rpartition(b" ")[2]) == f"user:{SECRET}".encode()


def test_a_fetch_goes_through_the_proxy_for_others_and_not_for_this_host(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = b"x"
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(json_answer(content))

    def fetch(url: str) -> None:
        file = {"path": f"{url}/config.json", "checksum": checksum_of(content), "size": 1}
        cache = BlobCache(tmp_path / f"cache-{len(asked)}")
        Resolver(cache=cache, retries=ONCE).fetch_card(Card({"f": file}))

    with Peer(behave) as proxy, Peer(behave) as here:
        environment.setenv("ALL_PROXY", proxy.url)
        fetch("http://elsewhere.test")
        fetch(here.url)
    assert asked[0].startswith(b"GET http://elsewhere.test/config.json ")
    assert asked[1].startswith(b"GET /config.json ")


def test_netrc_is_not_read(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("NETRC", str(tmp_path / ".netrc"))
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(RENEWED)

    with Peer(behave) as peer:
        renew(peer.url)
    assert b"uthorization" not in asked[0]


# Certificates


class Tls:
    """A certificate, and peers that have it."""

    def __init__(
        self, folder: Path, authority: trustme.CA | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.authority = authority or trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(self.context)

    def behave(self, inner: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
        def behave(connection: socket.socket) -> None:
            with suppress(OSError), self.context.wrap_socket(connection, server_side=True) as tls:
                inner(tls)

        return behave


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(tls: Tls) -> Iterator[Peer]:
    with Peer(tls.behave(answering(lambda target: RENEWED))) as peer:
        peer.url = peer.url.replace("http:", "https:")
        yield peer


@both
def test_an_authority_may_be_named(secure: Peer, tls: Tls, call: Call) -> None:
    call(secure.url, ca_file=str(tls.ca_file))
    with pytest.raises(ServiceUnreachable, match="ca_file, --ca-file or SSL_CERT_FILE"):
        call(secure.url)


@both
def test_ssl_cert_file_is_heeded_and_ca_file_goes_before_it(
    environment: pytest.MonkeyPatch, secure: Peer, tls: Tls, call: Call, tmp_path: Path
) -> None:
    environment.setenv("SSL_CERT_FILE", str(tls.ca_file))
    call(secure.url)
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    call(secure.url, ca_file=str(tls.ca_file))


def test_an_authority_that_changed_is_read_again(secure: Peer, tls: Tls, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    with pytest.raises(ServiceUnreachable):
        renew(secure.url, ca_file=str(file))
    file.unlink()
    tls.authority.cert_pem.write_to_path(file)
    renew(secure.url, ca_file=str(file))


@both
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("what", ["missing", "garbage", "directory", "key"])
def test_certificates_that_cannot_be_used_are_named_and_only_for_https(
    environment: pytest.MonkeyPatch, call: Call, variable: str, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "certificates"
    if what == "garbage":
        path.write_bytes(b"\0\xff" * 100)
    elif what == "key":
        path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif what == "directory":
        path.mkdir()
    environment.setenv(variable, str(path))
    with Peer(answering(lambda target: RENEWED)) as peer:
        call(peer.url)
        if (variable, what) == ("SSL_CERT_DIR", "directory"):
            return
        with pytest.raises(SettingsError, match=variable):
            call(peer.url.replace("http:", "https:"))
        with pytest.raises(SettingsError, match="ca_file"):
            call(peer.url.replace("http:", "https:"), ca_file=str(path))


def relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@both
def test_a_secure_service_behind_a_secure_proxy_is_reached(
    environment: pytest.MonkeyPatch, tls: Tls, call: Call
) -> None:
    inner = Tls(tls.ca_file.parent, tls.authority, "registry.test")

    def behave(connection: socket.socket) -> None:
        head = read_request(connection)
        assert head.startswith(b"CONNECT registry.test:8443 ")
        with socket.create_connection(("127.0.0.1", service.port)) as upstream:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=relay, args=(upstream, connection), daemon=True).start()
            relay(connection, upstream)

    answers = inner.behave(answering(lambda target: RENEWED))
    with Peer(answers) as service, Peer(tls.behave(behave)) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url.replace("http:", "https:"))
        call("https://registry.test:8443", ca_file=str(tls.ca_file))


# Passwords


DATABASE_COMMANDS = (["db", "current"], ["audit"], ["sql", "SELECT 1"], ["config", "show"])


def authorization(url: str, call: Call) -> str:
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(RENEWED)

    with Peer(behave) as peer:
        call(url.replace("HOST", f"127.0.0.1:{peer.port}"))
    [line] = [each for each in asked[0].split(b"\r\n") if each.lower().startswith(b"authorization")]
    return b64decode(line.rpartition(b" ")[2]).decode()


@both
@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://user:pass@HOST", "user:pass"),
        ("http://user:p%40ss%2Fw@HOST", "user:p@ss/w"),
        ("http://user:p@ss@HOST", "user:p@ss"),
        ("http://user@HOST", "user:"),
        ("http://us%C3%A9r:%C3%BC@HOST", "usér:ü"),
    ],
)
def test_a_password_in_the_url_is_sent_as_basic_authentication(
    call: Call, url: str, sent: str
) -> None:
    assert authorization(url, call) == sent


def test_a_password_and_a_token_cannot_both_be_sent() -> None:
    for client in (RegistryClient, AsyncRegistryClient, Resolver):
        with pytest.raises(SettingsError, match="Only one") as raised:
            client(f"http://user:{SECRET}@h", token="t")
        assert SECRET not in str(raised.value)


URLS = [
    f"http://user:{SECRET}@127.0.0.1:9",
    f"http://user:{SECRET}@127.0.0.1:9/prefix/",
    f"http://user:{SECRET}@127.0.0.1:port",
    f"http://user:{SECRET}@127.0.0.1:99999",
    f"http://user:{SECRET}/x@127.0.0.1:9",
    f"http://user:{SECRET}@[::1",
    f"http://user:{SECRET}@",
    f"ftp://user:{SECRET}@127.0.0.1",
    f"user:{SECRET}@127.0.0.1:9",
    f"http:user:{SECRET}@127.0.0.1:9",
    f"http://user:{SECRET}@h\x00st",
]


@both
@pytest.mark.parametrize("url", URLS)
def test_no_error_shows_a_password(call: Call, url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(RegistryError) as raised:
        call(url)
    chain: list[BaseException] = [raised.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    assert SECRET not in "".join(f"{each!r}{each}" for each in chain) + caplog.text


@pytest.mark.parametrize(
    "command",
    [
        ["ls"],
        ["owners"],
        ["models"],
        ["events"],
        ["explain", "a/_base/c"],
        ["renew", "a/b/c/1/_base"],
        ["drain", "a/b/c/1/_base"],
        ["detach", "a/b/c/1/_base"],
        ["fetch", "m"],
    ],
    ids=" ".join,
)
def test_no_command_shows_a_password(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "registry", *command, "--url", URLS[0]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, "leads other hosts to themselves"),
        ({"public_url": f"http://user:{SECRET}@registry.test/x/"}, "are left out"),
    ],
)
def test_no_card_and_no_log_shows_a_password(
    server: Server,
    tmp_path: Path,
    options: dict[str, str],
    warned: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("://", f"://user:{SECRET}@")
    store = tmp_path / "store"
    with Worker(url, OWNER, discovery=f"file:{store}", **options) as worker:  # type: ignore[arg-type]
        card = worker.attach(make_model(tmp_path / "model"), name="tiny")
        records = "".join(path.read_text() for path in store.rglob("*") if path.is_file())
    where = "http://registry.test/x/v1/metadata/" if options else f"{server.url}/v1/metadata/"
    assert all(file.url.startswith(where) for file in card.files)
    assert SECRET not in json.dumps(dict(card.content)) + records + caplog.text
    assert warned in caplog.text


def test_a_password_in_a_card_is_used_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    content = b"x"
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(json_answer(content if len(asked) == 1 else b"other"))

    with Peer(behave) as peer:
        url = peer.url.replace("://", f"://user:{SECRET}@")
        for number, error in enumerate((None, RegistryError)):
            file = {"path": f"{url}/config.json", "checksum": checksum_of(content), "size": 1}
            resolver = Resolver(cache=BlobCache(tmp_path / f"cache-{number}"), retries=ONCE)
            if error is None:
                resolver.fetch_card(Card({"f": file}))
                continue
            with pytest.raises(error) as raised:
                resolver.fetch_card(Card({"f": file}))
            assert SECRET not in str(raised.value)
    assert SECRET not in caplog.text
    assert b"GET /config.json" in asked[0]
    assert b"Basic " in asked[0]


DATABASES = [
    f"postgresql://user:{SECRET}@h/db",
    f"postgresql://user:{SECRET}@h:port/db",
    f"sqlite://user:{SECRET}@h/db",
    f"user:{SECRET}@h",
]
STORES = [f"http://user:{SECRET}@h", f"file://user:{SECRET}@h/x", f"user:{SECRET}@h"]


@pytest.mark.parametrize(
    "command",
    [
        *([*words, "--database-url", url] for url in DATABASES for words in DATABASE_COMMANDS),
        *(
            ["attach", ".", "--name", "x", "--endpoint", "a/b/c", "--hold", "--discovery", url]
            for url in STORES
        ),
    ],
    ids=" ".join,
)
def test_no_command_shows_the_password_of_a_database_or_a_store(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metadata-registry", *command])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert out + err
    assert SECRET not in out + err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h:1/p", "http://h:1/p"),
        ("http://u:p@h:1/p", "http://h:1/p"),
        ("http://u:p@q@h", "http://h"),
        ("http://u:p/q@h", "http://h"),
        ("u:p@h", "h"),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        ("file:/srv/a@b", "file:/srv/a@b"),
        ("file://u:p@h/x", "file://h/x"),
        ("postgresql://u:p@h/db", "postgresql://h/db"),
    ],
)
def test_how_a_url_is_shown(text: str, shown: str) -> None:
    assert shown_url(text) == shown


# Errors are short


def test_an_unreachable_service_gives_one_short_traceback() -> None:
    use = f"RegistryClient({DEAD!r}).renew('a/b/c/1/_base')"
    program = f"from registry.client import RegistryClient\n{use}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stderr.count("Traceback") == 1
    assert len(done.stderr.splitlines()) < 40
    assert f"{DEAD} does not answer: [Errno 111] Connection refused." in done.stderr
