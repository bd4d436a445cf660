"""What a URL of PostgreSQL may be: several hosts, options of libpq, our defaults, no password."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from registry.cli.text import without_password
from registry.errors import DatabaseRefused
from registry.store.opening import is_postgresql, place_of
from registry.store.postgresql.address import DEFAULTS, conninfo_of

ADDRESSES = {
    "postgresql://u:pw@db:5433/r": ("db", "5433", "postgresql://db:5433/r"),
    "postgresql+psycopg://db/r": ("db", None, "postgresql://db/r"),
    "postgres://u@db/r": ("db", None, "postgresql://db/r"),
    "postgresql:///r": (None, None, "postgresql://localhost/r"),
    "postgresql://a:1,b:2/r": ("a,b", "1,2", "postgresql://a:1,b:2/r"),
    "postgresql://a,b:2/r": ("a,b", ",2", "postgresql://a,b:2/r"),
    "postgresql+psycopg://u:pw@/r?host=a:1&host=b:2": ("a,b", "1,2", "postgresql://a:1,b:2/r"),
    "postgresql:///r?host=a,b&port=7": ("a,b", "7", "postgresql://a:7,b:7/r"),
    "postgresql:///r?host=/run/postgresql": (
        "/run/postgresql",
        None,
        "postgresql:///run/postgresql/r",
    ),
    "postgresql://[::1]:5433/r": ("::1", "5433", "postgresql://[::1]:5433/r"),
    "postgresql:///r?host=[::1]:1&host=[::2]:2": (
        "::1,::2",
        "1,2",
        "postgresql://[::1]:1,[::2]:2/r",
    ),
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_hosts_and_ports_are_read_and_shown_without_the_password(url: str) -> None:
    host, port, place = ADDRESSES[url]
    assert is_postgresql(url)
    found = conninfo_to_dict(conninfo_of(url))
    assert (found.get("host"), found.get("port"), found["dbname"]) == (host, port, "r")
    assert place_of(url) == place
    several = host is not None and "," in host
    assert found.get("target_session_attrs") == ("read-write" if several else None)
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_what_the_user_says_counts() -> None:
    options = "connect_timeout=9&target_session_attrs=any&application_name=mine&sslmode=verify-full"
    found = conninfo_to_dict(conninfo_of(f"postgresql://a,b/r?{options}"))
    assert found["connect_timeout"] == "9"
    assert found["target_session_attrs"] == "any"
    assert found["application_name"] == "mine"
    assert found["sslmode"] == "verify-full"


def test_a_name_and_a_password_may_have_any_character() -> None:
    found = conninfo_to_dict(conninfo_of("postgresql://u%40x:a%40b%3A%2F%27%20%5C@db/r%20x"))
    assert (found["user"], found["password"], found["dbname"]) == ("u@x", "a@b:/' \\", "r x")


REFUSED = {
    "postgresql://u:secret@db": "names no database",
    "postgresql://u:secret@db/": "names no database",
    "postgresql://u:secret@db/r?timeout=3": "no option 'timeout'",
    "postgresql://u:secret@db/r?password=secret&x=1": "no option 'x'",
    "postgresql://u:secret@db/r#main": "%23",
    "postgresql://u:se/secret@db/r": "cannot be read",
    "postgresql://u:12/secret@db/r": "cannot be read",
    "postgresql://u:p@secret@db/r": "cannot be read",
    "postgresql://u:secret%zz@db/r": "cannot be read",
    "postgresql://u:secret@db/r\n": "control character",
    "postgresql://u:secret@db/r%00": "cannot be read",
    "postgresql://u:secret@db/r%0A": "control character",
    "postgresql://db/r?dbname=postgresql://u:secret@other/x": "another address",
    "postgresql+asyncpg://u:secret@db/r": "no URL of PostgreSQL",
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_would_not_be_used_is_refused_and_no_password_is_told(url: str) -> None:
    for function in (conninfo_of, place_of) if is_postgresql(url) else (conninfo_of,):
        with pytest.raises(DatabaseRefused) as refused:
            function(url)
        assert REFUSED[url] in refused.value.detail
        assert "secret" not in refused.value.detail
        assert refused.value.__cause__ is None


def test_a_password_among_the_options_is_not_shown_either() -> None:
    url = "postgresql://u:one@db/r?password=two&sslpassword=three&x=4"
    shown = without_password(url)
    assert all(secret not in shown for secret in ("one", "two", "three"))
    assert "two" not in place_of("postgresql://db/r?password=two")
