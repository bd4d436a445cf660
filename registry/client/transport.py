"""What the blocking and the asyncio client share: where the service is, what goes out with every
request, and what failures mean. The clients themselves only send."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx2

from registry.client.answers import Answer
from registry.client.retries import RetryPolicy
from registry.core.text import shown, shown_url
from registry.errors import RegistryError, ServiceUnreachable, SettingsError
from registry.network.environment import find_proxy, find_user, without_user

OnBytes = Callable[[int], None]
"""Called with the number of bytes sent or received so far; a repeated call begins again at 0."""

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 60.0
ANSWER_MAX_BYTES = 64 << 20
CHUNK_BYTES = 256 << 10
TIMEOUT_MAX_S = 7 * 24 * 3600.0
SLOWEST_BYTES_PER_S = 64 << 10
"""Content gets a second more for each of these, beyond the time of a call without any."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its URL, which has no password in it and no slash at its end, and the headers of
    every request to it."""

    url: str
    headers: Mapping[str, str]


def service_at(url: str, token: str | None) -> Service:
    """The service at a URL. A user and password in it are sent as HTTP basic authentication.

    Raises:
        SettingsError: it is not an HTTP URL, or the token cannot be sent, or not beside a password.
    """
    shown = checked_url(url)
    headers = headers_with(token)
    user = find_user(url)
    if user is not None:
        if token is not None:
            raise SettingsError(
                f"The URL of {shown} has a user in it, and there is an access token as well. Only "
                "one of them can be sent: leave one out."
            )
        headers["authorization"] = basic(user)
    return Service(shown, headers)


def basic(user: tuple[str, str]) -> str:
    """User and password as the value of the header Authorization."""
    return "Basic " + b64encode(":".join(user).encode()).decode()


def checked_url(url: str) -> str:
    """The URL of a service as it may be shown: without user and password, and without a slash at
    its end.

    Raises:
        SettingsError: it is not an HTTP URL.
    """
    if not isinstance(url, str):
        raise TypeError(f"The URL of a service is text, not {type(url).__name__}.")
    try:
        parsed = httpx2.URL(url)
        urlsplit(url).port  # noqa: B018 - it raises for one that is none
    except (httpx2.InvalidURL, ValueError):
        raise SettingsError(
            f"{shown_url(url)!r} is not a URL. It must look like http://127.0.0.1:8090."
        ) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(
            f"{shown_url(url)!r} is not the URL of a service; it must look like "
            "http://127.0.0.1:8090."
        )
    return without_user(url).rstrip("/")


def headers_with(token: str | None) -> dict[str, str]:
    """The headers of every request.

    Raises:
        SettingsError: the token cannot be sent.
    """
    # What is served must arrive byte for byte.
    headers = {"accept-encoding": "identity"}
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise SettingsError(
                "The access token has characters that no token has. Copy it again, and nothing "
                "around it."
            )
        headers["authorization"] = f"Bearer {token}"
    return headers


def checked_timeout(timeout_s: float) -> float:
    """How long a call may take.

    Raises:
        SettingsError: it is not a number above 0 and of at most a week.
    """
    if not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise SettingsError(
            f"The timeout is {timeout_s!r} s; it must be more than 0 and at most "
            f"{TIMEOUT_MAX_S:g} s."
        )
    return timeout_s


def timeout_of(timeout_s: float) -> httpx2.Timeout:
    """The longest silence, and a shorter one until a connection stands."""
    return httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


def longest_s(timeout_s: float, content_bytes: int = 0) -> float:
    """How long one attempt at a call may take in all, with content that is sent or received."""
    return timeout_s + content_bytes / SLOWEST_BYTES_PER_S


def cookies() -> httpx2.Cookies:
    """A jar that takes none: no service of ours sets any."""
    return httpx2.Cookies(CookieJar(DefaultCookiePolicy(allowed_domains=[])))


@contextmanager
def failures_of(url: str) -> Iterator[None]:
    """Turns what a transport raises into ServiceUnreachable."""
    try:
        yield
    except httpx2.TimeoutException:
        raise too_late(url) from None
    except httpx2.TooManyRedirects:
        raise ServiceUnreachable(
            f"The service at {shown_url(url)} sends callers on in a circle."
        ) from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise _unreachable(url, error) from None


def too_late(url: str) -> ServiceUnreachable:
    """What a call that had no answer in its time ends with."""
    return ServiceUnreachable(
        f"The service at {shown_url(url)} does not answer in time{_through(url)}. What was asked "
        "may have happened; ask again."
    )


def _unreachable(url: str, error: Exception) -> ServiceUnreachable:
    text = str(error).rstrip(".")
    what = f"The service at {shown_url(url)} does not answer{_through(url)}: {text}. "
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ServiceUnreachable(
            what + "Its certificate is not of an authority that is known here: name a file of "
            "authorities with ca_file, --ca-file or SSL_CERT_FILE."
        )
    if "WRONG_VERSION_NUMBER" in str(error):
        return ServiceUnreachable(what + "It speaks plain HTTP: say http:// and not https://.")
    if _through(url):
        return ServiceUnreachable(
            what + "Check the proxy, or put the host of the service into NO_PROXY."
        )
    return ServiceUnreachable(what + "Check that it runs, and the URL.")


def _through(url: str) -> str:
    """Which proxy a URL is asked through, as part of a sentence."""
    try:
        proxy = find_proxy(url)
    except (SettingsError, ValueError):
        return ""
    return f" through {proxy}" if proxy else ""


def via(url: str) -> str:
    """A sentence about the proxy that an answer may have come from; empty without one."""
    through = _through(url)
    return f" It was asked{through}." if through else ""


def raw_only(headers: Mapping[str, str]) -> None:
    """Refuses an answer that was compressed although nobody asked for that: it may unpack to
    anything.

    Raises:
        ServiceUnreachable: it was.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ServiceUnreachable(
            f"What answers there sends content as {shown(encoding)}, which was not asked for. That "
            "is no answer of a metadata registry."
        )


class Attempts:
    """The attempts at one call, the first of which begins now."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._started = time.monotonic()
        self._made = 0

    def pause_s_after(self, error: RegistryError) -> float:
        """How long to wait after a failed attempt. Raises the error when there shall be no more."""
        self._made += 1
        elapsed_s = time.monotonic() - self._started
        pause_s = self._policy.find_pause_s(self._made, elapsed_s, error)
        if pause_s is None:
            raise error
        return pause_s


class AnswerBody:
    """The body of an answer as it comes in, bounded because the service may be anything."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = headers
        self._body = bytearray()
        raw_only(headers)

    def take(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > ANSWER_MAX_BYTES:
            raise ServiceUnreachable(
                f"What answers at {self._url} sends more than {ANSWER_MAX_BYTES} bytes; that is "
                "no answer of a metadata registry."
            )

    def answer(self, status: int) -> Answer:
        """The whole answer."""
        return Answer(status, self._headers, bytes(self._body), via(self._url))
