"""What the registry speaks of: frozen records that check themselves.

A record that exists is well-formed; a bad field raises `errors.Invalid` and names the field, what
it was and what is allowed. Times are UTC in integer milliseconds, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from registry.core.checks import (
    BASE_SUFFIX,
    INSTANCE_ID_MAX,
    PATH_COMPONENTS_MAX,
    PATH_MAX,
    check_checksum,
    check_distinct,
    check_filename,
    check_lease,
    check_name,
    check_owner_names,
    check_slug,
    check_suffix,
    parse_instance_id,
)
from registry.core.model_revisions import OnConflict, check_one_slug
from registry.core.text import shown
from registry.errors import Invalid


class OwnerState(StrEnum):
    """The life of an owner. The last three are ends: a tombstone that holds nothing."""

    ACTIVE = "active"
    DRAINING = "draining"
    DETACHED = "detached"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({OwnerState.DETACHED, OwnerState.EXPIRED, OwnerState.SUPERSEDED})


class Outcome(StrEnum):
    """What registering did to one entry."""

    CREATED = "created"
    SHARED = "shared"
    UNCHANGED = "unchanged"
    REPLACED = "replaced"


class Source(StrEnum):
    """Where the bytes of an owner ref are: a file of the owner's, or the registry's own copy."""

    IN_PLACE = "in_place"
    COPIED = "copied"


class RefStatus(StrEnum):
    """What the last look at an owner ref's bytes found. A copy is always OK."""

    OK = "ok"
    DRIFTED = "drifted"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Who holds entries: one endpoint of one instance, for its base model or for one LoRA (S6).

    Raises:
        Invalid: a field is not well-formed.
    """

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    lora_slug: str | None = None

    def __post_init__(self) -> None:
        check_owner_names(self.namespace, self.component, self.endpoint, self.lora_slug)
        number = self.instance_id
        if type(number) is not int or not 0 <= number <= INSTANCE_ID_MAX:
            raise Invalid(
                f"instance_id is {number!r}; it must be a whole number from 0 to {INSTANCE_ID_MAX}."
            )

    @property
    def suffix(self) -> str:
        """`_base` for the base model, else the LoRA's slug."""
        return self.lora_slug or BASE_SUFFIX

    def __str__(self) -> str:
        """`namespace/component/endpoint/instance_id/suffix`, as on the command line and in URLs."""
        return f"{self.namespace}/{self.component}/{self.endpoint}/{self.instance_id}/{self.suffix}"

    @classmethod
    def of(cls, value: Owner | str) -> Owner:
        """An owner, or the one that its text names.

        Raises:
            Invalid: the text is not that of an owner.
            TypeError: it is neither.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, Owner):
            raise TypeError(
                "An owner is an Owner, or the text namespace/component/endpoint/instance_id/suffix,"
                f" not {type(value).__name__}."
            )
        return value

    @classmethod
    def parse(cls, text: str) -> Owner:
        """The owner that `str(owner)` wrote.

        Raises:
            Invalid: the text has not five parts, or a part is not well-formed.
        """
        parts = text.split("/")
        if len(parts) != 5:
            raise Invalid(
                f"An owner is namespace/component/endpoint/instance_id/suffix, not {shown(text)}."
            )
        namespace, component, endpoint, instance_id, suffix = parts
        lora_slug = None if suffix == BASE_SUFFIX else suffix
        return cls(namespace, component, endpoint, parse_instance_id(instance_id), lora_slug)


@dataclass(frozen=True, slots=True, order=True)
class ArtifactKey:
    """The name of an entry: model slug, suffix (`_base` or a LoRA's slug) and file name.

    Raises:
        Invalid: a field is not well-formed.
    """

    slug: str
    suffix: str
    filename: str

    def __post_init__(self) -> None:
        check_slug("slug", self.slug)
        check_suffix(self.suffix)
        check_filename(self.filename)

    def __str__(self) -> str:
        return f"{self.slug}/{self.suffix}/{self.filename}"

    @classmethod
    def of(cls, value: ArtifactKey | str) -> ArtifactKey:
        """A key, or the one that its text names.

        Raises:
            Invalid: the text is not that of a key.
            TypeError: it is neither.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, ArtifactKey):
            raise TypeError(
                "A key is an ArtifactKey, or the text slug/suffix/filename, not "
                f"{type(value).__name__}."
            )
        return value

    @classmethod
    def parse(cls, text: str) -> ArtifactKey:
        """The key that `str(key)` wrote.

        Raises:
            Invalid: the text has not three parts, or a part is not well-formed.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise Invalid(f"An artifact is SLUG/SUFFIX/FILENAME, not {shown(text)}.")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class Offer:
    """One line of a manifest as it was asked for.

    With `path` the file is held in place, and `checksum` and `size` are what it is expected to be;
    without, `checksum` names content that the registry holds a copy of.

    Raises:
        Invalid: neither path nor checksum is given, or a field is not well-formed.
    """

    key: ArtifactKey
    path: str | None = None
    checksum: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.checksum is not None:
            check_checksum(self.checksum)
        elif self.path is None:
            raise Invalid(f"{self.key} has neither a path nor a checksum; give one of them.")
        if self.size is not None and self.size < 0:
            raise Invalid(f"size of {self.key} is {self.size}; it must not be negative.")
        if self.path is not None and (
            "\0" in self.path or not self.path or len(self.path) > PATH_MAX
        ):
            raise Invalid(f"path of {self.key} must have 1 to 4096 characters and no NUL.")
        components = 0 if self.path is None else self.path.count("/")
        if components > PATH_COMPONENTS_MAX:
            raise Invalid(
                f"path of {self.key} has {components} components; at most {PATH_COMPONENTS_MAX} "
                "are taken. Give the file a shorter path."
            )


@dataclass(frozen=True, slots=True)
class Artifact:
    """One line of a manifest, ready to be written: its content is known, its file was hashed.

    `size` is None for a copy whose size only the registry knows. `file_identity` is None for a
    copy, and for a file too young for its identity to be trusted (S12).
    """

    key: ArtifactKey
    checksum: str
    size: int | None = None
    path: str | None = None
    file_identity: str | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """A manifest: what an owner asks to hold, as one transaction (S4).

    With `as_revision` it goes under the slug of a revision, also where nothing is in the way (S17).

    Raises:
        Invalid: a key is named twice, the lease or the worker name is out of bounds, or what may
            become a revision is not of one slug.
    """

    owner: Owner
    artifacts: tuple[Artifact, ...]
    lease_ttl_ms: int | None = None
    worker_name: str | None = None
    request_id: str | None = None
    actor: str | None = None
    on_conflict: OnConflict = OnConflict.REFUSE
    as_revision: bool = False

    def __post_init__(self) -> None:
        check_lease(self.lease_ttl_ms)
        if self.worker_name is not None:
            check_name("worker_name", self.worker_name)
        check_distinct([artifact.key for artifact in self.artifacts])
        if self.may_be_revision:
            check_one_slug(artifact.key.slug for artifact in self.artifacts)

    @property
    def may_be_revision(self) -> bool:
        """Whether it may be registered under the slug of a revision."""
        return self.as_revision or self.on_conflict is OnConflict.REVISION


@dataclass(frozen=True, slots=True)
class Unregistration:
    """An owner to end, with who asked for it."""

    owner: Owner
    request_id: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """A model (slug, suffix) to drop whoever holds it, with who asked for it."""

    slug: str
    suffix: str
    request_id: str | None = None
    actor: str | None = None

    def __post_init__(self) -> None:
        check_slug("slug", self.slug)
        check_suffix(self.suffix)


@dataclass(frozen=True, slots=True)
class Lease:
    """An owner's time to live: its length, and when it lapses unless renewed."""

    ttl_ms: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """An owner that was heard of: its lease, if it has one, how many refs it holds, and of how many
    of them the right bytes were not there at the last look."""

    owner: Owner
    lease: Lease | None
    refs: int
    unserveable: int = 0


@dataclass(frozen=True, slots=True)
class Drained:
    """An owner whose detach is announced, and when the sweeper does it if the owner does not."""

    owner: Owner
    deadline_at: int


@dataclass(frozen=True, slots=True)
class RegisteredArtifact:
    """What became of one line of a manifest."""

    key: ArtifactKey
    checksum: str
    size: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Registered:
    """A manifest that was written."""

    owner: Owner
    lease: Lease | None
    artifacts: tuple[RegisteredArtifact, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry that outlives an owner, and by how many other holders."""

    key: ArtifactKey
    holders: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an unregister did: refs released, entries removed with them, entries that others keep.

    `owner` is None when an administrator removed entries whoever held them.
    """

    owner: Owner | None
    released: int = 0
    removed: tuple[ArtifactKey, ...] = ()
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """One owner of an entry, and where its bytes are."""

    owner: Owner
    state: OwnerState
    lease_expires_at: int | None
    source: Source
    path: str | None
    status: RefStatus
    since: int


@dataclass(frozen=True, slots=True)
class ConflictingKey:
    """A key that another owner holds with other content. At most 20 holders are named."""

    key: ArtifactKey
    registered: str
    offered: str
    holders: tuple[Holder, ...]
