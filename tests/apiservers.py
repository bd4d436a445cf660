"""A stand-in for a Kubernetes API server: the few calls that discovery makes, over plain HTTP.

Objects of any kind are listed page by page, watched since a version, applied and deleted. What a
cluster does beside that is not here: no schema, no garbage collection, no endpoints made of pods.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.ports import free_port

Object = dict[str, Any]
WORKERS, SLICES = "dynamoworkermetadatas", "endpointslices"
LABEL = {"nvidia.com/dynamo-discovery-enabled": "true"}


@dataclass
class ApiServer:
    """Its state is changed by these methods or over HTTP."""

    token: str = ""
    forbidden: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    bookmark_every_s: float = 60.0
    tells_gone_by_status: bool = False
    tls: ssl.SSLContext | None = None
    requests: list[str] = field(default_factory=list)
    bookmarks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 1
        self.oldest = 0
        self.objects: dict[tuple[str, str], Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.connections: set[Any] = set()
        self.frozen = False
        self.port = free_port()
        self.start()

    # Its state

    def apply(self, plural: str, name: str, given: Object) -> Object:
        """Create an object, or put what is given in the place of what it had."""
        with self.changed:
            before = self.objects.get((plural, name))
            uid = before["metadata"]["uid"] if before else f"uid-{self.version}"
            meta = {"uid": uid, "namespace": "fleet"} | given.get("metadata", {}) | {"name": name}
            self._happens("MODIFIED" if before else "ADDED", plural, {**given, "metadata": meta})
            return self.objects[plural, name]

    def delete(self, plural: str, name: str) -> None:
        with self.changed:
            self._happens("DELETED", plural, self.objects[plural, name])
            del self.objects[plural, name]

    def _happens(self, event: str, plural: str, content: Object) -> None:
        self.version += 1
        meta = content["metadata"] | {"resourceVersion": str(self.version)}
        content = content | {"metadata": meta}
        self.objects[plural, meta["name"]] = content
        self.history.append((self.version, plural, event, content))
        self.changed.notify_all()

    def set_ready(self, *pods: tuple[str, str], ready: bool = True, name: str = "slice") -> None:
        """The endpoints of a slice: name and uid of each pod."""
        endpoints = [
            {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": pod, "uid": uid},
            }
            for pod, uid in pods
        ]
        self.apply(
            SLICES,
            name,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"labels": LABEL},
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [],
            },
        )

    def compact(self) -> None:
        """Forget everything but what is there now."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    # Its process

    def start(self) -> None:
        """Serve, at the port where it was before."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _Handler)
        self._server.daemon_threads = True
        if self.tls is not None:
            listener = self._server.socket
            self._server.socket = self.tls.wrap_socket(listener, server_side=True)
        self._server.api = self  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Serve nobody, and break off whatever is being served."""
        self._server.shutdown()
        self._server.server_close()
        self.drop()

    def drop(self) -> None:
        """Break off every connection."""
        with self.changed:
            for each in list(self.connections):
                each.close_now()
            self.changed.notify_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, namespace: str = "fleet", **user: Any) -> Path:
        """A file that names it."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
            ],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": user}],
        }
        path.write_text(json.dumps(config))
        return path

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *args: object) -> None:
        self.frozen = False
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.api: ApiServer = self.server.api  # type: ignore[attr-defined]
        self.is_open = True
        self.api.connections.add(self)

    def finish(self) -> None:
        self.api.connections.discard(self)
        with suppress(OSError):
            super().finish()

    def close_now(self) -> None:
        self.is_open = False
        with suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        parts, plural, name = self._place()
        if self._is_refused(plural, "list"):
            return
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if name:
            found = self.api.objects.get((plural, name))
            self._answer(200, found) if found else self._status(404, f"{name} not found")
        elif query.get("watch") in ("true", "1"):
            self._watch(plural, query)
        else:
            self._list(plural, query)

    def do_PATCH(self) -> None:
        _, plural, name = self._place()
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._is_refused(plural, "patch"):
            self._answer(200, self.api.apply(plural, name, given))

    def do_DELETE(self) -> None:
        _, plural, name = self._place()
        self.api.delete(plural, name)
        self._answer(200, {"kind": "Status", "status": "Success"})

    def _place(self) -> tuple[Any, str, str]:
        self.api.requests.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        *_, last = segments = [unquote(each) for each in parts.path.split("/") if each]
        is_one = len(segments) > 6
        return parts, segments[5] if len(segments) > 5 else last, last if is_one else ""

    def _is_refused(self, plural: str, verb: str) -> bool:
        self._wait_while_frozen()
        if self.api.token and self.headers.get("authorization") != f"Bearer {self.api.token}":
            self._status(401, "Unauthorized")
        elif plural in self.api.forbidden:
            user = "system:serviceaccount:fleet:mirror"
            self._status(403, f'{plural} is forbidden: User "{user}" cannot {verb} {plural}')
        elif plural in self.api.missing:
            self._status(404, "the server could not find the requested resource")
        else:
            return False
        return True

    def _wait_while_frozen(self) -> None:
        with self.api.changed:
            self.api.changed.wait_for(lambda: not self.api.frozen or not self.is_open, 60)

    def _list(self, plural: str, query: dict[str, str]) -> None:
        with self.api.changed:
            version = self.api.version
            names = sorted(name for kind, name in self.api.objects if kind == plural)
            found = [self.api.objects[plural, name] for name in names]
        found = [each for each in found if _has_labels(each, query.get("labelSelector", ""))]
        limit, start = int(query.get("limit", "0")) or len(found), int(query.get("continue", "0"))
        meta = {"resourceVersion": str(version)}
        if start + limit < len(found):
            meta["continue"] = str(start + limit)
        items = found[start : start + limit]
        _, _, group, api_version, *_ = self.path.split("/")
        kind = items[0].get("kind", "Object") if items else "Object"
        self._answer(
            200,
            {
                "kind": f"{kind}List",
                "apiVersion": f"{group}/{api_version}",
                "metadata": meta,
                "items": items,
            },
        )

    def _watch(self, plural: str, query: dict[str, str]) -> None:
        api, seen = self.api, int(query.get("resourceVersion", "0"))
        if seen and seen < api.oldest and api.tells_gone_by_status:
            self._status(410, f"too old resource version: {seen} ({api.oldest})")
            return
        if seen > api.version:
            self._status(504, f"Too large resource version: {seen}, current: {api.version}")
            return
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        ends = time.monotonic() + float(query.get("timeoutSeconds", "300"))
        while self.is_open and time.monotonic() < ends:
            news, is_gone, now = self._wait_for_news(seen)
            # Real servers tell it within the watch; so it is what Dynamo understands.
            if is_gone:
                gone = _failure(410, f"too old resource version: {seen} ({self.api.oldest})")
                self._chunk({"type": "ERROR", "object": gone})
                break
            for _, kind, event, content in news:
                if kind == plural and _has_labels(content, query.get("labelSelector", "")):
                    self._chunk({"type": event, "object": content})
            if not news and query.get("allowWatchBookmarks"):
                meta = {"resourceVersion": str(now)}
                mark = {"kind": "Any", "apiVersion": "v1", "metadata": meta}
                self._chunk({"type": "BOOKMARK", "object": mark})
                self.api.bookmarks.append(now)
            seen = now
        if self.is_open:
            self.wfile.write(b"0\r\n\r\n")

    def _wait_for_news(self, seen: int) -> tuple[list[Any], bool, int]:
        api = self.api
        with api.changed:
            api.changed.wait_for(
                lambda: not self.is_open or api.frozen or api.version > seen, api.bookmark_every_s
            )
            api.changed.wait_for(lambda: not self.is_open or not api.frozen)
            news = [each for each in api.history if each[0] > seen]
            return news, seen < api.oldest, api.version

    def _chunk(self, content: Object) -> None:
        line = json.dumps(content).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.wfile.flush()

    def _status(self, code: int, message: str) -> None:
        self._answer(code, _failure(code, message))

    def _answer(self, code: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _failure(code: int, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "Expired" if code == 410 else "Failure",
        "code": code,
    }


def _has_labels(content: Object, selector: str) -> bool:
    labels = content["metadata"].get("labels") or {}
    wanted = (each.partition("=") for each in selector.split(",") if each)
    return all(labels.get(name) == value for name, _, value in wanted)
