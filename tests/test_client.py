"""The client: what it repeats, what its errors are, and what it makes of strange answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx2
import pytest

from registry import errors
from registry.client.async_client import AsyncRegistryClient
from registry.client.client import RegistryClient
from registry.client.protocol import Endpoint, content_path
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Offer, Owner
from tests.fileservers import FileServer, Manner, Request, begin, well
from tests.support import Server

AT_ONCE = RetryPolicy(attempts=4, first_pause_s=0)
OWNER = Owner("dynamo", "backend", "generate", 2**64 - 1)
KEY = ArtifactKey("tiny", "_base", "config.json")
CONTENT = b'{"a": 1}'
RECEIPT = b'{"owner": null, "released": 0, "removed": [], "kept": []}'

Answerer = Callable[[httpx2.Request], httpx2.Response]


def problem(status: int, code: str) -> httpx2.Response:
    body = {"type": "t", "title": "t", "status": status, "detail": "why", "code": code}
    return httpx2.Response(status, json=body)


class Script:
    """Answers requests one after the other; the last answer is repeated for ever."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self._answers = answers
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(request.read())
        answer = self._answers[min(len(self.bodies), len(self._answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, retries: RetryPolicy = AT_ONCE) -> RegistryClient:
        transport = httpx2.MockTransport(self)
        return RegistryClient("http://registry", retries=retries, transport=transport)


def test_a_call_is_repeated_after_a_lost_connection_until_it_is_answered() -> None:
    script = Script(
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        problem(503, "storage_unavailable"),
        httpx2.Response(200, content=RECEIPT),
    )
    with script.client() as client:
        assert client.unregister_for_owner(OWNER).released == 0
    assert len(script.bodies) == 4


def test_attempts_are_bounded() -> None:
    script = Script(httpx2.ConnectError("refused"))
    with script.client() as client, pytest.raises(errors.ServiceUnreachable, match="refused"):
        client.has_blob(checksum_of(CONTENT))
    assert len(script.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(409, "conflict"), errors.Conflict),
        (problem(404, "unknown_owner"), errors.UnknownOwner),
        (problem(503, "unserveable"), errors.Unserveable),
        (problem(429, "uploads_pending"), errors.UploadsPending),
        (problem(500, "internal"), errors.Internal),
        (problem(500, "a_code_of_tomorrow"), errors.RegistryError),
        (httpx2.Response(404, html="<h1>Not Found</h1>"), errors.RegistryError),
        (httpx2.Response(307, headers={"location": "https://h/"}), errors.ServiceUnreachable),
        (httpx2.Response(200, html="<h1>Welcome</h1>"), errors.ServiceUnreachable),
        (httpx2.Response(200, content=b"[" * 100_000), errors.ServiceUnreachable),
        (
            httpx2.Response(200, json={"owner": None, "released": "x", "removed": [], "kept": []}),
            errors.ServiceUnreachable,
        ),
    ],
)
def test_an_answer_that_stays_so_is_an_error(
    answer: httpx2.Response, error: type[errors.RegistryError]
) -> None:
    script = Script(answer)
    once = RetryPolicy(attempts=1)
    with script.client(once) as client, pytest.raises(error) as raised:
        client.unregister_for_owner(OWNER)
    assert type(raised.value) is error
    assert len(script.bodies) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "conflict"), (503, "unserveable"), (429, "uploads_pending"), (500, "internal")],
)
def test_a_refusal_is_not_repeated(status: int, code: str) -> None:
    script = Script(problem(status, code))
    with script.client() as client, pytest.raises(errors.RegistryError, match="why"):
        client.unregister_for_owner(OWNER)
    assert len(script.bodies) == 1


