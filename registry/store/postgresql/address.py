"""The address of a PostgreSQL database: what libpq connects by, and what people may be shown.

Whatever of a URL would not be used is refused. What is left out gets a default that notices within
seconds that a server is gone; what is said counts. A password is in no message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from registry.errors import DatabaseRefused

SCHEMES = ("postgresql+psycopg", "postgresql", "postgres")
FORM = (
    "Use postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with a comma between several HOST:PORT; "
    "options of libpq follow a question mark"
)

APPLICATION_NAME = "metadata-registry"

DEFAULTS: Mapping[str, str] = {
    "application_name": APPLICATION_NAME,
    "client_encoding": "UTF8",
    # A host that does not answer is given up after 2 s, and the next one asked.
    "connect_timeout": "2",
    # One that has gone silent is noticed after 3 s: with data under way, and without.
    "tcp_user_timeout": "3000",
    "keepalives": "1",
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
}

WITH_SEVERAL_HOSTS: Mapping[str, str] = {"target_session_attrs": "read-write"}
"""The one of them that can be written is the primary."""

SECRET = frozenset({"password", "sslpassword", "oauth_client_secret"})


def is_postgresql(url: str) -> bool:
    """Whether a URL is one of PostgreSQL, as far as its scheme tells."""
    return url.lstrip().partition("://")[0].lower() in SCHEMES


def conninfo_of(url: str) -> str:
    """What libpq connects by: the parts of the URL, and our defaults for what it does not say.

    Raises:
        DatabaseRefused: it is no such URL, names no database, or has an option that libpq does
            not know; or PostgreSQL's driver is not installed.
    """
    parts = _parts_of(url)
    if "," in parts.get("host", "") or "," in parts.get("hostaddr", ""):
        parts = {**WITH_SEVERAL_HOSTS, **parts}
    from psycopg.conninfo import make_conninfo

    return make_conninfo("", **{**DEFAULTS, **parts})


def place_of(url: str) -> str:
    """Where the database at a URL is, to be shown: hosts, ports and its name.

    Raises:
        DatabaseRefused: as `conninfo_of`.
    """
    parts = _parts_of(url)
    hosts = parts.get("host") or parts.get("hostaddr") or "localhost"
    ports = parts.get("port", "").split(",")
    names = hosts.split(",")
    if len(ports) != len(names):
        ports *= len(names)  # One port is that of all hosts.
    shown = [
        (f"[{name}]" if ":" in name else name) + (f":{port}" if port else "")
        for name, port in zip(names, ports, strict=False)
    ]
    return f"postgresql://{','.join(shown)}/{parts.get('dbname', '')}"


def _parts_of(url: str) -> dict[str, str]:
    """The options of libpq that a URL gives."""
    require_driver()
    from psycopg.conninfo import conninfo_to_dict

    scheme, separator, rest = url.partition("://")
    _check_characters(url, url)
    if not separator or scheme.lower() not in SCHEMES:
        raise DatabaseRefused(f"{_shown(url)!r} is no URL of PostgreSQL. {FORM}.")
    if "#" in rest:
        raise DatabaseRefused(
            f"{_shown(url)} has a #, and no fragment is used; within a password it is written %23."
        )
    base, _, query = rest.partition("?")
    given = dict(_options_of(url, query))
    authority, _, path = base.partition("/")
    try:
        # libpq would take a part of an odd password for a host, a port or the database.
        if authority.count("@") > 1 or "@" in path:
            raise ValueError
        parts = conninfo_to_dict(f"postgresql://{base}")
        if not re.fullmatch("[0-9,]*", str(parts.get("port") or "")):
            raise ValueError
    except Exception:  # Its message may show the password.
        raise DatabaseRefused(
            f"{_shown(url)} cannot be read: characters like @ : / % in a name or a password are "
            f"written %40 %3A %2F %25. {FORM}."
        ) from None
    merged = {name: str(value) for name, value in parts.items() if value is not None} | given
    if "dbname" not in merged and "service" not in merged:
        raise DatabaseRefused(f"{_shown(url)} names no database. {FORM}.")
    for value in merged.values():
        _check_characters(value, url)
    return merged


def _options_of(url: str, query: str) -> Iterator[tuple[str, str]]:
    """What stands behind the question mark: `host` may be there several times, with a port."""
    from psycopg.pq import Conninfo

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    hosts: list[str] = []
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        name, value = unquote(name), unquote(value)
        if name not in known:
            raise DatabaseRefused(f"libpq has no option {name!r}. {FORM}.")
        if name == "host":
            hosts.append(value)
        elif name == "dbname" and ("=" in value or "://" in value):
            raise DatabaseRefused(f"{_shown(url)} has another address as its dbname. {FORM}.")
        else:
            yield name, value
    if len(hosts) == 1 and not _port_of(hosts[0])[1]:
        yield "host", hosts[0]
    elif hosts:
        pairs = list(map(_port_of, hosts))
        yield "host", ",".join(host for host, _ in pairs)
        yield "port", ",".join(port for _, port in pairs)


def _port_of(host: str) -> tuple[str, str]:
    """A host and its port, which may be missing: `a:5432`, `[::1]:5432`, `/run/postgresql`."""
    found = re.fullmatch(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:/,]*)):(?P<port>[0-9]+)", host)
    if found is None:
        return re.sub(r"^\[(.*)\]$", r"\1", host), ""
    return found["six"] or found["name"] or "", found["port"]


def _check_characters(text: str, url: str) -> None:
    if any(ord(each) < 32 or ord(each) == 127 for each in text) or url != url.strip():
        raise DatabaseRefused(
            f"The database URL {_shown(url)!r} has a control character, or a space at its end. "
            "Remove it."
        )


def _shown(url: str) -> str:
    """A URL of which nobody knows whether it is one, without what could be a password."""
    shown = re.sub(r"^([\w+]*:?/*).*@", r"\1***@", url, flags=re.DOTALL)
    names = "|".join(map(re.escape, SECRET))
    return re.sub(rf"([?&](?:{names})=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


def require_driver() -> None:
    """Raise DatabaseRefused where PostgreSQL's driver is not installed."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise DatabaseRefused(
            "A registry in PostgreSQL needs psycopg, which is not installed here: install "
            f"'metadata-registry[postgres]'. ({error})"
        ) from error
