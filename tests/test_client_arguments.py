"""What the public functions take: paths in every form, names as text or as records, and nothing in
silence that they cannot use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import MetadataArtifactRegistry
from registry.cli import main
from registry.client import AsyncRegistryClient, LoraInfo, RegistryClient, Resolver, Worker
from registry.client.attach import attach, read_manifest
from registry.client.cache import BlobCache
from registry.client.protocol import Endpoint
from registry.core.events import EventFilter
from registry.core.hashing import checksum_of
from registry.core.records import ArtifactKey, Offer, Owner
from registry.discovery.file import FileDiscovery
from registry.errors import Invalid, RegistryError
from tests.support import Server, assert_sound
from tests.test_worker import make_model

CONTENT = b"{}"
SUM = checksum_of(CONTENT)
OWNER = Owner("dynamo", "backend", "generate", 7)
KEY = ArtifactKey("tiny", "_base", "config.json")
ENDPOINT = Endpoint("dynamo", "backend", "generate")


class Named:
    """A path that is neither text nor a Path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


FORMS: dict[str, Callable[[Path], Any]] = {"text": str, "Path": Path, "path-like": Named}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("service") / "registry.db"
    with Server(path) as server:
        assert server.register_copies(OWNER, {KEY: CONTENT}).status_code == 200
        yield server
    assert_sound(path)


@forms
def test_every_path_may_be_text_or_path_like(
    service: Server, tmp_path: Path, form: Callable[[Path], Any]
) -> None:
    file = tmp_path / "blob"
    file.write_bytes(CONTENT)
    model = make_model(tmp_path / "model")
    cache = BlobCache(tmp_path / "cache")
    resolver = Resolver(service.url, cache=cache)
    with RegistryClient(service.url) as client:
        client.upload(SUM, form(file))
        owner = Owner("dynamo", "backend", "generate", 100)
        attach(client, owner, f"m-{form.__name__.lower()}", form(model))
        client.unregister_for_owner(owner)
    read_manifest(OWNER, "m", form(model))

    async def use() -> None:
        async with AsyncRegistryClient(service.url) as client:
            await client.upload(SUM, form(file))
        await resolver.fetch_async("tiny", to=form(tmp_path / "b"))

    asyncio.run(use())
    assert resolver.fetch("tiny", to=form(tmp_path / "a"))[0].path == tmp_path / "a/config.json"
    with Worker(service.url, OWNER, discovery=FileDiscovery(form(tmp_path / "store"))) as worker:
        card = worker.attach(form(model), name=f"w-{form.__name__}", lora="lora")
        resolver.fetch_card(card, to=form(tmp_path / "c"))
        asyncio.run(resolver.fetch_card_async(card, to=form(tmp_path / "d")))
    Resolver(service.url, cache=BlobCache(form(tmp_path / "other"))).fetch("tiny")
    url = f"sqlite:///{tmp_path}/embedded.db"
    with MetadataArtifactRegistry(url, artifact_roots=[form(tmp_path)]) as registry:
        registry.register(OWNER, "m", "_base", "blob", form(file))
    assert {each.name for each in tmp_path.iterdir()} >= {"a", "b", "c", "d", "store", "other"}


@pytest.mark.parametrize("owner", [OWNER, str(OWNER)], ids=["record", "text"])
def test_an_owner_may_be_text(service: Server, tmp_path: Path, owner: Owner | str) -> None:
    with RegistryClient(service.url) as client:
        offer = Offer(KEY, checksum=SUM, size=len(CONTENT))
        assert client.register(owner, [offer], lease_ttl_s=60).owner == OWNER
        assert client.renew(owner).owner == OWNER
        assert client.drain(owner).owner == OWNER
        assert client.owner(owner).record.owner == OWNER
        assert client.events(EventFilter(owner)).events  # type: ignore[arg-type]
        assert client.unregister_for_owner(owner).owner == OWNER
        client.register(owner, [offer], lease_ttl_s=None)
    with Worker(service.url, owner) as worker:
        assert worker.owner == OWNER
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    with MetadataArtifactRegistry(f"sqlite:///{tmp_path}/e.db") as registry:
        registry.register(owner, "m", "_base", "file", file)
        assert registry.unregister_for_owner(owner).owner == OWNER


