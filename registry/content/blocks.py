"""The digests of the parts of a content, so that a part of it can be checked alone (S12).

They belong to the checksum, not to a file: whoever holds the content, its parts have these
digests. They are made while all of it is hashed, and kept only if it has the right checksum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from blake3 import blake3

BLOCK_BYTES = 256 << 10
DIGEST_BYTES = 32
KEPT_BYTES = 8 << 20
"""Digests that are remembered: those of 64 GiB of content."""


class BlockHasher:
    """The checksum of bytes that pass by, and the digest of each block of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._whole = blake3()
        self._block = blake3()
        self._missing = BLOCK_BYTES
        self._digests = bytearray()

    def update(self, part: bytes) -> None:
        """Take in what comes next, however long."""
        self._whole.update(part)
        rest = memoryview(part)
        while rest:
            piece, rest = rest[: self._missing], rest[self._missing :]
            self._block.update(piece)
            self._missing -= len(piece)
            if not self._missing:
                self._end_block()

    def _end_block(self) -> None:
        self._digests += self._block.digest()
        self._block, self._missing = blake3(), BLOCK_BYTES

    def hexdigest(self) -> str:
        """Of all that came."""
        return self._whole.hexdigest()

    def digests(self) -> bytes:
        """Of the blocks, in order, when all has come."""
        if self._missing != BLOCK_BYTES:
            self._end_block()
        return bytes(self._digests)


class BlockDigests:
    """The digests of the contents that were streamed last, by checksum."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0

    def find(self, checksum: str) -> bytes | None:
        """The digests of a content, if they are known."""
        found = self._digests.get(checksum)
        if found is not None:
            self._digests.move_to_end(checksum)
        return found

    def keep(self, checksum: str, digests: bytes) -> None:
        """Remember the digests of a content that was found to have its checksum."""
        if checksum not in self._digests:
            self._digests[checksum] = digests
            self._kept_bytes += len(digests)
            while self._kept_bytes > KEPT_BYTES and len(self._digests) > 1:
                self._kept_bytes -= len(self._digests.popitem(last=False)[1])


def read_right(
    read: Callable[[int, int], bytes], digests: bytes, size: int, offset: int, length: int
) -> bytes | None:
    """A part of a content of which every block was read and found right, or None: one was not.

    `read` gives the bytes at an offset: as many as asked for, or fewer at the end.
    """
    first = offset // BLOCK_BYTES
    start = first * BLOCK_BYTES
    end = min(-(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES, size)
    blocks = read(start, end - start)
    if len(blocks) != end - start or not all(_right(blocks, digests, first)):
        return None
    return blocks[offset - start : offset - start + length]


def _right(blocks: bytes, digests: bytes, first: int) -> Iterator[bool]:
    view = memoryview(blocks)
    for number, start in enumerate(range(0, len(view), BLOCK_BYTES), first):
        digest = digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        yield blake3(view[start : start + BLOCK_BYTES]).digest() == digest
