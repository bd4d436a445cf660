"""What the registry speaks of: frozen records that check themselves.

A record that exists is well-formed; a bad field raises `errors.Invalid` and names the field, what
it was and what is allowed. Times are UTC in integer milliseconds, sizes are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from registry.errors import Invalid

BASE_SUFFIX = "_base"
INSTANCE_ID_MAX = 2**64 - 1
LEASE_MIN_MS = 1_000
LEASE_MAX_MS = 7 * 24 * 3600 * 1000
FILENAME_MAX_BYTES = 255
COUNT_MAX = 2**63 - 1
PATH_MAX = 4096
FAR_S = 10**12

NAME_PATTERN = (
    "(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"
    r"|\.[A-Za-z0-9_-][A-Za-z0-9._-]{0,253}|\.\.[A-Za-z0-9._-]{1,253})"
)
"""1 to 255 of these characters, and neither `.` nor `..`."""
SLUG_PATTERN = "[a-z0-9][a-z0-9_-]{0,254}"
CHECKSUM_PATTERN = "blake3:[0-9a-f]{64}"

_is_name = re.compile(NAME_PATTERN).fullmatch
_is_slug = re.compile(SLUG_PATTERN).fullmatch
_is_filename = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}").fullmatch
_is_checksum = re.compile(CHECKSUM_PATTERN).fullmatch
_no_slug_character = re.compile(r"[^a-z0-9_-]")
_is_decimal = re.compile(r"0|[1-9][0-9]{0,19}").fullmatch


class OwnerState(StrEnum):
    """The life of an owner. The last three are ends: a tombstone that holds nothing."""

    ACTIVE = "active"
    DRAINING = "draining"
    DETACHED = "detached"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"

    @property
    def ended(self) -> bool:
        return self in (OwnerState.DETACHED, OwnerState.EXPIRED, OwnerState.SUPERSEDED)


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
        check_name("namespace", self.namespace)
        check_name("component", self.component)
        check_name("endpoint", self.endpoint)
        number = self.instance_id
        if type(number) is not int or not 0 <= number <= INSTANCE_ID_MAX:
            raise Invalid(
                f"instance_id is {number!r}; it must be a whole number from 0 to {INSTANCE_ID_MAX}."
            )
        if self.lora_slug is not None:
            check_slug("lora_slug", self.lora_slug)

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

    Raises:
        Invalid: a key is named twice, or the lease or the worker name is out of bounds.
    """

    owner: Owner
    artifacts: tuple[Artifact, ...]
    lease_ttl_ms: int | None = None
    worker_name: str | None = None
    request_id: str | None = None
    actor: str | None = None

    def __post_init__(self) -> None:
        check_lease(self.lease_ttl_ms)
        if self.worker_name is not None:
            check_name("worker_name", self.worker_name)
        check_distinct([artifact.key for artifact in self.artifacts])


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
    """An owner that was heard of: its lease, if it has one, and how many refs it holds."""

    owner: Owner
    lease: Lease | None
    refs: int


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


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry with its content and how many owners hold it."""

    id: int
    key: ArtifactKey
    checksum: str
    size: int
    generation: int
    created_at: int
    updated_at: int
    holders: int


@dataclass(frozen=True, slots=True)
class HeldEntry:
    """An entry in the list of what an owner holds."""

    key: ArtifactKey
    checksum: str
    size: int


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """An owner as the registry knows it. `refs` counts what it holds."""

    owner: Owner
    state: OwnerState
    worker_name: str | None
    lease: Lease | None
    registered_at: int
    renewed_at: int
    drain_deadline_at: int | None
    ended_at: int | None
    end_reason: str | None
    refs: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model (slug, suffix) with its entries together.

    `holders` counts owners of any of them. It is serveable when every entry has a holder whose
    bytes were right at the last look.
    """

    slug: str
    suffix: str
    files: int
    bytes: int
    holders: int
    serveable: bool


