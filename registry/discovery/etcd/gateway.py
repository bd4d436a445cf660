"""Calls of etcd's JSON gateway: several endpoints, a user, and an end to every wait.

A call goes to the endpoint that answered last, and to the next one when that fails. A token that is
not taken any more is asked for anew, once a call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2
import msgspec

from registry.discovery.etcd.failures import (
    FAILED_PRECONDITION,
    EndpointFailed,
    EtcdRefusal,
    NotAnEtcd,
    TooMuchAnswered,
)
from registry.discovery.etcd.messages import GatewayError, TokenAnswer
from registry.discovery.etcd.settings import EtcdSettings
from registry.discovery.etcd.tls import tls_context
from registry.errors import DiscoveryUnavailable
from registry.network.deadline import at_most, seconds_left
from registry.network.transports import Transport

T = TypeVar("T")
Body = Mapping[str, Any]

CALL_MAX_S = 8.0
"""How long a call may take with all its attempts. Whoever waits for a keeper waits longer."""
ATTEMPT_MAX_S = 4.0
ANSWER_MAX_BYTES = 1 << 20
TOKEN_MAX_CHARACTERS = 8192


class EtcdGateway:
    """An etcd as this process asks it. Any thread may use it."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._endpoints = settings.endpoints
        self._name = str(settings)
        self._user = settings.user
        is_tls = any(each.startswith("https:") for each in settings.endpoints)
        self._http = httpx2.Client(
            transport=Transport(tls=tls_context(settings.tls) if is_tls else None),
            trust_env=False,
            # Every step has the deadline of its call.
            timeout=httpx2.Timeout(None, pool=ATTEMPT_MAX_S),
            cookies=httpx2.Cookies(CookieJar(DefaultCookiePolicy(allowed_domains=[]))),
            headers={"accept-encoding": "identity", "content-type": "application/json"},
        )
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._at = 0
        self._token: str | None = None

    def __str__(self) -> str:
        return self._name

    def close(self) -> None:
        if os.getpid() == self._process:
            self._http.close()

    def call(self, path: str, body: Body, answer: type[T]) -> T:
        """The answer to a call.

        Raises:
            DiscoveryUnavailable: no endpoint gave one, or it was refused.
        """
        try:
            return self.ask(path, body, answer)
        except EtcdRefusal as refusal:
            raise self.refused(refusal) from None

    def ask(
        self, path: str, body: Body, answer: type[T], *, page_max_bytes: int | None = None
    ) -> T:
        """As `call`, for whoever can do something about a refusal, or about a page that is too
        large.

        Raises:
            DiscoveryUnavailable: no endpoint gave an answer.
            EtcdRefusal: etcd does not do it.
            TooMuchAnswered: the answer has more than `page_max_bytes`.
        """
        self._check_process()
        decoder = msgspec.json.Decoder(answer, strict=False)

        def attempt(endpoint: str, token: str) -> T:
            with self._opened(endpoint, path, body, token) as response:
                content = _read_all(response, page_max_bytes or ANSWER_MAX_BYTES)
            try:
                return decoder.decode(content)
            except (ValueError, RecursionError):
                raise NotAnEtcd("its answer is none of an etcd") from None

        def bounded_attempt(endpoint: str, token: str) -> T:
            try:
                return attempt(endpoint, token)
            except TooMuchAnswered as error:
                if page_max_bytes is not None:
                    raise
                raise NotAnEtcd(str(error)) from None

        with at_most(CALL_MAX_S):
            return self._try_endpoints(lambda endpoint: self._with_token(endpoint, bounded_attempt))

    @contextmanager
    def stream(self, path: str, body: Body) -> Iterator[httpx2.Response]:
        """An answer that goes on and on, from the endpoint that answered last. When it, or what is
        read of it, fails or is refused, the next call goes to another endpoint.

        Raises:
            DiscoveryUnavailable: there is none, or it failed.
        """
        self._check_process()
        at = self._at
        endpoint = self._endpoints[at]
        try:
            with ExitStack() as stack:
                with at_most(ATTEMPT_MAX_S):
                    response = self._with_token(
                        endpoint,
                        lambda endpoint, token: stack.enter_context(
                            self._opened(endpoint, path, body, token)
                        ),
                    )
                yield response
        except (EndpointFailed, TimeoutError) as error:
            self._leave(at)
            raise self._unavailable({endpoint: error}) from None
        except EtcdRefusal as refusal:
            self._leave(at)
            raise self.refused(refusal) from None

    def refused(self, refusal: EtcdRefusal) -> DiscoveryUnavailable:
        """A refusal as users see it."""
        return DiscoveryUnavailable(
            f"{self._name} refuses what was asked: {refusal}. {refusal.hint}"
        )

    # Endpoints

    def _try_endpoints(self, attempt: Callable[[str], T]) -> T:
        """What the first endpoint answers that does. A single one has two chances: it may have
        closed the connection that the first attempt was made on."""
        failures: dict[str, Exception] = {}
        tries = max(2, len(self._endpoints))
        for number in range(tries):
            at = self._at
            endpoint = self._endpoints[at]
            if isinstance(failures.get(endpoint), NotAnEtcd):
                break
            try:
                share_s = max(seconds_left(None) / (tries - number), ATTEMPT_MAX_S / 4)
                with at_most(min(share_s, ATTEMPT_MAX_S)):
                    return attempt(endpoint)
            except (EndpointFailed, TimeoutError) as error:
                failures[endpoint] = error
            except EtcdRefusal as refusal:
                if not refusal.is_of_the_endpoint:
                    raise
                failures[endpoint] = refusal
            self._leave(at)
        raise self._unavailable(failures)

    def _leave(self, at: int) -> None:
        with self._lock:
            if self._at == at:
                self._at = (at + 1) % len(self._endpoints)

    def _unavailable(self, failures: Mapping[str, Exception]) -> DiscoveryUnavailable:
        reasons = "; ".join(f"{endpoint}: {error}" for endpoint, error in failures.items())
        return DiscoveryUnavailable(
            f"{self._name} cannot be used: {reasons}. Check that it runs, and the URL; what was "
            "asked may have happened."
        )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise DiscoveryUnavailable(
                f"{self._name} was opened by process {self._process}; open it in this one."
            )

    # Users

    def _with_token(self, endpoint: str, attempt: Callable[[str, str], T]) -> T:
        if self._user is None:
            return attempt(endpoint, "")
        token = self._token
        if token is not None:
            try:
                return attempt(endpoint, token)
            except EtcdRefusal as refusal:
                if not refusal.is_about_token:
                    raise
        token = self._token = self._log_in(endpoint, self._user)
        return attempt(endpoint, token)

    def _log_in(self, endpoint: str, user: tuple[str, str]) -> str:
        """A token, or "" when this etcd asks nobody who they are."""
        body = {"name": user[0], "password": user[1]}
        try:
            with self._opened(endpoint, "auth/authenticate", body, "") as response:
                content = _read_all(response, ANSWER_MAX_BYTES)
            token = msgspec.json.decode(content, type=TokenAnswer).token
        except EtcdRefusal as refusal:
            if refusal.grpc_code == FAILED_PRECONDITION and refusal.says("not enabled"):
                return ""
            raise
        except (ValueError, RecursionError, TooMuchAnswered):
            token = ""
        if not (token.isascii() and token.isprintable() and 0 < len(token) < TOKEN_MAX_CHARACTERS):
            raise NotAnEtcd("it gives no token that can be sent")
        return token

    # HTTP

    @contextmanager
    def _opened(
        self, endpoint: str, path: str, body: Body, token: str
    ) -> Iterator[httpx2.Response]:
        """An answer, of which the head has come, and which is no error."""
        headers = {"authorization": token} if token else {}
        try:
            request = self._http.build_request(
                "POST", f"{endpoint}/v3/{path}", content=msgspec.json.encode(body), headers=headers
            )
            response = self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise _refusal_in(response)
                yield response
            finally:
                response.close()
        except httpx2.TimeoutException:
            raise EndpointFailed("it does not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise EndpointFailed(_reason_of(error, endpoint)) from None
        except RuntimeError:
            if not self._http.is_closed:
                raise
            raise EndpointFailed("it was closed") from None


def _read_all(response: httpx2.Response, max_bytes: int) -> bytes:
    content = bytearray()
    for chunk in response.iter_raw():
        seconds_left(None)
        content += chunk
        if len(content) > max_bytes:
            raise TooMuchAnswered(f"it answers more than {max_bytes} bytes")
    return bytes(content)


def _refusal_in(response: httpx2.Response) -> Exception:
    try:
        content = _read_all(response, ANSWER_MAX_BYTES)
        error = find_error(content)
    except (ValueError, RecursionError, TooMuchAnswered):
        error, content = None, b""
    if error is not None:
        return EtcdRefusal(error)
    return NotAnEtcd(
        f"what answers there (status {response.status_code}) is no JSON gateway of etcd; its "
        "option --listen-client-http-urls puts that at another address"
    )


class _CallError(msgspec.Struct):
    code: int = 0
    message: str = ""


class _StreamError(msgspec.Struct):
    error: GatewayError


def find_error(content: bytes) -> GatewayError | None:
    """The error in what is not a good answer, if that is in there."""
    try:
        return msgspec.json.decode(content, type=_StreamError, strict=False).error
    except ValueError:
        found = msgspec.json.decode(content, type=_CallError, strict=False)
    return GatewayError(found.code, message=found.message) if found.code else None


def _reason_of(error: Exception, endpoint: str) -> str:
    text = (str(error) or type(error).__name__).removesuffix(".")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}: name its authority with ETCD_AUTH_CA or ca_file"
    if endpoint.startswith("http:") and ("disconnected without" in text or "reset by" in text):
        return f"{text} (one that takes only TLS does that: its URL begins with etcds://)"
    return text
