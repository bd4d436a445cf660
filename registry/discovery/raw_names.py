"""Names below `v1/`, of records of every kind: `v1/BUCKET/KEY`, as NVIDIA Dynamo makes them."""

from __future__ import annotations

import re

from registry.core.text import shown
from registry.errors import Invalid

ROOT = "v1"
NAME_MAX_BYTES = 1024

is_bucket = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


def split_name(name: str) -> tuple[str, str]:
    """Bucket and key of a name: `v1/mdc/n/c/e/7` is `n/c/e/7` in the bucket `mdc`.

    Raises:
        Invalid: it is no such name, is too long, or has characters that cannot be printed.
    """
    root, _, rest = name.partition("/")
    bucket, _, key = rest.partition("/")
    if root != ROOT or not is_bucket(bucket) or not key or not key.isprintable():
        raise Invalid(f"{shown(name)} is not a name below {ROOT}/: {ROOT}/BUCKET/KEY.")
    if len(name.encode()) > NAME_MAX_BYTES:
        raise Invalid(f"{shown(name)} has more than {NAME_MAX_BYTES} bytes.")
    return bucket, key
