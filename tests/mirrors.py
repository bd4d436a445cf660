"""A fleet that knows nothing of a registry: cards as Dynamo's workers publish them, and the file
servers of these; and mirrors of it, in this process or in one that can be killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from registry.core.records import Owner
from registry.discovery import Discovery, Kind, Record, RecordKey, model_record
from registry.discovery.cards import Card, CardFile, make_card
from tests.fileservers import FileServer, Manner
from tests.support import ROOT, STOP_S, Server, checksum, wait_for

NAME = "Org/Tiny"
SLUG = "org_tiny"
CONTENTS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"[1, 2, 3]" * 100,
    "odd name.txt": "größe".encode(),
}


def owner_of(instance: int, *, namespace: str = "dynamo", lora: str | None = None) -> Owner:
    return Owner(namespace, "backend", "generate", instance, lora)


def card_url(base: str, owner: Owner, filename: str, slug: str = SLUG) -> str:
    """Where a worker of Dynamo's serves a file."""
    endpoint = f"{owner.namespace}/{owner.component}/{owner.endpoint}"
    name = filename.replace(" ", "%20")
    return f"{base}/v1/metadata/{endpoint}/{slug}/{owner.suffix}/{name}"


def card_of(
    owner: Owner, base: str, contents: Mapping[str, bytes], *, name: str = NAME, slug: str = SLUG
) -> Card:
    files = [
        CardFile(card_url(base, owner, filename, slug), checksum(content), len(content))
        for filename, content in contents.items()
    ]
    return make_card(name, files)


class FleetWorker:
    """A worker that serves its files itself and publishes their card."""

    def __init__(
        self,
        store: Discovery,
        owner: Owner,
        contents: Mapping[str, bytes] | None = None,
        manners: Mapping[str, Manner] | None = None,
    ) -> None:
        self.store = store
        self.owner = owner
        self.contents = dict(CONTENTS if contents is None else contents)
        self.files = FileServer(self.contents, manners)
        self.publish()

    @property
    def card(self) -> Card:
        return card_of(self.owner, self.files.url, self.contents)

    def publish(self) -> None:
        self.store.publish(model_record(self.owner, self.card))

    def leave(self) -> None:
        self.store.withdraw(RecordKey(Kind.MODEL, self.owner))

    @property
    def live_card(self) -> Card:
        """The card that is live, whoever wrote it."""
        record = self.store.find(RecordKey(Kind.MODEL, self.owner))
        assert record is not None
        return record.card

    def __enter__(self) -> FleetWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.files.__exit__(kind, error, traceback)


class MirrorProcess:
    """`metadata-registry mirror` as users start it."""

    def __init__(
        self,
        discovery: str,
        url: str,
        *options: object,
        program: Sequence[str] = ("-m", "registry"),
    ) -> None:
        command = [sys.executable, *program, "mirror", discovery, "--url", url, "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.log = ""
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line

    def __enter__(self) -> MirrorProcess:
        return self

    @property
    def status_url(self) -> str:
        """Where it tells how it is doing."""
        wait_for(lambda: "/health\n" in self.log)
        (line,) = (line for line in self.log.splitlines() if line.startswith("mirroring"))
        return line.split()[-1].removesuffix("/health")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_S)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._reader.join(STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def held_by(server: Server, owner: Owner) -> dict[str, str]:
    """What an owner holds: checksums by slug/filename."""
    answer = server.client.get(f"/v1/owners/{owner}")
    if answer.status_code == 404:
        return {}
    return {f"{e['slug']}/{e['filename']}": e["checksum"] for e in answer.json()["entries"]}


def expected(contents: Mapping[str, bytes] = CONTENTS, slug: str = SLUG) -> dict[str, str]:
    return {f"{slug}/{name}": checksum(content) for name, content in contents.items()}


def wait_until_held(
    server: Server,
    owner: Owner,
    contents: Mapping[str, bytes] = CONTENTS,
    slug: str = SLUG,
    within_s: float = 20,
) -> None:
    wait_for(lambda: held_by(server, owner) == expected(contents, slug), within_s)


def wait_until_released(server: Server, *owners: Owner, within_s: float = 20) -> None:
    wait_for(lambda: not any(held_by(server, owner) for owner in owners), within_s)


def record_with(owner: Owner, content: Mapping[str, Any]) -> Record:
    """A record whose card holds whatever a test wants."""
    return model_record(owner, Card(content))


def folder_url(folder: Path) -> str:
    return f"file:{folder}"


KILLED_AT = """
import functools, os, signal, sys
from registry import cli
from registry.mirror import loop

def at_point(name, wanted=sys.argv.pop(1)):
    if name == wanted:
        os.kill(os.getpid(), signal.SIGKILL)

loop.Mirror = functools.partial(loop.Mirror, at_point=at_point)
cli.main()
"""
"""A program that is killed at the point that its first argument names."""


def killed_at(point: str) -> tuple[str, ...]:
    return "-c", KILLED_AT, point
