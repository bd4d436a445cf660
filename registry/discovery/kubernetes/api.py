"""Two calls of an API server: listing the objects of a kind, and watching what changes.

Configuration, tokens and certificates are read by the library lightkube. Its own listing and
watching bound neither the size of what comes nor the time for which nothing does, so these are
here, over the same HTTP client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import msgspec

from registry.discovery.kubernetes.messages import ApiStatus, ObjectList
from registry.discovery.kubernetes.settings import KubernetesSettings
from registry.discovery.line_stream import LineStream
from registry.discovery.record_io import LISTING_MAX_BYTES, LISTING_MAX_NAMES
from registry.errors import DiscoveryUnavailable
from registry.network.deadline import at_most, seconds_left
from registry.network.transports import Transport

LISTING_MAX_S = 9.0
LISTING_TRIES = 3
ANSWER_MAX_S = 8.0
PAGE_OBJECTS = 250
PAGE_MAX_BYTES = 32 << 20
LINE_MAX_BYTES = 16 << 20
WATCH_S = 30
"""The server ends a watch after this time; the next one goes on where it was."""

ERROR_MAX_BYTES = 64 << 10
GONE, TOO_LARGE_VERSION = 410, "Too large resource version"


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of objects, and what is needed to read them."""

    name: str
    group: str
    version: str
    plural: str
    labels: str = ""

    @property
    def rule(self) -> str:
        """What a role needs, as it stands in its manifest."""
        return f"{{apiGroups: [{self.group}], resources: [{self.plural}], verbs: [list, watch]}}"


WORKERS = ObjectKind("DynamoWorkerMetadata", "nvidia.com", "v1alpha1", "dynamoworkermetadatas")
SLICES = ObjectKind(
    "EndpointSlice",
    "discovery.k8s.io",
    "v1",
    "endpointslices",
    labels="nvidia.com/dynamo-discovery-enabled=true",
)


@dataclass(slots=True)
class ObjectListing:
    """What was there at one version."""

    version: str = ""
    objects: list[bytes] = field(default_factory=list)


class VersionGone(Exception):
    """The API server does not know any more what happened since a version, or does not yet."""


class _TooMuch(Exception):
    """A page has more bytes than were asked for."""


