"""Fetching: every file verified, or nothing in the directory changes, however a server behaves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from registry.client.attach import attach
from registry.client.cache import BlobCache
from registry.client.client import RegistryClient
from registry.client.download import Receiver
from registry.client.fetch_plan import Download, Refuse, Use, decide
from registry.client.protocol import Endpoint
from registry.client.resolver import FetchLimits, Resolver
from registry.client.retries import RetryPolicy
from registry.client.wanted_files import Wanted, files_of
from registry.core.hashing import FileContent, checksum_of
from registry.core.records import ArtifactKey, Owner
from registry.discovery.cards import Card, CardFile, make_card
from registry.errors import (
    ChecksumMismatch,
    Invalid,
    NotRegistered,
    RegistryError,
    ServiceUnreachable,
    SettingsError,
    TooLarge,
    Unserveable,
)
from tests.exchanges import new_slug, running
from tests.fileservers import SLUG, FileServer, Manner, Request, begin, well
from tests.models import TEXT, make_model
from tests.support import Server, in_place

OWNER = Owner("dynamo", "backend", "generate", 7)
CONTENTS = {"config.json": b"{}", "tokenizer.json": b"[1]" * 100_000, "copy.json": b"{}"}
NAMES = [f"{number}.json" for number in range(9)]
AT_ONCE = RetryPolicy(attempts=3, first_pause_s=0)
ONCE = RetryPolicy(attempts=1)


def contents_of(directory: Path) -> dict[str, bytes]:
    """Everything in a directory, hidden files as well."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


# Decisions


CACHED = FileContent("/cache/0", checksum_of(b"{}"), 2, None)
WANTED = Wanted("config.json", checksum_of(b"{}"), 2, "/v1/metadata/tiny/_base/config.json")


@pytest.mark.parametrize(
    ("cached", "decision"),
    [
        (None, Download()),
        (CACHED, Use(Path("/cache/0"))),
        (FileContent("/cache/0", checksum_of(b"[]"), 2, None), Download()),
        (FileContent("/cache/0", checksum_of(b"{}"), 3, None), Download()),
    ],
)
def test_what_the_cache_has_is_used_only_if_it_is_the_content(
    cached: FileContent | None, decision: object
) -> None:
    assert decide(WANTED, cached, FetchLimits()) == decision


def test_a_file_over_the_limit_is_refused_even_if_it_is_cached() -> None:
    decision = decide(WANTED, CACHED, FetchLimits(file_max_bytes=1))
    assert decision == Refuse("it has 2 bytes; the limit is 1")


def receiver(content: bytes, before: bytes = b"") -> Receiver:
    found = Receiver("f.json", checksum_of(content), len(content), io.BytesIO(before))
    found.resume()
    return found


def test_a_transfer_goes_on_behind_what_is_there() -> None:
    new = receiver(b"content")
    assert new.headers() == {}
    begun = receiver(b"content", b"con")
    checksum = checksum_of(b"content")
    assert begun.headers() == {"range": "bytes=3-", "if-range": f'"{checksum}"'}
    assert begun.accepts(206, {"content-range": "bytes 3-6/7"})
    begun.take(b"tent")
    begun.finish()
    assert receiver(b"content", b"content").complete
    assert receiver(b"content", b"content and more").received == 0


def test_an_answer_with_the_whole_file_begins_anew() -> None:
    begun = receiver(b"content", b"con")
    assert begun.accepts(200, {})
    begun.take(b"content")
    begun.finish()


@pytest.mark.parametrize("span", ["bytes 2-6/7", "bytes 0-6/7", "bytes 30-6/7", ""])
def test_another_part_than_was_asked_for_is_not_taken(span: str) -> None:
    begun = receiver(b"content", b"con")
    with pytest.raises(ServiceUnreachable, match="from another byte"):
        begun.accepts(206, {"content-range": span})
    assert begun.received == 0