class EventKind(StrEnum):
    """What an event tells: of an owner, of an owner ref, of an entry, of the service itself."""

    ATTACHED = "attached"
    DRAINED = "drained"
    DETACHED = "detached"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    REGISTERED = "registered"
    REPLACED = "replaced"
    REFUSED = "refused"
    RELEASED = "released"
    DRIFTED = "drifted"
    MISSING = "missing"
    RESTORED = "restored"
    CREATED = "created"
    REMOVED = "removed"
    EXPIRY_PAUSED = "expiry_paused"
    EXPIRY_RESUMED = "expiry_resumed"
    UPGRADED = "upgraded"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal."""

    id: int
    at: int
    kind: str
    owner: Owner | None
    slug: str | None
    suffix: str | None
    filename: str | None
    checksum: str | None
    previous_checksum: str | None
    reason: str | None
    actor: str | None
    request_id: str | None


class EventOrder(StrEnum):
    """Which events come first in a page of the journal."""

    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are asked for; None leaves it open."""

    owner: Owner | None = None
    slug: str | None = None
    kind: EventKind | None = None


@dataclass(frozen=True, slots=True)
class EventPage:
    """A part of the journal. `next` is where the part behind it begins, None at the end.

    `last` is the id of the newest event of the whole journal, 0 if it is empty.
    """

    events: tuple[Event, ...]
    next: int | None
    last: int


class Severity(StrEnum):
    """How bad a finding is. A healthy registry has nothing above a note."""

    NOTE = "note"
    LEAK = "leak"
    FAULT = "fault"
    OUTAGE = "outage"
    CORRUPTION = "corruption"

    @property
    def rank(self) -> int:
        """Its place in the order of the members: 0 for a note."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One leak or fault. `detail` says what is wrong and what is safe to do."""

    kind: str
    severity: Severity
    owner: str | None
    entry: str | None
    since: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an owner holds."""

    owner: str
    refs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """How the registry is, beside what is wrong. Times are None where there is nothing to say."""

    last_sweep_at: int | None
    overdue_owners: int
    oldest_drain_at: int | None
    brake_engaged_at: int | None
    largest_owners: tuple[Footprint, ...]
    entries_by_holders: dict[int, int]
    journal_rows: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Findings, the worst first and at most 1000 of them; `counts` counts all by class."""

    findings: tuple[Finding, ...]
    counts: dict[str, int]
    summary: AuditSummary | None

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, or None: there is none."""
        return self.findings[0].severity if self.findings else None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the registry answers for a key as it does. `entry` is None when nobody holds it."""

    entry: Entry | None
    holders: tuple[Holder, ...]
    events: tuple[Event, ...]


