"""How the calls of the files are described. They are answered in front of the routes."""

from __future__ import annotations

from registry.errors import (
    NotRegistered,
    PreconditionFailed,
    RangeNotSatisfiable,
    Unserveable,
)
from registry.server.file_keys import MEDIA_TYPES, OCTET_STREAM
from registry.server.openapi.spec import (
    STORAGE,
    Parameter,
    Problems,
    RequestSpec,
    ResponseSpec,
)

FILE_TYPES = (*sorted({*MEDIA_TYPES.values()}), OCTET_STREAM)
CONDITIONS = (
    Parameter("If-None-Match", str, "Answer 304 if the ETag is one of these.", place="header"),
    Parameter("If-Match", str, "Answer 412 unless the ETag is one of these.", place="header"),
)
RANGES = (
    Parameter("Range", str, "One range of bytes, or up to 16.", place="header"),
    Parameter("If-Range", str, "Heed Range only if this is the ETag.", place="header"),
)
FILE_HEADERS = ("ETag", "Accept-Ranges", "Cache-Control")
FILE = {
    200: ResponseSpec("The bytes.", media_types=FILE_TYPES, headers=FILE_HEADERS),
    304: ResponseSpec("They are what If-None-Match names.", headers=("ETag", "Cache-Control")),
}
FILE_PARTS = {
    206: ResponseSpec(
        "The ranges asked for.",
        media_types=(*FILE_TYPES, "multipart/byteranges"),
        headers=FILE_HEADERS,
    )
}
FILE_PROBLEMS: Problems = (NotRegistered, PreconditionFailed, Unserveable, *STORAGE)


def _calls_at(path: str, title: str, says: str, group: str) -> tuple[RequestSpec, RequestSpec]:
    return (
        RequestSpec(
            "GET",
            path,
            None,
            title,
            group,
            FILE | FILE_PARTS,
            (*FILE_PROBLEMS, RangeNotSatisfiable),
            says,
            (*CONDITIONS, *RANGES),
        ),
        RequestSpec(
            "HEAD",
            path,
            None,
            f"{title}: only the headers",
            group,
            FILE,
            FILE_PROBLEMS,
            parameters=CONDITIONS,
        ),
    )


def calls(group: str) -> tuple[RequestSpec, ...]:
    """The calls of the files, for the table."""
    return (
        *_calls_at(
            "/v1/metadata/{slug}/{suffix}/{filename}",
            "Read a file",
            "The bytes always hash to the checksum in the ETag. If the holder that is tried first "
            "does not have them any more, another one's are sent; if none has, the answer is 503.",
            group,
        ),
        *_calls_at(
            "/v1/metadata/{namespace}/{component}/{endpoint}/{slug}/{suffix}/{filename}",
            "Read a file that an endpoint holds",
            "As without the endpoint, if an owner of that endpoint holds the file.",
            group,
        ),
    )