@pytest.mark.parametrize("status", [204, 301, 304, 404, 416, 503])
def test_an_answer_without_the_file_is_an_error(status: int) -> None:
    assert not receiver(b"content").accepts(status, {})


def test_another_etag_of_a_registry_is_refused_before_the_body_comes() -> None:
    with pytest.raises(ChecksumMismatch, match="Try again"):
        receiver(b"content").accepts(200, {"etag": '"blake3:other"'})
    assert receiver(b"content").accepts(200, {"etag": 'W/"65a1"'})


def test_too_many_or_wrong_bytes_leave_nothing() -> None:
    greedy = receiver(b"content")
    with pytest.raises(ChecksumMismatch):
        greedy.take(b"content and more")
    wrong = receiver(b"content", b"CON")
    wrong.take(b"tent")
    with pytest.raises(ChecksumMismatch):
        wrong.finish()
    assert greedy.received == wrong.received == 0


# With a service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("service")) as server:
        yield server


@pytest.fixture
def slug(service: Server, tmp_path: Path) -> str:
    """A model that is attached."""
    slug = new_slug()
    with RegistryClient(service.url) as client:
        attach(client, OWNER, slug, write(tmp_path / "model", CONTENTS))
    return slug


def resolver_of(
    service: str | list[str],
    folder: Path,
    limits: FetchLimits | None = None,
    retries: RetryPolicy = AT_ONCE,
) -> Resolver:
    return Resolver(service, cache=BlobCache(folder / "cache"), limits=limits, retries=retries)


def test_a_fetched_directory_loads_with_tokenizers(service: Server, tmp_path: Path) -> None:
    slug = new_slug()
    model = make_model(tmp_path / "model")
    with RegistryClient(service.url) as client:
        attach(client, OWNER, slug, model)
    files = resolver_of(service.url, tmp_path).fetch(slug, to=tmp_path / "out")
    assert len(files) == 9
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    original = Tokenizer.from_file(str(model / "tokenizer.json"))
    encoded = tokenizer.encode(TEXT)
    assert encoded.ids == original.encode(TEXT).ids
    assert tokenizer.decode(encoded.ids) == TEXT


def test_a_model_is_fetched_verified_and_the_second_time_from_the_cache(
    service: Server, slug: str, tmp_path: Path
) -> None:
    resolver = resolver_of(service.url, tmp_path)
    first = resolver.fetch(slug, to=tmp_path / "out")
    second = resolver.fetch(slug, to=tmp_path / "out2")
    third = resolver.fetch(slug)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "out2") == CONTENTS
    assert all(file.downloaded for file in first)
    assert not any(file.downloaded for file in second)
    assert {file.path for file in first} == {tmp_path / "out" / name for name in CONTENTS}
    assert {file.path.parent for file in third} == {tmp_path / "cache/blobs"}


def test_in_an_event_loop_a_model_is_awaited(service: Server, slug: str, tmp_path: Path) -> None:
    resolver = resolver_of(service.url, tmp_path)

    async def fetch() -> None:
        with pytest.raises(RuntimeError, match="await fetch_async"):
            resolver.fetch(slug)
        await resolver.fetch_async(slug, to=tmp_path / "out")

    asyncio.run(fetch())
    assert contents_of(tmp_path / "out") == CONTENTS