def test_a_repeated_upload_sends_the_file_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    content = bytes(range(256)) * 4096
    file.write_bytes(content)
    sent: list[int] = []
    script = Script(problem(503, "storage_unavailable"), httpx2.Response(201))
    with script.client() as client:
        client.upload(checksum_of(content), file, on_bytes=sent.append)
    assert script.bodies == [content, content]
    assert sent[-1] == len(content)
    assert sent[: len(sent) // 2] == sent[len(sent) // 2 :]


def test_a_file_that_shrinks_while_it_is_uploaded_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(bytes(1 << 20))
    script = Script(httpx2.Response(201))

    def shrink(sent: int) -> None:
        file.write_bytes(b"")

    with script.client() as client, pytest.raises(errors.FileUnreadable, match="changed while"):
        client.upload("blake3:" + "0" * 64, file, on_bytes=shrink)


def test_a_file_that_cannot_be_read_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    script = Script(httpx2.Response(201))
    with script.client() as client, pytest.raises(errors.FileUnreadable, match="No such file"):
        client.upload("blake3:" + "0" * 64, tmp_path / "missing")
    assert script.bodies == []


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.transport.ANSWER_MAX_BYTES", 1 << 20)

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    script = Script(httpx2.Response(200, content=endless()))
    once = RetryPolicy(attempts=1)
    with script.client(once) as client, pytest.raises(errors.ServiceUnreachable, match="more than"):
        client.unregister_for_owner(OWNER)


def test_pauses_double_within_their_bounds_and_end() -> None:
    policy = RetryPolicy(attempts=9, first_pause_s=1, longest_pause_s=4, give_up_after_s=100)
    lost = errors.ServiceUnreachable()
    pauses = [policy.find_pause_s(attempt, 0, lost) for attempt in range(1, 10)]
    for pause, longest in zip(pauses[:-1], [1, 2, 4, 4, 4, 4, 4, 4], strict=True):
        assert pause is not None
        assert longest / 2 <= pause <= longest
    assert pauses[-1] is None


def test_a_busy_service_is_given_the_time_it_asks_for_within_the_limit() -> None:
    policy = RetryPolicy(give_up_after_s=10)
    assert policy.find_pause_s(1, 0, errors.Busy(retry_after_s=5)) == 5
    assert policy.find_pause_s(2, 6, errors.Busy(retry_after_s=5)) is None


@pytest.mark.parametrize("url", ["", "registry:8090", "ftp://h/", "http://", "http://h:x/"])
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(errors.SettingsError, match="URL"):
        RegistryClient(url)


def test_a_path_prefix_of_the_url_is_kept() -> None:
    paths: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        return httpx2.Response(200)

    transport = httpx2.MockTransport(answer)
    with RegistryClient("http://h/registry/", transport=transport) as client:
        client.has_blob("blake3:" + "0" * 64)
    assert paths == ["/registry/v1/blobs/blake3:" + "0" * 64]


def test_a_filename_stays_one_segment_of_the_url() -> None:
    key = ArtifactKey("tiny", "_base", "a?b#c %2F ü.json")
    assert content_path(key) == "/v1/metadata/tiny/_base/a%3Fb%23c%20%252F%20%C3%BC.json"
    endpoint = Endpoint.parse("dynamo/backend/generate")
    assert content_path(KEY, endpoint) == (
        "/v1/metadata/dynamo/backend/generate/tiny/_base/config.json"
    )


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c/d", "a/b/c d", "a/../c"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid):
        Endpoint.parse(text)


def test_every_call_works_with_a_service(server: Server) -> None:
    checksum = checksum_of(CONTENT)
    offer = Offer(KEY, checksum=checksum, size=len(CONTENT))
    with RegistryClient(server.url) as client:
        with pytest.raises(errors.ContentMissing) as missing:
            client.register(OWNER, [offer], lease_ttl_s=None)
        assert missing.value.missing == (checksum,)
        assert not client.has_blob(checksum)
        client.upload(checksum, CONTENT)
        client.upload(checksum, CONTENT)
        assert client.has_blob(checksum)
        registered = client.register(OWNER, [offer], lease_ttl_s=60, worker_name="w-0")
        assert [each.outcome for each in registered.artifacts] == ["created"]
        assert registered.lease is not None
        assert registered.lease.ttl_ms == 60_000

        assert [entry.key for entry in client.artifacts(slug="tiny")] == [KEY]
        assert list(client.artifacts(slug="other")) == []
        assert [record.owner for record in client.owners()] == [OWNER]
        details = client.owner(OWNER)
        assert details.record.worker_name == "w-0"
        assert [(held.key, held.checksum) for held in details.entries] == [(KEY, checksum)]
        explanation = client.explain(KEY)
        assert explanation.entry is not None
        assert [holder.owner for holder in explanation.holders] == [OWNER]

        assert client.audit().counts == {}
        assert client.audit("orphan_entry").findings == []
        assert client.rehearse_sweep().owners == 0
        answer = client.sql("SELECT 1 AS one, 'two' AS two", max_rows=1)
        assert (answer.columns, answer.rows, answer.whole) == (["one", "two"], [[1, "two"]], True)
        with pytest.raises(errors.Refused):
            client.sql("DELETE FROM owners")
        assert client.remove("tiny", "nobody").removed == ()
        receipt = client.unregister_for_owner(OWNER)
        assert (receipt.owner, receipt.removed) == (OWNER, (KEY,))
        gone = client.explain(KEY)
        assert gone.entry is None
        assert [event.kind for event in gone.events][:2] == ["removed", "released"]
        with pytest.raises(errors.UnknownOwner):
            client.owner(Owner("no", "such", "owner", 0))


@pytest.mark.parametrize("rows", [[[1, 2]], [[]], [[[1]]], [[{}]], 1, [1]], ids=str)
def test_rows_that_do_not_fit_their_columns_are_no_answer(rows: Any) -> None:
    content = json.dumps({"columns": ["a"], "rows": rows, "whole": True}).encode()
    script = Script(httpx2.Response(200, content=content))
    with pytest.raises(errors.ServiceUnreachable):
        script.client().sql("SELECT 1")


def test_lists_go_on_over_their_pages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.protocol.PAGE_LIMIT", 2)
    keys = [ArtifactKey("tiny", "_base", f"{number}.json") for number in range(5)]
    server.register_copies(OWNER, dict.fromkeys(keys, CONTENT))
    for number in range(4):
        server.register(Owner("dynamo", "backend", "generate", number), [])
    with RegistryClient(server.url) as client:
        assert [entry.key for entry in client.artifacts()] == keys
        assert len(list(client.owners())) == 5


def test_content_that_is_refused_early_is_the_service_s_error(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(max_blob_bytes=1000)
    file = tmp_path / "large"
    file.write_bytes(bytes(32 << 20))
    with RegistryClient(server.url) as client:
        with pytest.raises(errors.TooLarge):
            client.upload(checksum_of(file.read_bytes()), file)
        with pytest.raises(errors.ChecksumMismatch):
            client.upload("blake3:" + "0" * 64, b"other")


def test_the_client_loads_no_server_and_no_database() -> None:
    program = (
        "import sys, registry.client as c; [getattr(c, name) for name in c.__all__]\n"
        "import registry.client.attach\n"
        "print(*sorted(m.split('.')[0] for m in sys.modules))\n"
        "print(*sorted(m for m in sys.modules if m.startswith('registry.')))"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    assert not {"sqlalchemy", "starlette", "uvicorn", "alembic", "typer"} & set(output[0].split())
    ours = {name.split(".")[1] for name in output[1].split()}
    assert ours <= {"client", "core", "discovery", "errors", "network", "wire"}


# For asyncio


def async_client(script: Script) -> AsyncRegistryClient:
    transport = httpx2.MockTransport(script)
    return AsyncRegistryClient("http://registry", retries=AT_ONCE, transport=transport)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(of: type) -> dict[str, list[str]]:
        return {
            name: [str(each) for each in inspect.signature(method).parameters.values()]
            for name, method in vars(of).items()
            if inspect.isfunction(method) and not name.startswith("_")
        }

    # What a receiver lacks is brought in by the asyncio client only.
    assert methods(RegistryClient) | {"receive": ANY} == methods(AsyncRegistryClient)


def test_the_asyncio_client_repeats_and_gives_up_as_the_other_one() -> None:
    script = Script(
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        problem(503, "storage_unavailable"),
        httpx2.Response(200, content=RECEIPT),
        problem(409, "conflict"),
        httpx2.ConnectError("refused"),
    )

    async def use() -> None:
        async with async_client(script) as client:
            assert (await client.unregister_for_owner(OWNER)).released == 0
            assert len(script.bodies) == 4
            with pytest.raises(errors.Conflict):
                await client.unregister_for_owner(OWNER)
            assert len(script.bodies) == 5
            with pytest.raises(errors.ServiceUnreachable, match="refused"):
                await client.unregister_for_owner(OWNER)
            assert len(script.bodies) == 9

    asyncio.run(use())


def test_every_call_of_the_asyncio_client_works_with_a_service(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(range(256)) * 4096)
    large = checksum_of(file.read_bytes())
    other = ArtifactKey("tiny", "_base", "large.bin")
    offers = [
        Offer(KEY, checksum=checksum_of(CONTENT), size=len(CONTENT)),
        Offer(other, checksum=large, size=file.stat().st_size),
    ]

    async def use() -> None:
        async with AsyncRegistryClient(server.url) as client:
            with pytest.raises(errors.ContentMissing):
                await client.register(OWNER, offers, lease_ttl_s=60)
            sent: list[int] = []
            await client.upload(checksum_of(CONTENT), CONTENT)
            await client.upload(large, file, on_bytes=sent.append)
            assert sent[-1] == file.stat().st_size
            assert await client.has_blob(large)
            await client.register(OWNER, offers, lease_ttl_s=60, worker_name="w-0")
            assert (await client.renew(OWNER)).refs == 2
            assert (await client.drain(OWNER)).owner == OWNER
            assert len((await client.owner(OWNER)).entries) == 2
            assert [record.owner async for record in client.owners()] == [OWNER]
            assert [entry.key async for entry in client.artifacts(slug="tiny")] == [KEY, other]
            assert [(m.slug, m.files) async for m in client.models()] == [("tiny", 2)]
            kinds = [event.kind for event in (await client.events()).events]
            assert set(kinds[: kinds.index("attached")]) == {"uploaded"}
            assert (await client.explain(KEY)).entry is not None
            assert await client.is_held(KEY)
            with (tmp_path / "fetched").open("x+b") as into:
                await client.download(other, large, file.stat().st_size, into)
                with pytest.raises(errors.NotRegistered):
                    await client.download(ArtifactKey("no", "_base", "f"), large, 1, into)
            assert (await client.audit()).counts == {}
            assert (await client.rehearse_sweep()).owners == 0
            assert (await client.sql("SELECT 1 AS one")).rows == [[1]]
            assert (await client.remove("tiny", "_base")).removed == (KEY, other)
            assert len((await client.unregister_for_owner(OWNER)).removed) == 0

    asyncio.run(use())


def test_a_download_that_breaks_off_is_gone_on_with(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    with FileServer({"f.bin": content}, {"f.bin": cut_once(100_000)}) as server:
        key = ArtifactKey("tiny", "_base", "f.bin")
        with (
            RegistryClient(server.url, retries=AT_ONCE) as client,
            (tmp_path / "f.bin").open("x+b") as into,
        ):
            into.write(b"what was there before")
            client.download(key, checksum_of(content), len(content), into)
        assert [asked.range for asked in server.asked] == [None, "bytes=100000-"]
    assert (tmp_path / "f.bin").read_bytes() == content


def cut_once(length: int) -> Manner:
    first = iter([True])

    def manner(request: Request) -> None:
        if not next(first, False):
            well(request)
            return
        begin(request)
        request.send(request.content[:length])
        request.cut()

    return manner


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ümlaut"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(errors.SettingsError, match="token"):
        RegistryClient("http://registry", token=token)


def test_a_token_is_sent_with_every_call() -> None:
    sent: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.headers["authorization"])
        return httpx2.Response(404)

    transport = httpx2.MockTransport(answer)
    with RegistryClient("http://registry", token="secret", transport=transport) as client:
        client.has_blob("blake3:" + "0" * 64)
        client.is_held(KEY)
    assert sent == ["Bearer secret"] * 2
