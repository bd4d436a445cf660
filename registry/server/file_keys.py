"""What the path of a metadata file names: its key, its Content-Type, its route."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from registry import errors
from registry.core.records import ArtifactKey, Owner

PREFIX = b"/v1/metadata/"
MEDIA_TYPES = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "txt": "text/plain; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "jinja": "text/plain; charset=utf-8",
    "jinja2": "text/plain; charset=utf-8",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "toml": "application/toml",
}
"""Content-Type by extension. What is unknown, or could run in a browser, is octet-stream."""

OCTET_STREAM = "application/octet-stream"
Key = tuple[str, ...]
"""(slug, suffix, filename), or the same behind (namespace, component, endpoint)."""

Path = tuple[Key, str, str]
"""What a raw path names: the key, its Content-Type, and the route."""

ROUTES = {
    3: "/v1/metadata/{slug}/{suffix}/{filename}",
    6: "/v1/metadata/{namespace}/{component}/{endpoint}/{slug}/{suffix}/{filename}",
}
"""The routes by how many segments their keys have."""


def path_of(raw_path: bytes) -> Path:
    """What a raw path names.

    Raises:
        NotRegistered: no key can look like this.
    """
    key = key_of(raw_path)
    return key, media_type(key[-1]), ROUTES[len(key)]


def key_of(raw_path: bytes) -> Key:
    """The key in a raw path: 3 segments, or 6 with the endpoint in front.

    Raises:
        NotRegistered: no key can look like this.
    """
    rest = raw_path[len(PREFIX) :]
    segments = rest.split(b"/")
    if len(segments) not in (3, 6):
        raise errors.NotRegistered(
            "A metadata file is at /v1/metadata/{slug}/{suffix}/{filename}, or with "
            "{namespace}/{component}/{endpoint} in front of the slug."
        )
    try:
        if b"%" in rest:
            segments = [unquote_to_bytes(segment) for segment in segments]
        key = tuple(segment.decode() for segment in segments)
        ArtifactKey(*key[-3:])
        if len(key) > 3:
            Owner(key[0], key[1], key[2], 0)
    except UnicodeDecodeError as error:
        raise errors.NotRegistered("The path is not UTF-8, as every key is.") from error
    except errors.Invalid as error:
        raise errors.NotRegistered(f"Nothing can be registered under this: {error}") from error
    return key


def media_type(filename: str) -> str:
    """The Content-Type of a file by its extension."""
    _, dot, extension = filename.rpartition(".")
    return MEDIA_TYPES.get(extension.lower(), OCTET_STREAM) if dot else OCTET_STREAM