@pytest.mark.parametrize(
    ("key", "endpoint"),
    [(KEY, ENDPOINT), (str(KEY), str(ENDPOINT))],
    ids=["records", "text"],
)
def test_keys_and_endpoints_may_be_text(
    service: Server, tmp_path: Path, key: ArtifactKey | str, endpoint: Endpoint | str
) -> None:
    with RegistryClient(service.url) as client:
        assert client.explain(key).entry is not None
        assert client.is_held(key, endpoint)
        with (tmp_path / "file").open("w+b") as into:
            client.download(key, SUM, len(CONTENT), into, endpoint=endpoint)
    cache = BlobCache(tmp_path / "cache")
    assert Resolver(service.url, cache=cache).fetch("tiny", endpoint=endpoint)


WRONG: dict[str, tuple[Callable[[RegistryClient, str], object], type[Exception]]] = {
    "owner text": (lambda c, url: c.renew("a/b"), Invalid),
    "owner path": (lambda c, url: c.owner("../../../../x"), Invalid),
    "owner number": (lambda c, url: c.renew(7), TypeError),  # type: ignore[arg-type]
    "no owner": (lambda c, url: Worker(url, None), TypeError),  # type: ignore[arg-type]
    "worker text": (lambda c, url: Worker(url, "dynamo"), Invalid),
    "key text": (lambda c, url: c.explain("a"), Invalid),
    "key number": (lambda c, url: c.is_held(7), TypeError),  # type: ignore[arg-type]
    "endpoint text": (lambda c, url: c.is_held(KEY, "a"), Invalid),
    "endpoint number": (lambda c, url: c.is_held(KEY, 7), TypeError),  # type: ignore[arg-type]
    "url number": (lambda c, url: RegistryClient(7), TypeError),  # type: ignore[arg-type]
    "lease without end": (lambda c, url: c.register(OWNER, [], lease_ttl_s=float("inf")), Invalid),
    "lease of no number": (lambda c, url: c.register(OWNER, [], lease_ttl_s=float("nan")), Invalid),
    "drain without end": (lambda c, url: c.drain(OWNER, deadline_s=float("inf")), Invalid),
    "worker's lease": (lambda c, url: Worker(url, OWNER, lease_ttl_s=float("nan")), Invalid),
    "checksum": (lambda c, url: c.download(KEY, "x", 1, None), Invalid),  # type: ignore[arg-type]
    "size": (lambda c, url: c.download(KEY, SUM, -1, None), Invalid),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("call", "error"), WRONG.values(), ids=WRONG)
def test_what_is_none_is_named(
    service: Server, call: Callable[[RegistryClient, str], object], error: type[Exception]
) -> None:
    with RegistryClient(service.url) as client, pytest.raises(error):
        call(client, service.url)


NAME = "Org/Tiny.Lab-1B"


def test_a_fifo_is_not_uploaded_and_not_waited_for(service: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with RegistryClient(service.url) as client, pytest.raises(RegistryError):
        client.upload(SUM, tmp_path / "fifo")


@pytest.mark.parametrize(
    "command", [["fetch", "Org/Tiny.Lab-1B"], ["ls", "--slug", "Org/Tiny.Lab-1B"]]
)
def test_who_gives_a_name_is_offered_its_slug(
    service: Server,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["metadata-registry", *command, "--url", service.url])
    with pytest.raises(SystemExit):
        main()
    assert "org_tiny_lab-1b" in capsys.readouterr().err


def test_a_lora_may_be_its_name() -> None:
    assert LoraInfo("My.Lora").slug == "my_lora"


def test_close_alone_detaches_nothing(service: Server, tmp_path: Path) -> None:
    store = FileDiscovery(tmp_path / "store")
    owner = Owner("dynamo", "backend", "generate", 200)
    worker = Worker(service.url, owner, discovery=store)
    worker.attach(make_model(tmp_path / "model"), name="closed")
    worker.close()
    worker.close()
    assert service.client.get(f"/v1/owners/{owner}").json()["refs"] == 3
    assert any((tmp_path / "store").rglob("*200*")) or any((tmp_path / "store").rglob("*c8*"))
    store.close()
    service.unregister(owner)
