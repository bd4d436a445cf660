"""One tree of errors. Each class has a stable `code`: in Python, in HTTP, on the command line.

The class docstring is the default message. Messages say what is wrong and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from registry.core.records import ConflictingKey


class RegistryError(Exception):
    """The registry could not do what was asked."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or " ".join((type(self).__doc__ or "").split())
        super().__init__(self.detail)


# What was asked for is not well-formed, not allowed, or too much.


class Invalid(RegistryError):
    """The request is not well-formed."""

    code = "invalid"


class ChecksumMismatch(RegistryError):
    """The bytes do not have the checksum or size that was given. Hash the file again and repeat
    the request."""

    code = "checksum_mismatch"


class FileUnreadable(RegistryError):
    """The file cannot be read by the registry. Check that it exists, is a regular file and is
    readable."""

    code = "file_unreadable"


class PathNotAllowed(RegistryError):
    """The path is not below an artifact root of this registry. Copy the file in, or add an
    artifact root."""

    code = "path_not_allowed"


class TooLarge(RegistryError):
    """The request is larger than this registry accepts."""

    code = "too_large"

    def __init__(self, detail: str | None = None, *, max_bytes: int | None = None) -> None:
        """`max_bytes` is the most that a file may have, if it is a file that is too large."""
        super().__init__(detail)
        self.max_bytes = max_bytes


class UnsupportedMediaType(RegistryError):
    """The request body must be sent with the content type application/json."""

    code = "unsupported_media_type"


class NotFound(RegistryError):
    """There is nothing at this address. See /openapi.json for what there is."""

    code = "not_found"


class MethodNotAllowed(RegistryError):
    """This address does not take this method."""

    code = "method_not_allowed"

    def __init__(self, detail: str | None = None, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.allowed = tuple(allowed)


class PreconditionFailed(RegistryError):
    """The content is not the one that If-Match names. Fetch it again without the condition."""

    code = "precondition_failed"


class RangeNotSatisfiable(RegistryError):
    """The file ends before the first byte of every range asked for. Ask for a range within its
    size."""

    code = "range_not_satisfiable"

    def __init__(self, detail: str | None = None, *, size: int = 0) -> None:
        super().__init__(detail)
        self.size = size


# The caller may not, or the connection was misused.


class Unauthenticated(RegistryError):
    """This call needs an access token. Send one as Authorization: Bearer TOKEN."""

    code = "unauthenticated"

    def __init__(self, detail: str | None = None, *, was_given: bool = False) -> None:
        super().__init__(detail)
        self.was_given = was_given


class ProxyUnauthenticated(RegistryError):
    """This proxy needs an access token. Give it with its address, as in
    HTTP_PROXY=http://user:TOKEN@HOST:8090."""

    code = "proxy_unauthenticated"


class Forbidden(RegistryError):
    """The caller may not do this."""

    code = "forbidden"


class Malformed(RegistryError):
    """What came is not HTTP/1.1 as this service understands it. The connection was closed."""

    code = "malformed"


class RequestTimeout(RegistryError):
    """The request did not come in within its time (body_timeout_s). The connection was closed;
    send the request again, faster."""

    code = "request_timeout"


class HeadersTooLarge(RegistryError):
    """The head of the request is larger than this service takes (max_header_bytes). The
    connection was closed; send fewer or shorter headers."""

    code = "headers_too_large"


# The state of the registry is against it.


class Conflict(RegistryError):
    """Another owner holds the same key with different content; nothing of the request was
    written."""

    code = "conflict"

    def __init__(
        self, detail: str | None = None, *, conflicts: Sequence[ConflictingKey] = ()
    ) -> None:
        super().__init__(detail)
        self.conflicts = tuple(conflicts)


class ContentMissing(RegistryError):
    """Content is not here: upload it with PUT /v1/blobs/{checksum}, then register again; nothing
    was written."""

    code = "content_missing"

    def __init__(self, detail: str | None = None, *, missing: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.missing = tuple(missing)


class LeaseGone(RegistryError):
    """The owner was ended or never registered. Register its artifacts again."""

    code = "lease_gone"


class Superseded(RegistryError):
    """A newer instance with the same worker name has taken this owner's place. Stop using this
    instance id."""

    code = "superseded"


class NotRegistered(RegistryError):
    """No entry has this key."""

    code = "not_registered"


class UnknownOwner(RegistryError):
    """No owner has this identity, and no tombstone of one is left."""

    code = "unknown_owner"


class Unserveable(RegistryError):
    """The entry is registered, but no holder has bytes that match its checksum. The holders must
    put the file back or register again."""

    code = "unserveable"


class UploadsPending(RegistryError):
    """Too much content is uploaded and not registered. Register what was uploaded, or wait until
    its grace period ends."""

    code = "uploads_pending"


# The service itself cannot, for now or until somebody acts.


class Busy(RegistryError):
    """The registry is busy; nothing was written. Try again shortly."""

    code = "busy"

    def __init__(self, detail: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class StorageUnavailable(RegistryError):
    """The database cannot be used; nothing was written. See /health and the log for the cause."""

    code = "storage_unavailable"


class OriginUnavailable(RegistryError):
    """A file that is not held here cannot be had from the worker that its card names."""

    code = "origin_unavailable"


class Internal(RegistryError):
    """The registry failed in a way it should not have. The log has the details under this
    request id."""

    code = "internal"


class Refused(RegistryError):
    """What was asked for would destroy something, or is not allowed; nothing was changed."""

    code = "refused"


class DatabaseRefused(RegistryError):
    """The database is not one that this program can open."""

    code = "database_refused"


class SettingsError(RegistryError):
    """A setting is wrong."""

    code = "settings"


class WrongProcess(RegistryError):
    """What is used was made in another process, of which this one was forked. Make another here."""

    code = "wrong_process"


class Usage(RegistryError):
    """The command line is not one that this program understands. See --help."""

    code = "usage"


class SystemFailure(RegistryError):
    """The operating system did not do what a command needs."""

    code = "system"


class ServiceUnreachable(RegistryError):
    """The registry service does not answer. Check that it runs and that --url is right."""

    code = "unreachable"


class DirectoryUnusable(RegistryError):
    """A directory of this machine cannot be used: it cannot be written, is full, or others may
    change what is in it."""

    code = "directory_unusable"


class DiscoveryUnavailable(RegistryError):
    """The discovery store cannot be used. What was asked of it may have happened; ask again."""

    code = "discovery_unavailable"


def error_classes() -> dict[str, type[RegistryError]]:
    """Every class of the tree by its code."""
    found: dict[str, type[RegistryError]] = {}
    pending: list[type[RegistryError]] = [RegistryError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found
