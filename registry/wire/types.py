"""The values of the wire as types: what JSON Schema says of them.

The patterns and bounds here describe; they check nothing. Records check themselves, and their
messages say more than a schema's.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from registry.core.checks import (
    BASE_SUFFIX,
    CHECKSUM_PATTERN,
    INSTANCE_ID_MAX,
    LEASE_MAX_MS,
    LEASE_MIN_MS,
    NAME_PATTERN,
    REQUEST_ID_PATTERN,
    SLUG_PATTERN,
)


def _up_to(number: int) -> str:
    """A pattern of the decimal numbers from 0 to one of several digits, without leading zeros."""
    digits = str(number)
    smaller = []
    for place, digit in enumerate(digits):
        lowest, highest = 1 if place == 0 else 0, int(digit) - 1
        if lowest <= highest:
            one = f"[{lowest}-{highest}]" if lowest < highest else str(lowest)
            rest = len(digits) - place - 1
            smaller.append(digits[:place] + one + (f"[0-9]{{{rest}}}" if rest else ""))
    return "|".join(["0", f"[1-9][0-9]{{0,{len(digits) - 2}}}", *smaller, digits])


INSTANCE_ID_PATTERN = f"^({_up_to(INSTANCE_ID_MAX)})$"
_NAMES = {"pattern": f"^{NAME_PATTERN}$"}
_FILENAMES = {
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[^/\\\u0000-\u001f\u007f-\u009f]+$",
    "not": {"enum": [".", ".."]},
}
_SECONDS = {"minimum": LEASE_MIN_MS / 1000, "maximum": LEASE_MAX_MS / 1000}

Name = Annotated[
    str,
    Meta(
        description="1 to 255 letters, digits, '.', '_' and '-'; not '.' or '..'.",
        extra_json_schema=_NAMES,
    ),
]
RequestId = Annotated[
    str,
    Meta(
        description="The X-Request-Id of an answer.",
        extra_json_schema={"pattern": f"^{REQUEST_ID_PATTERN}$"},
    ),
]
Slug = Annotated[
    str,
    Meta(
        description="1 to 255 of a-z, 0-9, '_' and '-', the first a letter or digit.",
        extra_json_schema={"pattern": f"^{SLUG_PATTERN}$"},
    ),
]
Suffix = Annotated[
    str,
    Meta(
        description=f"`{BASE_SUFFIX}` for the base model, else a LoRA's slug.",
        extra_json_schema={"pattern": f"^({BASE_SUFFIX}|{SLUG_PATTERN})$"},
    ),
]
Filename = Annotated[
    str,
    Meta(
        description="One path segment of at most 255 bytes of UTF-8, without control characters.",
        extra_json_schema=_FILENAMES,
    ),
]
Checksum = Annotated[
    str,
    Meta(
        description="`blake3:` and 64 lowercase hex digits.",
        extra_json_schema={"pattern": f"^{CHECKSUM_PATTERN}$"},
    ),
]
InstanceId = Annotated[
    str,
    Meta(
        description="A number from 0 to 2^64-1, as a string.",
        extra_json_schema={"pattern": INSTANCE_ID_PATTERN},
    ),
]
AnyInstanceId = Annotated[
    int | str,
    Meta(
        description="A number from 0 to 2^64-1, or the same as a string; answers have a string.",
        extra_json_schema={
            "pattern": INSTANCE_ID_PATTERN,
            "minimum": 0,
            "maximum": INSTANCE_ID_MAX,
        },
    ),
]
Path = Annotated[
    str,
    Meta(
        description="The absolute path of a file on the service's host, with at most 255 `/`.",
        extra_json_schema={"minLength": 1, "maxLength": 4096, "pattern": r"^[^\u0000]+$"},
    ),
]
Size = Annotated[int, Meta(description="In bytes.", extra_json_schema={"minimum": 0})]
Count = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
Seconds = Annotated[int | float, Meta(extra_json_schema=_SECONDS)]
Time = Annotated[
    str,
    Meta(
        description="RFC 3339, in UTC, with milliseconds.",
        extra_json_schema={"format": "date-time"},
    ),
]
OwnerText = Annotated[
    str,
    Meta(
        description="An owner: namespace/component/endpoint/instance_id/suffix.",
        extra_json_schema={
            "pattern": f"^({NAME_PATTERN}/){{3}}({_up_to(INSTANCE_ID_MAX)})"
            f"/({BASE_SUFFIX}|{SLUG_PATTERN})$"
        },
    ),
]
Cursor = Annotated[
    str,
    Meta(
        description="What the page before answered as `next`.",
        extra_json_schema={"pattern": "^[0-9]{1,18}$"},
    ),
]
PageLimit = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 1000})]
ModelText = Annotated[
    str,
    Meta(
        description="A model: slug/suffix.",
        extra_json_schema={"pattern": f"^{SLUG_PATTERN}/({BASE_SUFFIX}|{SLUG_PATTERN})$"},
    ),
]

Flag = Annotated[
    str, Meta(description="Yes or no.", extra_json_schema={"enum": ["", "true", "false"]})
]