class KubernetesApi:
    """An API server as this process asks it, in one namespace. Any thread may use it."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._name = str(settings)
        self._base = settings.server
        self._namespace = settings.namespace
        self._http = httpx2.Client(
            transport=Transport(tls=settings.tls),
            auth=settings.auth,
            trust_env=False,
            # Every step has the deadline of its call.
            timeout=httpx2.Timeout(None, pool=ANSWER_MAX_S),
            headers={"accept": "application/json", "accept-encoding": "identity"},
        )
        self._process = os.getpid()

    def __str__(self) -> str:
        return self._name

    def close(self) -> None:
        if os.getpid() == self._process:
            self._http.close()

    def list(self, kind: ObjectKind) -> ObjectListing:
        """All objects of a kind.

        Raises:
            DiscoveryUnavailable: the server cannot be used, or has more than can be read.
        """
        with at_most(LISTING_MAX_S):
            for _ in range(LISTING_TRIES):
                try:
                    return self._list_once(kind)
                except VersionGone:
                    continue
        raise self._unavailable(f"it forgets a listing of {kind.plural} before it is read")

    @contextmanager
    def watch(self, kind: ObjectKind, version: str) -> Iterator[LineStream]:
        """The events of a kind since a version, a line each. The server ends it after a while.

        Raises:
            DiscoveryUnavailable: the server cannot be used.
            VersionGone: it does not know what happened since.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        with self._opened(kind, query) as response:
            yield LineStream(response, LINE_MAX_BYTES)

    def refused(self, kind: ObjectKind, status: ApiStatus) -> Exception:
        """What it means when the server does not do it."""
        if status.code == GONE or TOO_LARGE_VERSION in status.message:
            return VersionGone(status.message)
        hint = {
            401: "Its token is not taken: see the configuration.",
            403: f"Give the account this rule in a Role, and bind it: {kind.rule}",
            404: f"Install the CRD of {kind.name}: it comes with Dynamo's platform chart.",
        }.get(status.code, "See the log of the API server.")
        return self._unavailable(f"{shown_text(status.message)} (status {status.code})", hint)

    def _unavailable(self, reason: str, hint: str = "Check that it runs.") -> DiscoveryUnavailable:
        reason = reason.removesuffix(".")
        return DiscoveryUnavailable(f"{self._name} cannot be read: {reason}. {hint}")

    # Pages

    def _list_once(self, kind: ObjectKind) -> ObjectListing:
        listing, size, limit, go_on = ObjectListing(), 0, PAGE_OBJECTS, ""
        while True:
            query = {"limit": str(limit)} | ({"continue": go_on} if go_on else {})
            try:
                page = self._page(kind, query)
            except _TooMuch:
                if limit == 1:
                    raise self._unavailable(
                        f"one of {kind.plural} has more than {PAGE_MAX_BYTES} bytes"
                    ) from None
                limit = max(1, limit // 16)
                continue
            listing.objects += [bytes(item) for item in page.items]
            size += sum(len(item) for item in page.items)
            if len(listing.objects) > LISTING_MAX_NAMES or size > LISTING_MAX_BYTES:
                raise self._unavailable(
                    f"it has more than {LISTING_MAX_NAMES} {kind.plural}, or more than "
                    f"{LISTING_MAX_BYTES >> 20} MiB of them",
                    "Use a namespace for each fleet.",
                )
            listing.version = listing.version or page.metadata.version
            if page.metadata.go_on == go_on or not page.metadata.go_on:
                return listing
            go_on = page.metadata.go_on

    def _page(self, kind: ObjectKind, query: Mapping[str, str]) -> ObjectList:
        with self._opened(kind, query) as response:
            content = _read_all(response, PAGE_MAX_BYTES)
        try:
            page = msgspec.json.decode(content, type=ObjectList)
        except (ValueError, RecursionError):
            raise self._unavailable("what answers there is no API server") from None
        if not page.metadata.version:
            raise self._unavailable("what answers there is no API server")
        return page

    # HTTP

    @contextmanager
    def _opened(self, kind: ObjectKind, query: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """An answer, of which the head has come, and which is no error."""
        self._check_process()
        path = f"/apis/{kind.group}/{kind.version}/namespaces/{self._namespace}/{kind.plural}"
        labels = {"labelSelector": kind.labels} if kind.labels else {}
        try:
            request = self._http.build_request("GET", self._base + path, params={**labels, **query})
            response = self._send(request)
            try:
                if response.status_code != 200:
                    raise self.refused(kind, _status_in(response))
                yield response
            finally:
                response.close()
        except (httpx2.TimeoutException, TimeoutError):
            raise self._unavailable("it does not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._unavailable(str(error) or type(error).__name__) from None
        except RuntimeError:
            if not self._http.is_closed:
                raise
            raise self._unavailable("it was closed") from None

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        from lightkube.core.exceptions import ConfigError

        try:
            with at_most(ANSWER_MAX_S):
                return self._http.send(request, stream=True)
        except (ConfigError, OSError, ValueError, KeyError) as error:
            if isinstance(error, TimeoutError):
                raise
            # Whatever makes the token: a file, or a program that the configuration names.
            raise self._unavailable(f"there is no token for it: {error}") from None

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise DiscoveryUnavailable(
                f"{self._name} was opened by process {self._process}; open it in this one."
            )


def _read_all(response: httpx2.Response, max_bytes: int) -> bytes:
    content = bytearray()
    for chunk in response.iter_raw():
        seconds_left(None)
        content += chunk
        if len(content) > max_bytes:
            raise _TooMuch
    return bytes(content)


def _status_in(response: httpx2.Response) -> ApiStatus:
    """Why it is an error, as the answer tells, or its number alone."""
    message = "what answers there is no API server"
    try:
        with at_most(ANSWER_MAX_S):
            content = _read_all(response, ERROR_MAX_BYTES)
        message = msgspec.json.decode(content, type=ApiStatus).message or message
    except (ValueError, RecursionError, _TooMuch):
        pass
    return ApiStatus(response.status_code, message)


def shown_text(text: str) -> str:
    """A message of the server, fit for one of ours."""
    return ascii(text)[1:-1][:500].removesuffix(".")
