"""Attach a model directory: harvest its files, hash them, register them as one manifest.

The manifest is offered first; the service answers which content it lacks, and only that is
uploaded before the manifest is offered again. Nothing is registered until everything is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from registry.client.client import RegistryClient
from registry.client.lease_terms import LeaseTerms
from registry.client.model_files import LeftOut, ModelFile, broken, harvest, reason_of
from registry.core.hashing import FileContent, hash_file, is_changing
from registry.core.model_revisions import OnConflict, revision_slug
from registry.core.progress import OnProgress, Tally
from registry.core.records import ArtifactKey, Offer, Owner, Registered
from registry.core.regular import shown_path
from registry.core.text import shown
from registry.discovery.cards import is_typed
from registry.errors import (
    Busy,
    ContentMissing,
    FileUnreadable,
    ServiceUnreachable,
    TooLarge,
)

FILE_MAX_BYTES = 1 << 30
"""No service takes a file this large; do not read one to find out."""

READ_TRIES = 2
"""A file that changes while it is read is read once more."""

UPLOAD_ROUNDS = 3
"""How often content may turn out to be missing: others may release it between two offers."""


log = logging.getLogger("registry.client")


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A model file and what it held when it was read."""

    file: ModelFile
    content: FileContent


@dataclass(frozen=True, slots=True)
class Attached:
    """What the service registered, of which manifest, and the checksums that had to be uploaded
    for it."""

    registered: Registered
    uploaded: tuple[str, ...]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files that an owner is going to hold under a model's slug, as they were read.

    `revision` is the slug under which the registry has them, if they are a revision of the model.
    """

    owner: Owner
    slug: str
    files: tuple[HashedFile, ...]
    in_place: bool = False
    left_out: tuple[LeftOut, ...] = ()
    revision: str | None = None

    def key(self, file: HashedFile) -> ArtifactKey:
        """What a file is offered under."""
        return ArtifactKey(self.slug, self.owner.suffix, file.file.filename)

    def served_key(self, file: HashedFile) -> ArtifactKey:
        """What a file is registered under."""
        return replace(self.key(file), slug=self.revision or self.slug)

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
    directory: str | os.PathLike[str],
    *,
    in_place: bool = False,
    exclude: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The metadata files of a model directory, hashed.

    A file without a typed place in a card that cannot be read or served is left out, with a
    warning in the log.

    Args:
        exclude: patterns of names that are not looked at, like `*.distcp`.

    Raises:
        FileUnreadable: there is nothing to register, or a file with a typed place is broken.
        TooLarge: a file with a typed place has more than a gigabyte.
        Busy: a file cannot be looked at now.
    """
    directory = Path(directory)
    found = harvest(directory, exclude=exclude)
    hashed, unread = hash_files(found.files, on_progress)
    if not hashed:
        odd = "; ".join(f"{shown(each.filename)} {each.why}" for each in unread[:3])
        raise FileUnreadable(f"{shown_path(directory)} has no file that can be registered: {odd}.")
    left_out = (*found.left_out, *unread)
    _warn(left_out)
    return Manifest(owner, slug, tuple(hashed), in_place, left_out)


