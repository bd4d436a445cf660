"""Where files are on the service."""

from __future__ import annotations

import re
from urllib.parse import quote

from registry.core.records import ArtifactKey


def metadata_path(key: ArtifactKey) -> str:
    """The path of an entry's bytes on the service, percent-encoded."""
    filename = key.filename
    if not _needs_no_quotes(filename):
        filename = quote(filename, safe="")
    return f"/v1/metadata/{key.slug}/{key.suffix}/{filename}"


_needs_no_quotes = re.compile(r"[A-Za-z0-9._~-]+").fullmatch
