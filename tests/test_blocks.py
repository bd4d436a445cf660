"""Parts of a content are checked alone, by digests that were taken as it was hashed (S12)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from blake3 import blake3

from registry.content.blocks import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    KEPT_BYTES,
    BlockDigests,
    BlockHasher,
    read_right,
)

SIZE = 3 * BLOCK_BYTES + 1000
CONTENT = random.Random(7).randbytes(SIZE)


def hashed(content: bytes, seed: int = 0) -> BlockHasher:
    """Fed in parts of random lengths, as a network file system may give them."""
    hasher, lengths, start = BlockHasher(), random.Random(seed), 0
    while start < len(content):
        length = lengths.choice((1, 1000, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7))
        hasher.update(content[start : start + length])
        start += length
    return hasher


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, SIZE])
@pytest.mark.parametrize("seed", range(3))
def test_digests_do_not_depend_on_how_the_bytes_came(size: int, seed: int) -> None:
    content = CONTENT[:size]
    hasher = hashed(content, seed)
    assert hasher.hexdigest() == blake3(content).hexdigest()
    blocks = [content[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
    assert hasher.digests() == b"".join(blake3(block).digest() for block in blocks)


def reader(held: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: held[offset : offset + length]


PARTS = [
    (0, 10),
    (0, SIZE),
    (SIZE - 1, 1),
    (BLOCK_BYTES - 5, 10),
    (BLOCK_BYTES, BLOCK_BYTES),
    (BLOCK_BYTES + 1, 2 * BLOCK_BYTES),
    (3 * BLOCK_BYTES + 5, 20),
]


@pytest.mark.parametrize(("offset", "length"), PARTS)
def test_a_part_is_given_only_if_every_block_of_it_is_right(offset: int, length: int) -> None:
    digests = hashed(CONTENT).digests()
    touched = range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
    for wrong in (None, *range(4)):
        held = bytearray(CONTENT)
        if wrong is not None:
            held[min((wrong + 1) * BLOCK_BYTES, SIZE) - 1] ^= 1
        part = read_right(reader(bytes(held)), digests, SIZE, offset, length)
        assert part == (None if wrong in touched else CONTENT[offset : offset + length])
    for end in (0, offset, offset + length - 1):
        assert read_right(reader(CONTENT[:end]), digests, SIZE, offset, length) is None


def test_the_digests_that_are_kept_are_bounded() -> None:
    kept = BlockDigests()
    each = bytes(KEPT_BYTES // 4 // DIGEST_BYTES * DIGEST_BYTES)
    for name in "abcd":
        kept.keep(name, each)
        kept.keep(name, each)
    assert kept.find("a") == each
    kept.keep("e", each)
    assert [name for name in "abcde" if kept.find(name) is not None] == ["a", "c", "d", "e"]
    kept.keep("large", bytes(2 * KEPT_BYTES))
    assert kept.find("large") is not None
