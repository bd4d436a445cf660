"""Content in memory stays within its budget, whoever still has what was pushed out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.content import file_memory
from registry.content.cache import BODIES_MAX, ContentCache
from registry.content.file_memory import FileMemory
from registry.core.hashing import FileContent
from registry.core.memo import Memo


def kept(cache: ContentCache, name: str, size: int) -> object:
    assert cache.reserve(size)
    return cache.fill(name, bytes(size))


def test_what_was_used_last_stays_and_the_oldest_makes_room() -> None:
    cache = ContentCache(30)
    for name in ("a", "b", "c"):
        kept(cache, name, 10)
    assert cache.find("a") is not None
    kept(cache, "d", 10)
    assert [name for name in "abcd" if cache.find(name)] == ["a", "c", "d"]
    assert cache.used_bytes == 30


def test_content_that_was_pushed_out_counts_until_nobody_has_it() -> None:
    """Else its readers and what took its place would be in memory together."""
    cache = ContentCache(30)
    held = kept(cache, "a", 20)
    assert not cache.reserve(20)
    assert (cache.find("a"), cache.used_bytes) == (None, 20)
    del held
    assert cache.used_bytes == 0
    assert cache.reserve(20)


def test_pinned_content_is_not_pushed_out() -> None:
    cache = ContentCache(30)
    kept(cache, "a", 20)
    body = cache.find("a")
    assert body is not None
    body.pins += 1
    del body
    assert not cache.reserve(20)
    assert cache.find("a") is not None


def test_content_that_came_twice_counts_once() -> None:
    cache = ContentCache(30)
    first = kept(cache, "a", 10)
    assert kept(cache, "a", 10) is first
    assert cache.used_bytes == 10


def test_room_that_was_not_filled_is_given_back() -> None:
    cache = ContentCache(30)
    assert cache.reserve(30)
    assert not cache.reserve(1)
    cache.release(30)
    assert cache.reserve(30)
    assert not cache.reserve(31)


def test_there_are_never_more_contents_than_a_number_however_small_they_are() -> None:
    cache = ContentCache(1 << 30)
    for number in range(BODIES_MAX + 10):
        kept(cache, str(number), 1)
    assert cache.used_bytes == BODIES_MAX
    assert [cache.find(name) is None for name in ("0", "9", "10")] == [True, True, False]


def test_what_is_known_of_files_takes_no_more_than_its_bytes_and_the_last_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(file_memory, "SEEN_BYTES", 200_000)
    memory = FileMemory()
    memory.proofs = Memo(200_000)
    status = os.stat(tmp_path)
    paths = [f"/models/{number:04000}" for number in range(500)]
    for path in paths:
        memory.note(FileContent(path, "blake3:x", 1, "identity"))
        memory.note(FileContent(path, "blake3:x", 1, "identity"))
        memory.prove(path, "blake3:x", status)
        assert path in memory.proofs
    known = [path for path in paths if memory.find(path, "identity")]
    assert known == paths[-len(known) :]
    assert 40 < len(known) < 50
    assert len(memory.proofs) < 50
    for path in known:
        memory.note_wrong(path, None)
    assert memory._seen_bytes == 0
