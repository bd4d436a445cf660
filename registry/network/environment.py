"""What the environment says of the way to a host: proxies, and whose certificates are believed.

A proxy is never used for this host itself, and certificates are read only when they are needed. A
variable that cannot be used is named in the error.
"""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2

from registry.core.settings_files import read_file
from registry.core.text import shown_url
from registry.errors import SettingsError

AUTHORITIES_MAX_BYTES = 16 << 20
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that a variable names. `url` has no password in it; `auth` has."""

    variable: str
    url: str
    auth: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"the proxy {self.url}, which {self.variable} names"


def is_loopback(host: str) -> bool:
    """Whether a host name or address always means this host."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def find_proxy(url: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy that a URL is asked through, or None: it is asked directly.

    Raises:
        SettingsError: what the variable says cannot be used.
    """
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme.lower()
    if is_loopback(host):
        return None
    for variable in _variables(scheme, environ):
        if environ.get(variable):
            port = parts.port or (443 if scheme == "https" else 80)
            if _is_excepted(host, port, environ):
                return None
            return _proxy_of(variable, environ[variable])
    return None


def _variables(scheme: str, environ: Mapping[str, str]) -> list[str]:
    names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"]
    # A caller of a CGI program sets HTTP_PROXY by sending a header Proxy.
    return [each for each in names if each != "HTTP_PROXY" or "REQUEST_METHOD" not in environ]


def _is_excepted(host: str, port: int, environ: Mapping[str, str]) -> bool:
    """Whether no_proxy lists a host: `*`, a name and all below it, an address, a network; each
    may have a port."""
    listed = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    return any(_fits(each.strip().lower(), host.lower(), port) for each in listed.split(","))


def _fits(pattern: str, host: str, port: int) -> bool:
    pattern = pattern.rpartition("://")[2]
    if pattern in ("", "*"):
        return pattern == "*"
    name, colon, number = pattern.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        pattern = name
    address = _address(host)
    if address is not None:
        try:
            network = ipaddress.ip_network(pattern.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            return False
        return address in network
    domain = pattern.removeprefix("*").removeprefix(".")
    is_it = host == domain and not pattern.startswith("*.")
    return bool(domain) and (is_it or host.endswith("." + domain))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _proxy_of(variable: str, text: str) -> Proxy:
    text = text.strip()
    url = text if "://" in text else f"http://{text}"
    try:
        parsed, port = httpx2.URL(url), urlsplit(url).port
    except (httpx2.InvalidURL, ValueError):
        raise SettingsError(
            f"{variable} is {shown_url(text)!r}, which is no URL of a proxy. Set it right, or put "
            "the host of the service into NO_PROXY."
        ) from None
    if parsed.scheme not in PROXY_SCHEMES or not parsed.host or " " in text:
        raise SettingsError(
            f"{variable} is {shown_url(text)!r}; a proxy must be one of {', '.join(PROXY_SCHEMES)}"
            "://HOST:PORT. Set it right, or put the host of the service into NO_PROXY."
        )
    if parsed.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise SettingsError(
            f"{variable} names the SOCKS proxy {shown_url(text)}, which needs the package socksio. "
            "Install that, or put the host of the service into NO_PROXY."
        )
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    where = f"{parsed.scheme}://{host}" + (f":{port}" if port is not None else "")
    return Proxy(variable, where, find_user(url))


def find_user(url: str) -> tuple[str, str] | None:
    """User and password of a URL, or None: it has none."""
    name, at, _ = urlsplit(url).netloc.rpartition("@")
    user, _, password = name.partition(":")
    return (unquote(user), unquote(password)) if at and name else None


def without_user(url: str) -> str:
    """A URL to ask, without user and password."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def trust(ca_file: str | None, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """What certificates are checked with: the authorities of a file; without, those that
    SSL_CERT_FILE or SSL_CERT_DIR names; without these, the system's.

    Raises:
        SettingsError: they cannot be read.
    """
    file, directory = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if ca_file is not None:
        return _from_file("file of authorities (ca_file, --ca-file)", ca_file)
    if file:
        return _from_file("file of SSL_CERT_FILE", file)
    if directory:
        if not os.path.isdir(directory):
            raise SettingsError(
                f"SSL_CERT_DIR is {directory!r}, which is no directory. Unset it or set it right, "
                "or name a file of authorities with ca_file or --ca-file."
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(capath=directory)
        return context
    return _system_trust()


def _from_file(name: str, path: str) -> ssl.SSLContext:
    try:
        return _read_authorities(name, path, os.stat(path).st_mtime_ns)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise SettingsError(
            f"The {name} is {path!r}, which cannot be used: {reason}. It must be a readable file "
            "of certificates in PEM form."
        ) from None


# Reading authorities takes a while: each file once, and again when it was changed.


@functools.lru_cache(maxsize=8)
def _read_authorities(name: str, path: str, changed_ns: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # OpenSSL itself would wait for a FIFO, and read a device without end.
    content, _ = read_file(Path(path), name, max_bytes=AUTHORITIES_MAX_BYTES)
    context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    return context


@functools.cache
def _system_trust() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)
