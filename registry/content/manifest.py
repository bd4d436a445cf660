"""From what a manifest offers to what can be written: files are resolved, opened and hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from registry.content.places import Place, Places, take_turns
from registry.content.roots import ArtifactRoots, Walk
from registry.core.hashing import FileContent, hash_file
from registry.core.records import Artifact, ArtifactKey, Offer
from registry.core.work_progress import step
from registry.errors import ChecksumMismatch, TooLarge


async def prepare_in(
    places: Places,
    offers: Sequence[Offer],
    learn: Callable[[str, FileContent], None],
    *,
    max_blob_bytes: int,
    max_manifest_bytes: int,
) -> tuple[Artifact, ...]:
    """As `prepare`, in the threads of the places where the files are. `learn` is told of each path
    that is kept, and of what it led to.

    Raises:
        Busy: a file cannot be looked at now, or its file system does not answer.
    """
    in_place = [offer for offer in offers if offer.path is not None]
    resolved = await places.resolve([offer.path or "" for offer in in_place])
    check_manifest_bytes((walk.size for walk in resolved), max_manifest_bytes)
    found: dict[ArtifactKey, FileContent] = {}

    def hash_some(some: list[tuple[Offer, Walk]], _: Place) -> None:
        for offer, walk in some:
            found[offer.key] = _hashed(offer, walk.at, max_blob_bytes)

    pairs = list(zip(in_place, resolved, strict=True))
    await places.in_each([(walk.at, (offer, walk)) for offer, walk in pairs], hash_some)
    kept: dict[ArtifactKey, str] = {}
    for number, (offer, walk) in enumerate(pairs):
        await take_turns(number)
        kept[offer.key] = path = places.roots.kept(walk)
        learn(path, found[offer.key])
    return tuple(
        _artifact(offer, found[offer.key], kept[offer.key]) if offer.key in kept else _copied(offer)
        for offer in offers
    )


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
        FileUnreadable: a file cannot be read.
        Busy: a file cannot be looked at now, or changes all the time; that says nothing about it.
        ChecksumMismatch: a file is not what the offer says.
        TooLarge: a file, or all of them together, exceed the limits.
    """
    walks = {offer.key: roots.follow(offer.path) for offer in offers if offer.path is not None}
    check_manifest_bytes((walk.size for walk in walks.values()), max_manifest_bytes)
    artifacts = []
    for offer in offers:
        walk = walks.get(offer.key)
        if walk is None:
            artifacts.append(_copied(offer))
        else:
            found = _hashed(offer, walk.at, max_blob_bytes)
            artifacts.append(_artifact(offer, found, roots.kept(walk)))
    return tuple(artifacts)


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


def _hashed(offer: Offer, path: str, max_blob_bytes: int) -> FileContent:
    found = hash_file(path, max_bytes=max_blob_bytes, expected=offer.checksum)
    step()
    if offer.checksum not in (None, found.checksum) or offer.size not in (None, found.size):
        raise ChecksumMismatch(
            f"The file of {offer.key} has {found.size} bytes and {found.checksum}, which is not "
            "what was given. Hash it again and repeat the request."
        )
    return found


def _artifact(offer: Offer, found: FileContent, kept: str) -> Artifact:
    return Artifact(offer.key, found.checksum, found.size, kept, found.identity)