def test_the_progress_of_fetching_ends_at_all_bytes(
    service: Server, slug: str, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []

    def note(activity: str, done: int, total: int) -> None:
        seen.append((activity, done, total))

    resolver_of(service.url, tmp_path).fetch(slug, on_progress=note)
    assert seen == sorted(seen)
    assert seen[-1] == ("Downloading", 300_002, 300_002)


def test_a_damaged_cache_is_repaired(service: Server, slug: str, tmp_path: Path) -> None:
    resolver = resolver_of(service.url, tmp_path)
    path = resolver.fetch(slug, to=tmp_path / "out")[0].path
    path.chmod(0o644)
    path.write_bytes(b"edited")
    again = resolver.fetch(slug, to=tmp_path / "out")
    assert contents_of(tmp_path / "out") == CONTENTS
    assert {file.filename for file in again if file.downloaded} == {"config.json", "copy.json"}


def test_only_what_the_endpoint_holds_is_fetched(
    service: Server, slug: str, tmp_path: Path
) -> None:
    prefill = Owner("dynamo", "backend", "prefill", 7)
    service.register_copies(prefill, {ArtifactKey(slug, "_base", "extra.json"): b"extra"})
    resolver = resolver_of(service.url, tmp_path)
    found = resolver.fetch(slug, endpoint=Endpoint.parse("dynamo/backend/prefill"))
    assert [file.filename for file in found] == ["extra.json"]
    with pytest.raises(NotRegistered, match=f"by dynamo/backend/none under {slug}/_base"):
        resolver.fetch(slug, endpoint=Endpoint.parse("dynamo/backend/none"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (FetchLimits(file_max_bytes=1000), r"_base/tokenizer\.json is not fetched: it has"),
        (FetchLimits(total_max_bytes=300_003), "have 300004 bytes together"),
        (FetchLimits(files_max=2), "has more than 2 files"),
    ],
)
def test_more_than_the_limits_is_refused_before_anything_is_placed(
    service: Server, slug: str, tmp_path: Path, limits: FetchLimits, message: str
) -> None:
    with pytest.raises(TooLarge, match=message):
        resolver_of(service.url, tmp_path, limits).fetch(slug, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_nobody_registered_is_not_fetched(service: Server, tmp_path: Path) -> None:
    resolver = resolver_of(service.url, tmp_path)
    with pytest.raises(NotRegistered, match=r"Nothing is registered under nothing/lora\."):
        resolver.fetch("nothing", "lora")
    with pytest.raises(Invalid, match="slug is 'Org/Tiny'"):
        resolver.fetch("Org/Tiny")
    with pytest.raises(SettingsError, match="No registry was named"):
        resolver_of([], tmp_path).fetch("tiny")


def test_one_file_that_cannot_be_served_keeps_all_others_out(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    directory = write(tmp_path / "model", CONTENTS)
    server = serve(artifact_root=[tmp_path])
    keys = [ArtifactKey(SLUG, "_base", name) for name in CONTENTS]
    server.register(OWNER, [in_place(key, directory / key.filename) for key in keys])
    (directory / "tokenizer.json").unlink()
    out = write(tmp_path / "out", {"config.json": b"old"})
    with pytest.raises(Unserveable):
        resolver_of(server.url, tmp_path).fetch(SLUG, to=out)
    assert contents_of(out) == {"config.json": b"old"}


def test_threads_fetch_the_same_model_into_one_cache_and_directory(
    service: Server, slug: str, tmp_path: Path
) -> None:
    resolver = resolver_of(service.url, tmp_path)
    for number in range(2):
        (tmp_path / f"out-{number}").mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: resolver.fetch(slug, to=tmp_path / f"out-{n % 2}"), range(16)))
    assert contents_of(tmp_path / "out-0") == contents_of(tmp_path / "out-1") == CONTENTS
    assert len(contents_of(tmp_path / "cache/blobs")) == 2
    assert contents_of(tmp_path / "cache/partial") == {}


# With transfers that break off


def cut_after(length: int, *, times: int) -> Manner:
    """The connection ends so many bytes behind the first byte asked for."""
    left = iter([True] * times)

    def manner(request: Request) -> None:
        if not next(left, False):
            well(request)
            return
        begin(request)
        request.send(request.content[request.start :][:length])
        request.cut()

    return manner


def ranges(server: FileServer, filename: str) -> list[str | None]:
    return [asked.range for asked in server.asked if asked.filename == filename]


def test_a_broken_off_transfer_is_gone_on_with_in_the_same_fetch(tmp_path: Path) -> None:
    with FileServer(CONTENTS, {"tokenizer.json": cut_after(100_000, times=2)}) as server:
        resolver_of(server.url, tmp_path).fetch(SLUG, to=tmp_path / "out")
        assert ranges(server, "tokenizer.json") == [None, "bytes=100000-", "bytes=200000-"]
    assert contents_of(tmp_path / "out") == CONTENTS


def test_a_failed_fetch_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    with FileServer(CONTENTS, {"tokenizer.json": cut_after(100_000, times=1)}) as server:
        resolver = resolver_of(server.url, tmp_path, retries=ONCE)
        with pytest.raises(ServiceUnreachable):
            resolver.fetch(SLUG, to=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        resolver.fetch(SLUG, to=tmp_path / "out")
        assert ranges(server, "tokenizer.json") == [None, "bytes=100000-"]
    assert contents_of(tmp_path / "out") == CONTENTS


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(tmp_path: Path) -> None:
    answers = iter([cut_after(100_000, times=1)])

    def without_ranges(request: Request) -> None:
        if (manner := next(answers, None)) is not None:
            manner(request)
        else:
            request.head(200, Content_Length=len(request.content))
            request.send(request.content)

    with FileServer(CONTENTS, {"tokenizer.json": without_ranges}) as server:
        resolver_of(server.url, tmp_path).fetch(SLUG, to=tmp_path / "out")
    assert contents_of(tmp_path / "out") == CONTENTS


@pytest.mark.parametrize("length", [5, 300_000, 400_000])
def test_wrong_bytes_of_an_earlier_process_are_thrown_away(tmp_path: Path, length: int) -> None:
    (tmp_path / "cache/partial").mkdir(parents=True)
    checksum = checksum_of(CONTENTS["tokenizer.json"])
    (tmp_path / "cache/partial" / checksum.removeprefix("blake3:")).write_bytes(b"x" * length)
    with FileServer(CONTENTS) as server:
        resolver_of(server.url, tmp_path).fetch(SLUG, to=tmp_path / "out")
    assert contents_of(tmp_path / "out") == CONTENTS


# With servers that misbehave


def wrong(request: Request) -> None:
    request.head(200, Content_Length=len(request.content))
    request.send(b"x" * len(request.content))


def too_few(request: Request) -> None:
    request.head(200, Content_Length=len(request.content) - 1)
    request.send(request.content[:-1])


def too_many(request: Request) -> None:
    request.head(200, Content_Length=len(request.content) + 1)
    request.send(request.content + b"x")


def endless(request: Request) -> None:
    request.head(200)
    while True:
        request.send(bytes(1 << 16))


def nothing(request: Request) -> None:
    request.cut()


def cut_short(request: Request) -> None:
    begin(request)
    request.send(request.content[:-1])
    request.cut()


def slow_body(request: Request) -> None:
    begin(request)
    for number in range(len(request.content)):
        request.send(request.content[number : number + 1])
        time.sleep(0.2)


def slow_head(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        request.send(b"x")
        time.sleep(0.2)


def silent(request: Request) -> None:
    # Until the client gives up.
    request.handler.connection.settimeout(60)
    request.handler.connection.recv(1)


def circle(request: Request) -> None:
    request.head(302, Location=request.handler.path, Content_Length=0)


def missing(request: Request) -> None:
    request.head(404, Content_Length=0)


def failing(request: Request) -> None:
    request.head(500, Content_Length=0)


def no_http(request: Request) -> None:
    request.send(b"220 mail.example.org ESMTP\r\n")
    request.cut()


def compressed(request: Request) -> None:
    request.head(200, Content_Encoding="gzip", Content_Length=len(request.content))
    request.send(request.content)


MISBEHAVIOUR: dict[str, tuple[Manner, type[RegistryError], str]] = {
    "wrong bytes": (wrong, ChecksumMismatch, "other bytes"),
    "too few": (too_few, ChecksumMismatch, "other bytes"),
    "too many": (too_many, ChecksumMismatch, "other bytes"),
    "endless": (endless, ChecksumMismatch, "other bytes"),
    "no answer": (nothing, ServiceUnreachable, "does not answer"),
    "cut short": (cut_short, ServiceUnreachable, "does not answer"),
    "a slow body": (slow_body, ServiceUnreachable, "did not arrive within 1 s"),
    "a slow head": (slow_head, ServiceUnreachable, "did not arrive within 1 s"),
    "silence": (silent, ServiceUnreachable, "did not arrive within 1 s"),
    "a redirect in a circle": (circle, ServiceUnreachable, "sends callers on"),
    "404": (missing, RegistryError, "404"),
    "500": (failing, RegistryError, "500"),
    "no HTTP": (no_http, ServiceUnreachable, "does not answer"),
    "a wrong encoding": (compressed, ServiceUnreachable, "not asked for"),
}
misbehaving = pytest.mark.parametrize(
    ("manner", "error", "message"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR
)
BRIEF = FetchLimits(deadline_s=1.0)


@misbehaving
def test_a_misbehaving_registry_is_an_error_in_time_and_the_directory_stays_as_it_was(
    tmp_path: Path, manner: Manner, error: type[RegistryError], message: str
) -> None:
    before = {"config.json": b"old", "tokenizer.json": b"older", "mine.txt": b"mine"}
    out = write(tmp_path / "out", before)
    with FileServer(CONTENTS, {"tokenizer.json": manner}) as server:
        with pytest.raises(error, match=message):
            resolver_of(server.url, tmp_path, BRIEF, ONCE).fetch(SLUG, to=out)
        assert contents_of(out) == before
        # What came is kept or thrown away, but it is never taken for the file.
        server.manners.clear()
        resolver_of(server.url, tmp_path).fetch(SLUG, to=out)
        assert contents_of(out) == before | CONTENTS


@misbehaving
def test_what_one_source_cannot_give_comes_from_the_next(
    tmp_path: Path, manner: Manner, error: type[RegistryError], message: str
) -> None:
    limits = FetchLimits(deadline_s=4.0)
    bad = FileServer(CONTENTS, {"tokenizer.json": manner})
    with bad, FileServer(CONTENTS) as good:
        resolver = resolver_of([bad.url, good.url], tmp_path, limits, ONCE)
        resolver.fetch(SLUG, to=tmp_path / "out")
        assert good.times("config.json") == 0
    assert contents_of(tmp_path / "out") == CONTENTS


def test_a_registry_that_is_gone_or_has_nothing_is_passed_over(
    service: Server, slug: str, tmp_path: Path
) -> None:
    with FileServer({}) as empty:
        gone = FileServer({})
        gone.__exit__(None, None, None)
        resolver = resolver_of([gone.url, empty.url, service.url], tmp_path)
        resolver.fetch(slug, to=tmp_path / "out")
        assert contents_of(tmp_path / "out") == CONTENTS
        with pytest.raises(ServiceUnreachable) as raised:
            resolver_of([gone.url, empty.url], tmp_path).fetch(slug)
        assert f"{gone.url}: " in raised.value.detail
        assert f"{empty.url}: Nothing is registered" in raised.value.detail


# By card


def card_of(server: FileServer, contents: dict[str, bytes], path: str = "/files/") -> Card:
    files = [
        CardFile(server.url + path + name, checksum_of(content), len(content))
        for name, content in contents.items()
    ]
    return make_card("Org/Tiny", files)


def test_a_card_is_fetched_from_where_it_says(tmp_path: Path) -> None:
    with FileServer(CONTENTS) as elsewhere:
        found = resolver_of([], tmp_path).fetch_card(
            card_of(elsewhere, CONTENTS), to=tmp_path / "out"
        )
    assert {file.filename for file in found} == set(CONTENTS)
    assert contents_of(tmp_path / "out") == CONTENTS


def test_registries_are_asked_before_the_urls_of_a_card(tmp_path: Path) -> None:
    registry = FileServer(CONTENTS, {"config.json": missing, "copy.json": missing})
    with registry, FileServer(CONTENTS) as elsewhere:
        card = card_of(elsewhere, CONTENTS, "/v1/metadata/tiny/_base/")
        resolver_of(registry.url, tmp_path).fetch_card(card, to=tmp_path / "out")
        assert elsewhere.times("tokenizer.json") == 0
        # The two have the same content.
        assert elsewhere.times("config.json") + elsewhere.times("copy.json") == 1
    assert contents_of(tmp_path / "out") == CONTENTS


def test_a_token_is_sent_to_registries_and_to_nobody_else(tmp_path: Path) -> None:
    registry = FileServer(CONTENTS, dict.fromkeys(CONTENTS, missing))
    with registry, FileServer(CONTENTS) as elsewhere:
        card = card_of(elsewhere, CONTENTS, "/v1/metadata/tiny/_base/")
        cache = BlobCache(tmp_path / "cache")
        Resolver(registry.url, token="secret", cache=cache, retries=ONCE).fetch_card(card)
        assert {asked.token for asked in registry.asked} == {"Bearer secret"}
        assert {asked.token for asked in elsewhere.asked} == {None}


def test_a_card_s_url_may_send_callers_on_but_not_for_ever(tmp_path: Path) -> None:
    with FileServer(CONTENTS) as target:

        def sent_on(request: Request) -> None:
            request.head(302, Location=f"{target.url}/there/config.json", Content_Length=0)

        with FileServer(CONTENTS, {"config.json": sent_on}) as elsewhere:
            card = card_of(elsewhere, {"config.json": b"{}"})
            resolver_of([], tmp_path).fetch_card(card, to=tmp_path / "out")
            assert contents_of(tmp_path / "out") == {"config.json": b"{}"}
        with FileServer(CONTENTS, {"tokenizer.json": circle}) as elsewhere:
            resolver = resolver_of([], tmp_path, retries=ONCE)
            with pytest.raises(ServiceUnreachable, match="in a circle"):
                resolver.fetch_card(card_of(elsewhere, CONTENTS), to=tmp_path / "out2")
            assert elsewhere.times("tokenizer.json") <= 10
        assert not (tmp_path / "out2").exists()


def test_the_files_of_a_card_are_found_whatever_their_place() -> None:
    def file(url: str) -> dict[str, object]:
        return {"path": url, "checksum": checksum_of(b"{}"), "size": 2}

    registered = "/v1/metadata/ns/comp/ep/tiny/_base/a%20b.json"
    card = Card(
        {
            "model_info": {"hf_config_json": file("http://h/config.json")},
            "a_place_of_tomorrow": [
                {"deep": {"file": file(f"https://h:1/prefix{registered}?x=1")}}
            ],
            "extra_files": [file("/mnt/model/local.json")],
        }
    )
    found = {wanted.filename: (wanted.path, wanted.urls) for wanted in files_of(card)}
    assert found == {
        "config.json": (None, ("http://h/config.json",)),
        "a b.json": (registered, (f"https://h:1/prefix{registered}?x=1",)),
        "local.json": (None, ()),
    }


@pytest.mark.parametrize("url", ["http://h/%2E%2E", "http://h/a%2Fb", "http://h/", "http://h/a%00"])
def test_a_card_s_file_has_a_name_that_stays_in_the_directory(url: str, tmp_path: Path) -> None:
    card = Card({"extra_files": [{"path": url, "checksum": checksum_of(b""), "size": 0}]})
    with pytest.raises(Invalid, match="filename"):
        resolver_of([], tmp_path).fetch_card(card, to=tmp_path / "out")


def test_what_is_no_file_of_a_card_is_refused(tmp_path: Path) -> None:
    good = {"path": "http://h/a", "checksum": checksum_of(b""), "size": 0}
    for wrong_field in ({"size": -1}, {"size": None}, {"checksum": "md5:0"}, {"path": 7}):
        with pytest.raises(Invalid):
            files_of(Card({"extra_files": [good | wrong_field]}))
    with pytest.raises(Invalid, match="two files"):
        files_of(Card({"extra_files": [good, good | {"path": "http://other/a"}]}))
    local = Card({"extra_files": [good | {"path": "/local", "size": 1}]})
    with pytest.raises(NotRegistered, match="Nothing says where"):
        resolver_of([], tmp_path).fetch_card(local)


# Many processes


CHILDREN = """
import os, sys
from pathlib import Path
from registry.client.cache import BlobCache
from registry.client.resolver import FetchLimits, Resolver

url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
children = {}
for number in range(count):
    child = os.fork()
    if child == 0:
        resolver = Resolver(url, token=str(os.getpid()), cache=BlobCache(folder / "cache"))
        resolver.fetch("tiny", to=folder / f"out-{number}")
        os._exit(0)
    children[child] = number
for _ in range(count):
    child, status = os.wait()
    print(children[child], status, flush=True)
"""
KILLED = 4
AT_ONCE_PER_PROCESS = 4


def test_twenty_processes_share_one_download_of_each_file_even_if_some_are_killed_at_it(
    tmp_path: Path,
) -> None:
    contents = {name: name.encode() * 40_000 for name in NAMES}
    kills = iter(range(KILLED))
    lock = threading.Lock()

    def half_and_then_kill(request: Request) -> None:
        with lock:
            doomed = next(kills, None) is not None
        if not doomed:
            well(request)
            return
        begin(request)
        request.send(request.content[request.start :][:50_000])
        assert request.asked.token is not None
        os.kill(int(request.asked.token.removeprefix("Bearer ")), signal.SIGKILL)
        request.cut()

    manners = dict.fromkeys(NAMES, half_and_then_kill)
    with FileServer(contents, manners) as server:
        command = [sys.executable, "-W", "error", "-c", CHILDREN, server.url, str(tmp_path), "20"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            while is_running(parent):
                for number in range(20):
                    assert_nothing_partial(tmp_path / f"out-{number}", contents)
            assert parent.stdout is not None
            ends = dict(json.loads(f"[{line.replace(' ', ',')}]") for line in parent.stdout)
        times = {name: server.times(name) for name in NAMES}
        survivors = [number for number, status in ends.items() if status == 0]
        assert sorted(ends.values())[: 20 - KILLED] == [0] * (20 - KILLED)
        assert set(ends.values()) == {0, signal.SIGKILL}
        for number in survivors:
            assert contents_of(tmp_path / f"out-{number}") == contents
        # Once, and once more for each process that was killed at it.
        assert min(times.values()) >= 1
        assert max(times.values()) <= 1 + KILLED
        assert sum(times.values()) <= len(NAMES) + KILLED * AT_ONCE_PER_PROCESS

        # What the killed ones left is a usable cache.
        before = len(server.asked)
        resolver_of(server.url, tmp_path).fetch(SLUG, to=tmp_path / "after")
        assert contents_of(tmp_path / "after") == contents
        assert len(server.asked) == before
        assert contents_of(tmp_path / "cache/partial") == {}


def is_running(process: subprocess.Popen[str]) -> bool:
    """Whether it runs on for a moment."""
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        return True
    return False


def assert_nothing_partial(directory: Path, contents: dict[str, bytes]) -> None:
    if directory.exists():
        for name, content in contents_of(directory).items():
            assert content == contents[name]


def test_a_process_that_is_stopped_at_a_download_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.client.fetch.CLAIM_PATIENCE_S", 0.2)
    cache = BlobCache(tmp_path / "cache")
    stopped = cache.try_claim(checksum_of(CONTENTS["tokenizer.json"]))
    assert stopped is not None
    stopped.file.write(b"[1]")
    stopped.file.flush()
    with FileServer(CONTENTS) as server:
        resolver_of(server.url, tmp_path).fetch(SLUG, to=tmp_path / "out")
    assert contents_of(tmp_path / "out") == CONTENTS
    stopped.close()
