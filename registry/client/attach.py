"""Attach a model directory: harvest its files, hash them, register them as one manifest.

The manifest is offered first; the service answers which content it lacks, and only that is
uploaded before the manifest is offered again. Nothing is registered until everything is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.client.client import RegistryClient
from registry.client.model_files import ModelFile, harvest
from registry.core.hashing import FileContent, hash_file
from registry.core.progress import OnProgress, Tally
from registry.core.records import ArtifactKey, Offer, Owner, Registered
from registry.errors import ContentMissing

FILE_MAX_BYTES = 1 << 30
"""No service takes a file this large; do not read one to find out."""

UPLOAD_ROUNDS = 3
"""How often content may turn out to be missing: others may release it between two offers."""


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A model file and what it held when it was read."""

    file: ModelFile
    content: FileContent


@dataclass(frozen=True, slots=True)
class Attached:
    """What the service registered, and the checksums that had to be uploaded for it."""

    registered: Registered
    uploaded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files that an owner is going to hold under a model's slug, as they were read."""

    owner: Owner
    slug: str
    files: tuple[HashedFile, ...]
    in_place: bool = False

    def key(self, file: HashedFile) -> ArtifactKey:
        """What a file is registered under."""
        return ArtifactKey(self.slug, self.owner.suffix, file.file.filename)

    def offers(self) -> list[Offer]:
        """The lines to register."""
        return [
            Offer(
                self.key(each),
                # In place the checksum makes sure that service and caller mean the same file.
                str(each.file.path) if self.in_place else None,
                each.content.checksum,
                each.content.size,
            )
            for each in self.files
        ]


def read_manifest(
    owner: Owner,
    slug: str,
    directory: Path,
    *,
    in_place: bool = False,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The metadata files of a model directory, hashed.

    Raises:
        FileUnreadable: there is nothing to register, or a file cannot be read.
        TooLarge: a file has more than a gigabyte.
    """
    return Manifest(owner, slug, tuple(hash_files(harvest(directory), on_progress)), in_place)


def attach(
    client: RegistryClient,
    owner: Owner,
    slug: str,
    directory: Path,
    *,
    in_place: bool = False,
    lease_ttl_s: float | None = None,
    worker_name: str | None = None,
    on_progress: OnProgress | None = None,
) -> Attached:
    """Register the metadata files of a model directory under `slug` and the owner's suffix.

    In place, the service reads the files where they are; otherwise it gets copies. Either all of
    them are registered or none.

    Raises:
        RegistryError: as `read_manifest` and `register_manifest`.
    """
    manifest = read_manifest(owner, slug, directory, in_place=in_place, on_progress=on_progress)
    return register_manifest(
        client,
        manifest,
        lease_ttl_s=lease_ttl_s,
        worker_name=worker_name,
        on_progress=on_progress,
    )


def register_manifest(
    client: RegistryClient,
    manifest: Manifest,
    *,
    lease_ttl_s: float | None,
    worker_name: str | None = None,
    on_progress: OnProgress | None = None,
) -> Attached:
    """Register a manifest, and upload for it what the service lacks.

    Content uploaded for a manifest that is refused is dropped by the service after a while.

    Raises:
        Conflict: another owner holds a key with other content.
        ChecksumMismatch: a file changed meanwhile, or in place the service sees another file.
        FileUnreadable: a file cannot be read any more.
        RegistryError: the service refused for another reason, or cannot be reached.
    """
    offers = manifest.offers()
    uploaded: dict[str, None] = {}

    def offer() -> Attached:
        registered = client.register(
            manifest.owner, offers, lease_ttl_s=lease_ttl_s, worker_name=worker_name
        )
        return Attached(registered, tuple(uploaded))

    for _ in range(UPLOAD_ROUNDS):
        try:
            return offer()
        except ContentMissing as error:
            wanted = _wanted(manifest.files, error.missing)
            if not wanted:
                raise
        _upload(client, wanted, on_progress)
        uploaded |= dict.fromkeys(each.content.checksum for each in wanted)
    return offer()


def hash_files(
    files: Sequence[ModelFile], on_progress: OnProgress | None = None
) -> list[HashedFile]:
    """Read and hash every file.

    Raises:
        FileUnreadable: one is gone, cannot be read, or changed meanwhile.
        Busy: one cannot be looked at now.
        TooLarge: one has more than a gigabyte.
    """
    tally = Tally("Hashing", sum(file.size for file in files), on_progress)
    hashed = []
    for file in files:
        content = hash_file(os.path.realpath(file.path), max_bytes=FILE_MAX_BYTES)
        tally.finish(content.size)
        hashed.append(HashedFile(file, content))
    return hashed


def _wanted(files: Iterable[HashedFile], missing: Sequence[str]) -> list[HashedFile]:
    """One file for each missing content."""
    by_checksum = {each.content.checksum: each for each in files}
    return [by_checksum[checksum] for checksum in missing if checksum in by_checksum]


def _upload(
    client: RegistryClient, files: Sequence[HashedFile], on_progress: OnProgress | None
) -> None:
    tally = Tally("Uploading", sum(each.content.size for each in files), on_progress)
    for each in files:
        client.upload(each.content.checksum, Path(each.content.path), on_bytes=tally.part)
        tally.finish(each.content.size)
