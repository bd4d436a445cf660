"""What every field must be: limits, patterns and checks, each with a message of its own."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache

from registry.core.text import shown
from registry.errors import Invalid

BASE_SUFFIX = "_base"
INSTANCE_ID_MAX = 2**64 - 1
LEASE_MIN_MS = 1_000
LEASE_MAX_MS = 7 * 24 * 3600 * 1000
FILENAME_MAX_BYTES = 255
COUNT_MAX = 2**63 - 1
PATH_MAX = 4096
PATH_COMPONENTS_MAX = 255
FAR_S = 10**12
NAME_MAX = 255
NAME_PATTERN = (
    "(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"
    r"|\.[A-Za-z0-9_-][A-Za-z0-9._-]{0,253}|\.\.[A-Za-z0-9._-]{1,253})"
)
"""1 to 255 of these characters, and neither `.` nor `..`."""

SLUG_MAX = 255
SLUG_PATTERN = f"[a-z0-9][a-z0-9_-]{{0,{SLUG_MAX - 1}}}"
REQUEST_ID_MAX = 128
REQUEST_ID_PATTERN = f"[\\x21-\\x7e]{{1,{REQUEST_ID_MAX}}}"
CHECKSUM_PATTERN = "blake3:[0-9a-f]{64}"
_name_match = re.compile(NAME_PATTERN).fullmatch
_is_slug = re.compile(SLUG_PATTERN).fullmatch
_is_filename = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}").fullmatch
_is_request_id = re.compile(REQUEST_ID_PATTERN).fullmatch
_is_checksum = re.compile(CHECKSUM_PATTERN).fullmatch
_no_slug_character = re.compile(r"[^a-z0-9_-]")
_is_decimal = re.compile(r"0|[1-9][0-9]{0,19}").fullmatch


@lru_cache(maxsize=1024)
def _is_short_name(value: str) -> bool:
    return _name_match(value) is not None


def _is_name(value: str) -> bool:
    """A fleet has few names, and each call has three of them: they are remembered. What is too long
    to be one is not."""
    return len(value) <= NAME_MAX and _is_short_name(value)


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


def check_request_id(value: str) -> None:
    """Raise Invalid unless `value` can be the id of a request."""
    if not _is_request_id(value):
        raise Invalid(
            f"request_id is {shown(value)}; it must be 1 to {REQUEST_ID_MAX} visible characters of "
            "ASCII, as the X-Request-Id of an answer is."
        )


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


def check_distinct(keys: Sequence[Hashable]) -> None:
    """Raise Invalid if a key is named twice in one request (S4)."""
    if len(set(keys)) == len(keys):
        return
    seen: set[Hashable] = set()
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


def check_owner_names(namespace: str, component: str, endpoint: str, lora_slug: str | None) -> None:
    """Raise Invalid unless these are the names of an owner."""
    if not (_is_name(namespace) and _is_name(component) and _is_name(endpoint)):
        check_name("namespace", namespace)
        check_name("component", component)
        check_name("endpoint", endpoint)
    if lora_slug is not None and not _is_slug(lora_slug):
        check_slug("lora_slug", lora_slug)


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