def attach(
    client: RegistryClient,
    owner: Owner,
    slug: str,
    directory: str | os.PathLike[str],
    *,
    in_place: bool = False,
    lease_ttl_s: float | None = None,
    worker_name: str | None = None,
    on_conflict: OnConflict | str = OnConflict.REFUSE,
    exclude: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Attached:
    """Register the metadata files of a model directory under `slug` and the owner's suffix.

    In place, the service reads the files where they are; otherwise it gets copies. Either all of
    them are registered or none. With `on_conflict="revision"` they go beside the files of others
    that are in their way, under another slug: that of the artifacts in the answer.

    Raises:
        RegistryError: as `read_manifest` and `register_what_fits`.
    """
    manifest = read_manifest(
        owner, slug, directory, in_place=in_place, exclude=exclude, on_progress=on_progress
    )
    lease = LeaseTerms(lease_ttl_s, worker_name, OnConflict.of(on_conflict))
    return register_what_fits(client, manifest, lease, on_progress=on_progress)


def register_what_fits(
    client: RegistryClient,
    manifest: Manifest,
    lease: LeaseTerms,
    *,
    on_progress: OnProgress | None = None,
) -> Attached:
    """As `register_manifest`, but a file that is larger than the service takes is left out, with
    a warning in the log, if it has no typed place in a card.

    Raises:
        TooLarge: a file with a typed place is too large, or the manifest is.
        RegistryError: as `register_manifest`.
    """
    while True:
        try:
            return register_manifest(client, manifest, lease, on_progress=on_progress)
        except TooLarge as error:
            smaller = _without_large(manifest, error)
        manifest = smaller


def register_manifest(
    client: RegistryClient,
    manifest: Manifest,
    lease: LeaseTerms,
    *,
    on_progress: OnProgress | None = None,
) -> Attached:
    """Register a manifest, and upload for it what the service lacks.

    Content uploaded for a manifest that is refused is dropped by the service after a while. What
    was registered as a revision before is registered as one again.

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
            manifest.owner,
            offers,
            lease_ttl_s=lease.ttl_s,
            worker_name=lease.worker_name,
            on_conflict=lease.on_conflict,
            as_revision=manifest.revision is not None,
        )
        return Attached(registered, tuple(uploaded), _placed(manifest, registered))

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


def _placed(manifest: Manifest, registered: Registered) -> Manifest:
    """A manifest with the slug under which it was registered."""
    slugs = {each.key.slug for each in registered.artifacts}
    if slugs <= {manifest.slug}:
        return replace(manifest, revision=None)
    files = [(each.file.filename, each.content.checksum) for each in manifest.files]
    revision = revision_slug(manifest.slug, files)
    if slugs != {revision}:
        raise ServiceUnreachable(
            f"What answers is no metadata registry: files of {manifest.slug} were offered to it, "
            f"and it says that it has them under {shown(', '.join(sorted(slugs)))}."
        )
    return replace(manifest, revision=revision)


def hash_files(
    files: Sequence[ModelFile], on_progress: OnProgress | None = None
) -> tuple[list[HashedFile], list[LeftOut]]:
    """Read and hash every file; those that cannot be are named.

    Raises:
        FileUnreadable: one with a typed place is gone, cannot be read, or changes all the time.
        TooLarge: one with a typed place has more than a gigabyte.
        Busy: one cannot be looked at now.
    """
    tally = Tally("Hashing", sum(file.size for file in files), on_progress)
    hashed: list[HashedFile] = []
    left_out: list[LeftOut] = []
    for file in files:
        content = _hash(file)
        if isinstance(content, str):
            left_out.append(LeftOut(file.filename, content))
        else:
            hashed.append(HashedFile(file, content))
        tally.finish(file.size)
    return hashed, left_out


def _hash(file: ModelFile) -> FileContent | str:
    """What a file holds, or why that cannot be said."""
    why = ""
    for _ in range(READ_TRIES):
        try:
            return hash_file(os.path.realpath(file.path), max_bytes=FILE_MAX_BYTES)
        except FileUnreadable as error:
            why = reason_of(error)
        except Busy as error:
            if not is_changing(error):
                raise
            why = "changes while it is read"
        except TooLarge as error:
            why = f"has more than {FILE_MAX_BYTES} bytes"
            if is_typed(file.filename):
                raise TooLarge(
                    f"{shown_path(file.path)} {why}.", max_bytes=FILE_MAX_BYTES
                ) from error
            break
    if is_typed(file.filename):
        raise broken(file.path, why)
    return why


def _without_large(manifest: Manifest, error: TooLarge) -> Manifest:
    """A manifest without the files that are too large for a service."""
    limit = error.max_bytes
    large = [each for each in manifest.files if limit is not None and each.content.size > limit]
    if not large:
        raise error
    for each in large:
        if is_typed(each.file.filename) or len(large) == len(manifest.files):
            raise TooLarge(
                f"{shown_path(each.file.path)} has {each.content.size} bytes; the service takes "
                f"files of at most {limit} bytes (max_blob_bytes).",
                max_bytes=limit,
            ) from error
    why = f"is larger than the service takes ({limit} bytes)"
    left_out = tuple(LeftOut(each.file.filename, why) for each in large)
    _warn(left_out)
    return replace(
        manifest,
        files=tuple(each for each in manifest.files if each not in large),
        left_out=manifest.left_out + left_out,
    )


def _warn(left_out: Sequence[LeftOut]) -> None:
    for each in left_out:
        log.warning("%s is left out: it %s", shown(each.filename), each.why)


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