def parse_instance_id(value: int | str) -> int:
    """The number that an integer or a canonical decimal string stands for.

    Raises:
        Invalid: it is neither, or not from 0 to 2^64-1.
    """
    if isinstance(value, str) and _is_decimal(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= INSTANCE_ID_MAX:
        raise Invalid(
            f"instance_id is {shown(value)}; it must be a whole number from 0 to "
            f"{INSTANCE_ID_MAX}, written without sign or leading zeros."
        )
    return value


def check_suffix(value: str) -> None:
    """Raise Invalid unless `value` is `_base` or a LoRA's slug."""
    if value != BASE_SUFFIX:
        check_slug("suffix", value)


def check_slug(field: str, value: str) -> None:
    """Raise Invalid unless `value` is a slug."""
    if not _is_slug(value):
        raise Invalid(
            f"{field} is {shown(value)}; it must be 1 to 255 of a-z, 0-9, '_' and '-', "
            f"the first a letter or digit.{_slug_of(value)}"
        )


def slug_text(name: str) -> str:
    """What a name's characters make of a slug; perhaps nothing, or too long for one."""
    return _no_slug_character.sub("_", name.lower()).lstrip("_")


def _slug_of(value: str) -> str:
    """A hint for who gave a model's name instead of its slug."""
    slug = slug_text(value) if isinstance(value, str) else ""
    return f" The slug of a model of this name is {slug}." if _is_slug(slug) else ""


def check_checksum(value: str) -> None:
    """Raise Invalid unless `value` is a checksum."""
    if not _is_checksum(value):
        raise Invalid(
            f"checksum is {shown(value)}; it must be 'blake3:' and 64 lowercase hex digits."
        )


def check_size(value: int) -> None:
    """Raise Invalid unless `value` can be a number of bytes."""
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise Invalid(f"size is {shown(value)}; it must be a whole number, and not negative.")


def milliseconds(field: str, seconds: float) -> int:
    """Seconds as whole milliseconds.

    Raises:
        Invalid: it is not a number, or has no end.
    """
    if not isinstance(seconds, int | float) or not -FAR_S < seconds < FAR_S:
        raise Invalid(f"{field} is {shown(seconds)}; it must be a number of seconds.")
    return round(seconds * 1000)


def check_lease(ttl_ms: int | None) -> None:
    """Raise Invalid unless the lease is within its limits. None is no lease."""
    if ttl_ms is not None and not LEASE_MIN_MS <= ttl_ms <= LEASE_MAX_MS:
        raise Invalid(
            f"The lease is {ttl_ms / 1000:g} s; it must be {LEASE_MIN_MS // 1000} s to "
            f"{LEASE_MAX_MS // 1000} s, or null for none."
        )


def check_drain(deadline_ms: int) -> None:
    """Raise Invalid unless a drain deadline is within the limits of a lease."""
    if not LEASE_MIN_MS <= deadline_ms <= LEASE_MAX_MS:
        raise Invalid(
            f"The deadline is {deadline_ms / 1000:g} s; it must be {LEASE_MIN_MS // 1000} s to "
            f"{LEASE_MAX_MS // 1000} s."
        )


def check_distinct(keys: list[ArtifactKey]) -> None:
    """Raise Invalid if a key is named twice in one request (S4)."""
    if len(set(keys)) == len(keys):
        return
    seen: set[ArtifactKey] = set()
    for key in keys:
        if key in seen:
            raise Invalid(f"{key} is named twice in one request; name every key once.")
        seen.add(key)


def check_name(field: str, value: str) -> None:
    """Raise Invalid unless `value` is the name of a part of an owner, or of a worker."""
    if not _is_name(value):
        raise Invalid(
            f"{field} is {shown(value)}; it must be 1 to 255 letters, digits, '.', '_' and '-', "
            "and not '.' or '..'."
        )


def check_filename(value: str) -> None:
    """Raise Invalid unless `value` is the name of a file, and nothing but its name."""
    if (
        not _is_filename(value)
        or value in (".", "..")
        or (not value.isascii() and len(value.encode()) > FILENAME_MAX_BYTES)
    ):
        raise Invalid(
            f"filename is {shown(value)}; it must be one path segment of at most "
            f"{FILENAME_MAX_BYTES} bytes of UTF-8 without '/', '\\' or control characters."
        )


def shown(value: object) -> str:
    """A value from outside, fit for a message: printable, quoted and short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def shown_url(text: str) -> str:
    """A URL fit for a message: without user and password, whatever characters these have."""
    scheme, marker, rest = text.partition("://")
    if not marker or "@" in scheme:
        scheme, marker, rest = "", "", text
    has_authority = not rest.startswith("/") and (marker or not text.startswith("file:"))
    return scheme + marker + (rest.rpartition("@")[2] if has_authority else rest)


_has_unseen = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
).search
"""Characters that count as printable and show nothing."""


def printable(text: str) -> str:
    """The text with all spelled out that would not be seen as what it is.

    Those are control characters (C0, C1), marks of direction, what has no width, other spaces than
    the usual one, and half surrogates. What came from elsewhere then cannot move the cursor, colour
    the terminal, break a line or hide a part of itself.
    """
    if is_plain(text):
        return text
    return "".join(c if is_plain(c) else ascii(c)[1:-1] for c in text)


def is_plain(text: str) -> bool:
    """Whether every character of a text is seen as what it is."""
    return text.isprintable() and (text.isascii() or not _has_unseen(text))
