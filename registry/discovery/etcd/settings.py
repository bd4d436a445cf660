"""Where an etcd is and who asks it: by a URL, and by the variables that NVIDIA Dynamo reads.

    etcd://[USER[:PASSWORD]@]HOST[:2379][,HOST...][/PREFIX/]    in plain text
    etcds://...[?ca_file=FILE&cert_file=FILE&key_file=FILE]     with TLS
    etcd:                                                       where ETCD_ENDPOINTS says

What the URL says comes before what a variable says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from registry.core.text import shown, shown_url
from registry.errors import SettingsError

PORT = 2379
ENDPOINTS_MAX = 32
PREFIX_MAX_BYTES = 1024
URL_MAX_CHARACTERS = 8192
DYNAMO_ENDPOINT = f"http://localhost:{PORT}"
"""Where Dynamo looks when ETCD_ENDPOINTS is not set."""

_SCHEMES = {"etcd": "http", "etcds": "https"}
_find_host = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?").fullmatch
_FILES = ("ca_file", "cert_file", "key_file")
_FILE_VARIABLES = ("ETCD_AUTH_CA", "ETCD_AUTH_CLIENT_CERT", "ETCD_AUTH_CLIENT_KEY")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom to believe, and who one is: each the path of a file in PEM form, or what is in it."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """The endpoints, as http or https URLs without a path; what the keys begin with."""

    endpoints: tuple[str, ...]
    prefix: str = ""
    user: tuple[str, str] | None = field(default=None, repr=False)
    tls: TlsFiles = TlsFiles()

    def __str__(self) -> str:
        below = f" below {shown(self.prefix)}" if self.prefix else ""
        return f"etcd at {', '.join(self.endpoints)}{below}"


def is_etcd_url(url: str) -> bool:
    """Whether a URL is meant to name an etcd."""
    return url.partition(":")[0].lower() in _SCHEMES and ":" in url


def read_settings(url: str, environ: Mapping[str, str] = os.environ) -> EtcdSettings:
    """What a URL and the environment say.

    Raises:
        SettingsError: one of them is not well-formed, or something is missing.
    """
    try:
        scheme, _, rest = url.partition(":")
        rest, _, query = rest.partition("?")
        authority, path = _split(rest)
        user_part, _, hosts = authority.rpartition("@")
        fields = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        is_whole = len(url) <= URL_MAX_CHARACTERS and "#" not in url and "@" not in path
        if not is_whole or fields.keys() - set(_FILES) or (authority and not hosts):
            raise ValueError
        scheme = _SCHEMES[scheme.lower()]
        named = tuple(_endpoint(scheme, each) for each in hosts.split(",")) if hosts else ()
        prefix = _prefix_of(path)
        user = _parts_of(user_part)
    except ValueError:
        raise SettingsError(
            f"{shown(shown_url(url))} is not the URL of an etcd; it must look like "
            "etcd://HOST:2379,HOST:2379/PREFIX/, or etcds://... for TLS."
        ) from None
    endpoints = named or _endpoints_of(scheme, environ)
    if len(endpoints) > ENDPOINTS_MAX:
        raise SettingsError(f"An etcd has at most {ENDPOINTS_MAX} endpoints here; name some of it.")
    return EtcdSettings(endpoints, prefix, _user_of(user, environ), _tls_of(fields, environ))


def _split(rest: str) -> tuple[str, str]:
    """Authority and path. `etcd:` and `etcd:/PREFIX/` have no authority."""
    if not rest.startswith("//"):
        if rest and not rest.startswith("/"):
            raise ValueError
        return "", rest
    authority, slash, path = rest[2:].partition("/")
    return authority, slash + path


def _endpoint(scheme: str, text: str) -> str:
    found = _find_host(text)
    port = int(found[2] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError
    return f"{scheme}://{found[1]}:{port}"


def _prefix_of(path: str) -> str:
    prefix = unquote(path[1:], errors="strict")
    if not prefix.isprintable() or len(prefix.encode()) > PREFIX_MAX_BYTES:
        raise ValueError
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _parts_of(user_part: str) -> tuple[str, str | None] | None:
    name, colon, password = user_part.partition(":")
    if not name:
        if colon:
            raise ValueError
        return None
    return unquote(name, errors="strict"), unquote(password, errors="strict") if colon else None


def _endpoints_of(scheme: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What ETCD_ENDPOINTS names. One without a scheme has that of the URL; with etcds://, none may
    be in plain text."""
    text = environ.get("ETCD_ENDPOINTS", "")
    listed = [each.strip() for each in text.split(",") if each.strip()]
    found = []
    for each in listed or [DYNAMO_ENDPOINT.removeprefix("http://")]:
        said, marker, host = each.rpartition("://")
        said = said.lower() if marker else scheme
        try:
            if said not in _SCHEMES.values() or (scheme == "https" and said == "http"):
                raise ValueError
            found.append(_endpoint(said, host.rstrip("/")))
        except ValueError:
            wanted = "https://HOST:2379" if scheme == "https" else "http://HOST:2379"
            raise SettingsError(
                f"ETCD_ENDPOINTS names {shown(shown_url(each))}; it must list endpoints like "
                f"{wanted}, with commas between them."
            ) from None
    return tuple(found)


def _user_of(
    user: tuple[str, str | None] | None, environ: Mapping[str, str]
) -> tuple[str, str] | None:
    name, password = user or (None, None)
    if name is None:
        name = environ.get("ETCD_AUTH_USERNAME") or None
    if password is None:
        password = environ.get("ETCD_AUTH_PASSWORD") or None
    if name is None:
        return None
    if password is None:
        raise SettingsError(
            "The user for etcd has no password: set ETCD_AUTH_PASSWORD, or put it into the URL."
        )
    return name, password


def _tls_of(fields: Mapping[str, str], environ: Mapping[str, str]) -> TlsFiles:
    said = [
        fields.get(name) or environ.get(variable) or None
        for name, variable in zip(_FILES, _FILE_VARIABLES, strict=True)
    ]
    tls = TlsFiles(*said)
    if (tls.cert is None) != (tls.key is None):
        raise SettingsError(
            "A client certificate for etcd needs its key, and a key its certificate: set both "
            "ETCD_AUTH_CLIENT_CERT and ETCD_AUTH_CLIENT_KEY (or cert_file and key_file)."
        )
    return tls
