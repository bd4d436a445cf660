"""Fetching: every file verified, or nothing in the directory changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import httpx2
import pytest

from registry import wire
from registry.client import placement
from registry.client.attach import attach
from registry.client.cache import BlobCache, default_directory
from registry.client.client import RegistryClient
from registry.client.placement import Placed, place
from registry.client.protocol import Endpoint
from registry.client.resolver import Download, FetchLimits, Refuse, Resolver, Use, decide
from registry.client.retries import RetryPolicy
from registry.errors import (
    ChecksumMismatch,
    FileUnreadable,
    Invalid,
    NotRegistered,
    RegistryError,
    TooLarge,
    Unserveable,
)
from registry.files import FileContent, checksum_of
from registry.records import ArtifactKey, Entry, Owner
from tests.support import Server, in_place

OWNER = Owner("dynamo", "backend", "generate", 7)
CONTENTS = {"config.json": b"{}", "tokenizer.json": b"[1]" * 100_000, "copy.json": b"{}"}


def entry(filename: str, content: bytes) -> Entry:
    key = ArtifactKey("tiny", "_base", filename)
    return Entry(1, key, checksum_of(content), len(content), 1, 0, 0, 1)


def contents_of(directory: Path) -> dict[str, bytes]:
    """Everything in a directory, hidden files as well."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# The decision


CACHED = FileContent("/cache/0", checksum_of(b"{}"), 2, None)


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
    assert decide(entry("config.json", b"{}"), cached, FetchLimits()) == decision


def test_a_file_over_the_limit_is_refused_even_if_it_is_cached() -> None:
    decision = decide(entry("config.json", b"{}"), CACHED, FetchLimits(file_max_bytes=1))
    assert decision == Refuse("it has 2 bytes; the limit is 1")


# The cache


def test_the_cache_is_where_the_user_s_caches_are() -> None:
    assert default_directory({"XDG_CACHE_HOME": "/c"}) == Path("/c/metadata-registry/blobs")
    home = Path.home() / ".cache/metadata-registry/blobs"
    assert default_directory({}) == default_directory({"XDG_CACHE_HOME": "relative"}) == home


