"""The cache of fetched content: claims, what is removed, and what never is."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from registry.client.cache import PARTIAL_KEPT_S, USED_LATELY_S, BlobCache
from registry.client.cache_directory import default_directory
from registry.core.hashing import checksum_of
from registry.errors import DirectoryUnusable

LONG_AGO_S = 2 * max(PARTIAL_KEPT_S, USED_LATELY_S)


def add(cache: BlobCache, content: bytes) -> Path:
    """Put content into a cache as a download would."""
    claim = cache.try_claim(checksum_of(content))
    assert claim is not None
    claim.file.write(content)
    path = claim.keep()
    claim.close()
    return path


def age(path: Path, by_s: float = LONG_AGO_S) -> None:
    then = time.time() - by_s
    os.utime(path, (then, then))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_cache_is_where_the_user_s_caches_are(tmp_path: Path) -> None:
    assert default_directory({"XDG_CACHE_HOME": "/c"}) == Path("/c/metadata-registry")
    home = tmp_path / ".cache/metadata-registry"
    environ = {"HOME": str(tmp_path)}
    assert default_directory(environ) == home
    assert default_directory(environ | {"XDG_CACHE_HOME": "relative"}) == home


def test_without_a_home_the_cache_is_a_directory_of_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"metadata-registry-{os.getuid()}"
    assert default_directory({"HOME": "/dev/null/home"}) == own
    assert own.stat().st_mode & 0o777 == 0o700
    assert default_directory({"HOME": "/dev/null/home"}) == own
    own.chmod(0o777)
    with pytest.raises(DirectoryUnusable, match="Set XDG_CACHE_HOME"):
        default_directory({"HOME": "/dev/null/home"})
    own.rmdir()
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DirectoryUnusable, match="Set XDG_CACHE_HOME"):
        default_directory({"HOME": "/dev/null/home"})


def test_what_is_kept_is_found_and_read_only(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    checksum = checksum_of(b"content")
    assert cache.find(checksum, 100) is None
    path = add(cache, b"content")
    found = cache.find(checksum, 100)
    assert found is not None
    assert (found.path, found.checksum, found.size) == (str(path), checksum, 7)
    assert path.stat().st_mode & 0o222 == 0
    assert cache.find(checksum, 6) is None
    assert names(tmp_path / "partial") == set()


def test_one_at_a_time_has_the_claim_and_the_next_goes_on_from_its_bytes(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    checksum = checksum_of(b"content")
    first = cache.try_claim(checksum)
    assert first is not None
    assert cache.try_claim(checksum) is None
    other = cache.try_claim(checksum_of(b"other"))
    assert other is not None
    other.close()
    first.file.write(b"con")
    first.close()
    assert cache.partial_size(checksum) == 3
    second = cache.try_claim(checksum)
    assert second is not None
    assert second.file.read() == b"con"
    second.close()
    assert cache.find(checksum, 100) is None


def test_a_claim_of_a_file_that_was_finished_meanwhile_is_one_of_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BlobCache(tmp_path)
    checksum = checksum_of(b"content")
    first = cache.try_claim(checksum)
    assert first is not None
    first.file.write(b"content")
    open_file = os.open
    finished: list[Path] = []

    def finish_in_between(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = open_file(path, flags, mode)
        if not finished and flags & os.O_CREAT:
            finished.append(first.keep())
            first.close()
        return descriptor

    monkeypatch.setattr(os, "open", finish_in_between)
    second = cache.try_claim(checksum)
    assert second is not None
    assert second.file.read() == b""
    second.file.write(b"something else")
    second.close()
    assert finished[0].read_bytes() == b"content"


def test_a_claim_beside_another_keeps_the_same_blob(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    checksum = checksum_of(b"content")
    stopped = cache.try_claim(checksum)
    assert stopped is not None
    beside = cache.claim_beside(checksum)
    beside.file.write(b"content")
    beside.keep()
    beside.close()
    assert cache.find(checksum, 100) is not None
    stopped.close()
    assert names(tmp_path / "partial") == set()


def test_partial_files_go_when_nobody_went_on_with_them_for_a_day(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    claims = {}
    for name in ("stale", "fresh", "at work"):
        claim = cache.try_claim(checksum_of(name.encode()))
        assert claim is not None
        claim.file.write(b"some")
        claim.file.flush()
        claims[name] = claim
    for name in ("stale", "fresh"):
        claims[name].close()
    partial = {name: tmp_path / "partial" / checksum_of(name.encode())[7:] for name in claims}
    for name in ("stale", "at work"):
        age(partial[name])
    cache.collect()
    assert {name for name, path in partial.items() if path.exists()} == {"fresh", "at work"}
    claims["at work"].close()


def test_eviction_takes_the_least_recently_used_and_never_what_is_linked_or_was_used_lately(
    tmp_path: Path,
) -> None:
    cache = BlobCache(tmp_path, max_bytes=250)
    contents = {name: name.encode() * 100 for name in "abcdef"}
    paths = {name: add(cache, content) for name, content in contents.items()}
    for number, path in enumerate(paths.values()):
        age(path, LONG_AGO_S - number)
    os.link(paths["a"], tmp_path / "linked")
    assert cache.find(checksum_of(contents["b"]), 1000) is not None
    cache.collect()
    # Six have 600 bytes; four must go, but a is linked and b was used just now.
    assert {name for name, path in paths.items() if path.exists()} == {"a", "b"}
    (tmp_path / "linked").unlink()
    cache.collect()
    assert {name for name, path in paths.items() if path.exists()} == {"a", "b"}


def test_within_the_bound_nothing_is_evicted(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, max_bytes=3)
    old = add(cache, b"old")
    age(old)
    cache.collect()
    assert old.exists()


def test_an_evicted_blob_is_as_if_it_had_never_been_there(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, max_bytes=0)
    checksum = checksum_of(b"content")
    age(add(cache, b"content"))
    cache.collect()
    assert cache.find(checksum, 100) is None
    add(cache, b"content")
    cache.collect()
    assert cache.find(checksum, 100) is not None
