"""From what a manifest offers to what can be written: files are resolved, opened and hashed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from registry.content.places import Place, Places
from registry.content.roots import ArtifactRoots
from registry.core.hashing import hash_file
from registry.core.records import Artifact, ArtifactKey, Offer
from registry.core.steps import step
from registry.errors import ChecksumMismatch, TooLarge


async def prepare_in(
    places: Places, offers: Sequence[Offer], *, max_blob_bytes: int, max_manifest_bytes: int
) -> tuple[Artifact, ...]:
    """As `prepare`, in the threads of the places where the files are.

    Raises:
        Busy: a file cannot be looked at now, or its file system does not answer.
    """
    in_place = [offer for offer in offers if offer.path is not None]
    walks = await places.resolve([offer.path or "" for offer in in_place])
    check_manifest_bytes((walk.size for walk in walks), max_manifest_bytes)
    found: dict[ArtifactKey, Artifact] = {}

    def hash_some(some: list[tuple[Offer, str]], _: Place) -> None:
        for offer, path in some:
            found[offer.key] = _hashed(offer, path, max_blob_bytes)

    located = [(walk.at, (offer, walk.at)) for offer, walk in zip(in_place, walks, strict=True)]
    await places.in_each(located, hash_some)
    return tuple(found.get(offer.key) or _copied(offer) for offer in offers)


def prepare(
    offers: Sequence[Offer],
    roots: ArtifactRoots,
    *,
    max_blob_bytes: int,
    max_manifest_bytes: int,
) -> tuple[Artifact, ...]:
    """The artifacts of a manifest. Reads every file that is held in place, from start to end.

    Raises:
        PathNotAllowed: a path lies outside of the artifact roots.
        FileUnreadable: a file cannot be read, or changed while it was.
        Busy: a file cannot be looked at now, which says nothing about it.
        ChecksumMismatch: a file is not what the offer says.
        TooLarge: a file, or all of them together, exceed the limits.
    """
    paths = {offer.key: roots.resolve(offer.path) for offer in offers if offer.path is not None}
    check_manifest_bytes(map(_size_on_disk, paths.values()), max_manifest_bytes)
    return tuple(
        _copied(offer) if offer.path is None else _hashed(offer, paths[offer.key], max_blob_bytes)
        for offer in offers
    )


def check_manifest_bytes(sizes: Iterable[int], max_manifest_bytes: int) -> None:
    """Raise TooLarge if the files of a manifest have more bytes than one may have."""
    total = sum(sizes)
    if total > max_manifest_bytes:
        raise TooLarge(
            f"The files of this manifest have {total} bytes together; at most "
            f"{max_manifest_bytes} are taken (max_manifest_bytes). Register them in parts."
        )


def _copied(offer: Offer) -> Artifact:
    return Artifact(offer.key, offer.checksum or "", offer.size)


def _hashed(offer: Offer, path: str, max_blob_bytes: int) -> Artifact:
    found = hash_file(path, max_bytes=max_blob_bytes)
    step()
    if offer.checksum not in (None, found.checksum) or offer.size not in (None, found.size):
        raise ChecksumMismatch(
            f"The file of {offer.key} has {found.size} bytes and {found.checksum}, which is not "
            "what was given. Hash it again and repeat the request."
        )
    return Artifact(offer.key, found.checksum, found.size, path, found.identity)


def _size_on_disk(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