def test_what_is_added_to_the_cache_is_found_and_read_only(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs")
    checksum = checksum_of(b"content")
    assert cache.find(checksum, 100) is None
    path = cache.add(checksum, lambda file: file.write(b"content"))
    found = cache.find(checksum, 100)
    assert found is not None
    assert (found.path, found.checksum, found.size) == (str(path), checksum, 7)
    assert path.stat().st_mode & 0o222 == 0
    assert cache.find(checksum, 6) is None


def test_a_failed_write_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    checksum = checksum_of(b"content")
    cache.add(checksum, lambda file: file.write(b"content"))

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RegistryError("no more")

    with pytest.raises(RegistryError, match="no more"):
        cache.add(checksum, fail)
    assert contents_of(tmp_path) == {checksum.removeprefix("blake3:"): b"content"}


# Placing


def placed(folder: Path, contents: dict[str, bytes]) -> list[Placed]:
    """Files as the cache would give them."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, content in contents.items():
        path = folder / checksum_of(content)
        path.write_bytes(content)
        files.append(Placed(name, checksum_of(content), len(content), path))
    return files


def test_a_new_directory_appears_with_all_files_and_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert contents_of(target) == CONTENTS
    assert os.listdir(tmp_path / "a") == ["b"]


def test_in_a_directory_that_exists_other_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_bytes(b"mine")
    (target / "config.json").write_bytes(b"old")
    (target / "copy.json").symlink_to("mine.txt")
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert contents_of(target) == {"mine.txt": b"mine", **CONTENTS}
    assert not (target / "copy.json").is_symlink()


def test_a_file_that_is_right_already_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes(b"{}")
    before = (target / "config.json").stat().st_ino
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert (target / "config.json").stat().st_ino == before


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes(b"old")
    files = placed(tmp_path / "cache", CONTENTS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    place(files, target)
    place(files, tmp_path / "new")
    assert contents_of(target) == contents_of(tmp_path / "new") == CONTENTS
    assert all(path.stat().st_nlink == 1 for path in target.iterdir())

    files[0].path.write_bytes(b"[]")
    with pytest.raises(ChecksumMismatch):
        place(files, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_when_a_file_cannot_be_replaced_all_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, links: bool
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    before = {"config.json": b"old", "copy.json": b"older"}
    for name, content in before.items():
        (target / name).write_bytes(content)
    files = placed(tmp_path / "cache", CONTENTS)
    replaced: list[Path] = []
    replace, link = os.replace, os.link

    def fail_once(source: Path, destination: Path) -> None:
        replaced.append(destination)
        if len(replaced) == failing:
            raise OSError("disk full")
        replace(source, destination)

    def keep_no_links(source: Path, destination: Path, **kwargs: bool) -> None:
        if not links and kwargs:
            raise OSError("no links here")
        link(source, destination, **kwargs)

    monkeypatch.setattr(os, "replace", fail_once)
    monkeypatch.setattr(os, "link", keep_no_links)
    with pytest.raises(OSError, match="disk full"):
        place(files, target)
    assert contents_of(target) == before


def test_a_directory_in_the_way_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(FileUnreadable, match="is a directory"):
        place(placed(tmp_path / "cache", CONTENTS), target)
    assert os.listdir(target) == ["tokenizer.json"]


def test_an_interrupted_staging_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = placed(tmp_path / "cache", CONTENTS)

    def interrupt(directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(placement, "sync_directory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        place(files, tmp_path / "new")
    assert os.listdir(tmp_path) == ["cache"]


# With a service


def model(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def attached(server: Server, tmp_path: Path) -> Server:
    with RegistryClient(server.url) as client:
        attach(client, OWNER, "tiny", model(tmp_path / "model", CONTENTS))
    return server


def resolver_of(server: Server, tmp_path: Path, limits: FetchLimits | None = None) -> Resolver:
    return Resolver(server.url, cache=BlobCache(tmp_path / "blobs"), limits=limits)


def test_content_is_uploaded_once_and_only_if_the_service_lacks_it(
    server: Server, tmp_path: Path
) -> None:
    directory = model(tmp_path / "model", CONTENTS)
    other = Owner("dynamo", "backend", "generate", 8)
    with RegistryClient(server.url) as client:
        first = attach(client, OWNER, "tiny", directory)
        (directory / "new.json").write_bytes(b"new")
        second = attach(client, other, "tiny", directory)
    assert len(first.uploaded) == 2
    assert second.uploaded == (checksum_of(b"new"),)
    assert {a.key.filename: str(a.outcome) for a in second.registered.artifacts} == {
        "config.json": "shared",
        "tokenizer.json": "shared",
        "copy.json": "shared",
        "new.json": "created",
    }


def test_the_progress_of_attaching_and_fetching_ends_at_all_bytes(
    server: Server, tmp_path: Path
) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(activity: str, done: int, total: int) -> None:
        seen.setdefault(activity, []).append((done, total))

    with RegistryClient(server.url) as client:
        attach(client, OWNER, "tiny", model(tmp_path / "model", CONTENTS), on_progress=note)
    with resolver_of(server, tmp_path) as resolver:
        resolver.fetch("tiny", on_progress=note)
    whole, distinct = 300_004, 300_002
    assert {name: steps[-1] for name, steps in seen.items()} == {
        "Hashing": (whole, whole),
        "Uploading": (distinct, distinct),
        "Downloading": (distinct, distinct),
    }
    for steps in seen.values():
        assert steps == sorted(steps)


def test_a_model_is_fetched_verified_and_the_second_time_from_the_cache(
    attached: Server, tmp_path: Path
) -> None:
    with resolver_of(attached, tmp_path) as resolver:
        first = resolver.fetch("tiny", to=tmp_path / "out")
        second = resolver.fetch("tiny", to=tmp_path / "out2")
        third = resolver.fetch("tiny")
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "out2") == CONTENTS
    assert all(file.downloaded for file in first)
    assert not any(file.downloaded for file in second)
    assert {file.path for file in first} == {tmp_path / "out" / name for name in CONTENTS}
    assert {file.path.parent for file in third} == {tmp_path / "blobs"}


def test_a_damaged_cache_is_repaired(attached: Server, tmp_path: Path) -> None:
    with resolver_of(attached, tmp_path) as resolver:
        path = resolver.fetch("tiny", to=tmp_path / "out")[0].path
        path.chmod(0o644)
        path.write_bytes(b"edited")
        again = resolver.fetch("tiny", to=tmp_path / "out")
    assert contents_of(tmp_path / "out") == CONTENTS
    assert {file.key.filename for file in again if file.downloaded} == {"config.json", "copy.json"}


def test_only_what_the_endpoint_holds_is_fetched(attached: Server, tmp_path: Path) -> None:
    prefill = Owner("dynamo", "backend", "prefill", 7)
    key = ArtifactKey("tiny", "_base", "extra.json")
    attached.register_copies(prefill, {key: b"extra"})
    with resolver_of(attached, tmp_path) as resolver:
        found = resolver.fetch("tiny", endpoint=Endpoint.parse("dynamo/backend/prefill"))
        assert [file.key for file in found] == [key]
        with pytest.raises(NotRegistered, match="by dynamo/backend/none under tiny/_base"):
            resolver.fetch("tiny", endpoint=Endpoint.parse("dynamo/backend/none"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (FetchLimits(file_max_bytes=1000), r"tiny/_base/tokenizer\.json is not fetched: it has"),
        (FetchLimits(total_max_bytes=300_003), "have 300004 bytes together"),
        (FetchLimits(files_max=2), "has more than 2 files"),
    ],
)
def test_more_than_the_limits_is_refused_before_anything_is_placed(
    attached: Server, tmp_path: Path, limits: FetchLimits, message: str
) -> None:
    resolver = resolver_of(attached, tmp_path, limits)
    with resolver, pytest.raises(TooLarge, match=message):
        resolver.fetch("tiny", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_nobody_registered_is_not_fetched(server: Server, tmp_path: Path) -> None:
    with resolver_of(server, tmp_path) as resolver:
        with pytest.raises(NotRegistered, match=r"Nothing is registered under tiny/lora\."):
            resolver.fetch("tiny", "lora")
        with pytest.raises(Invalid, match="slug is 'Org/Tiny'"):
            resolver.fetch("Org/Tiny")


def test_one_file_that_cannot_be_served_keeps_all_others_out(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    directory = model(tmp_path / "model", CONTENTS)
    server = serve(artifact_root=[tmp_path])
    keys = [ArtifactKey("tiny", "_base", name) for name in CONTENTS]
    server.register(OWNER, [in_place(key, directory / key.filename) for key in keys])
    (directory / "tokenizer.json").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_bytes(b"old")
    with resolver_of(server, tmp_path) as resolver, pytest.raises(Unserveable):
        resolver.fetch("tiny", to=out)
    assert contents_of(out) == {"config.json": b"old"}


def test_many_fetch_the_same_model_into_one_cache_and_directory(
    attached: Server, tmp_path: Path
) -> None:
    def fetch(number: int) -> None:
        with resolver_of(attached, tmp_path) as resolver:
            resolver.fetch("tiny", to=tmp_path / f"out-{number % 2}")

    (tmp_path / "out-0").mkdir()
    (tmp_path / "out-1").mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(16)))
    assert contents_of(tmp_path / "out-0") == contents_of(tmp_path / "out-1") == CONTENTS
    assert {len(name) for name in os.listdir(tmp_path / "blobs")} == {64}


# With a service that lies


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{} ", b"{", b"", b"x" * 10_000_000],
    ids=["other", "longer", "shorter", "empty", "much longer"],
)
def test_wrong_bytes_are_never_kept_or_placed(tmp_path: Path, body: bytes) -> None:
    listed = wire.ArtifactsAnswer([wire.EntryAnswer.of(entry("config.json", b"{}"))], None)

    def answer(request: httpx2.Request) -> httpx2.Response:
        content = wire.encode(listed) if request.url.path == "/v1/artifacts" else body
        return httpx2.Response(200, content=content)

    client = RegistryClient(
        "http://h", retries=RetryPolicy(attempts=1), transport=httpx2.MockTransport(answer)
    )
    cache = BlobCache(tmp_path / "blobs")
    with client, pytest.raises(ChecksumMismatch):
        Resolver(client, cache=cache).fetch("tiny", to=tmp_path / "out")
    assert os.listdir(tmp_path / "blobs") == []
    assert not (tmp_path / "out").exists()


def test_another_etag_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"etag": '"blake3:other"'}, content=b"{}")

    client = RegistryClient("http://h", transport=httpx2.MockTransport(answer))
    wanted = entry("config.json", b"{}")
    path = tmp_path / "file"
    with client, path.open("xb") as file, pytest.raises(ChecksumMismatch, match="Try again"):
        client.download(wanted.key, wanted.checksum, wanted.size, file)
    assert path.read_bytes() == b""
