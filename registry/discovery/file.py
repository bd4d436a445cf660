"""Discovery by files, in the layout of NVIDIA Dynamo's file store.

A record is the file `ROOT/v1/mdc/<key, every byte outside of A-Z a-z 0-9 as %XX>`. It is live
while its modification time is younger than 10 s, so its publisher touches it every third of that.
Whoever reads the directory may remove files that have lapsed; Dynamo's frontends do. A publisher
that was held up therefore writes its record again when it finds it gone. Files whose names begin
with `.tmp_` are being written and are no records.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from registry.discovery import Change, Kind, Record, RecordKey
from registry.errors import DiscoveryUnavailable, Invalid

TTL_S = 10.0
WATCH_EVERY_S = 0.5
RECORD_MAX_BYTES = 4 << 20
_TEMPORARY = ".tmp_"
_quoted = re.compile(rb"[^A-Za-z0-9]")

log = logging.getLogger("registry.discovery")


class FileDiscovery:
    """A directory of records, which is made when something is published.

    A thread of this process touches what was published here until it is withdrawn, or until
    `close`. For the methods see `Discovery`.
    """

    def __init__(self, root: Path, *, ttl_s: float = TTL_S) -> None:
        self._root = root
        self._ttl_s = ttl_s
        # Held while files change, so that nothing withdrawn is written again by the toucher.
        self._lock = threading.Lock()
        self._published: dict[Path, bytes] = {}
        self._closed = threading.Event()
        self._toucher: threading.Thread | None = None

    def publish(self, record: Record) -> None:
        path = self._path(record.key)
        content = json.dumps(dict(record.content), separators=(",", ":")).encode()
        with self._lock:
            if self._closed.is_set():
                raise DiscoveryUnavailable(f"{self._root} was closed; {record.key} is not there.")
            try:
                _write(path, content)
            except OSError as error:
                raise _unavailable(record.key, "published", error) from error
            self._published[path] = content
            if self._toucher is None:
                name = "registry-discovery"
                self._toucher = threading.Thread(target=self._touch_on, name=name, daemon=True)
                self._toucher.start()

    def withdraw(self, key: RecordKey) -> None:
        path = self._path(key)
        with self._lock:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(key, "withdrawn", error) from error
            self._published.pop(path, None)

    def list(self, kind: Kind) -> list[Record]:
        records = [_find_record(key, content) for key, content in self._read(kind).items()]
        return sorted((record for record in records if record is not None), key=_name_of)

    def watch(self, kind: Kind) -> Iterator[Change]:
        known: dict[RecordKey, Record] = {}
        while True:
            found = {record.key: record for record in self.list(kind)}
            for key in known.keys() - found.keys():
                yield Change(key, None)
            for key, record in found.items():
                if known.get(key) != record:
                    yield Change(key, record)
            known = found
            if self._closed.wait(WATCH_EVERY_S):
                return

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            toucher = self._toucher
        if toucher is not None:
            toucher.join()

    def _path(self, key: RecordKey) -> Path:
        quoted = _quoted.sub(lambda found: b"%%%02X" % ord(found[0]), key.name.encode())
        return self._root / key.kind / quoted.decode()

    def _read(self, kind: Kind) -> dict[RecordKey, bytes]:
        """The live files of a kind whose names are keys."""
        directory = self._root / kind
        try:
            paths = [path for path in directory.iterdir() if not path.name.startswith(_TEMPORARY)]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DiscoveryUnavailable(
                f"{directory} cannot be listed: {error.strerror}. Check the discovery URL."
            ) from error
        found = {}
        for path in paths:
            content = self._find_live(path)
            key = _find_key(kind, path.name)
            if content is not None and key is not None:
                found[key] = content
        return found

    def _find_live(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime > self._ttl_s:
                    return None
                return file.read(RECORD_MAX_BYTES)
        except OSError:
            # Withdrawn meanwhile, or not for us to read.
            return None

    def _touch_on(self) -> None:
        failing = False
        while not self._closed.wait(self._ttl_s / 3):
            with self._lock:
                problem = _touch(self._published)
            if problem is not None and not failing:
                log.warning("records of this worker may lapse: %s", problem)
            failing = problem is not None


def _touch(published: Mapping[Path, bytes]) -> OSError | None:
    """Keep files live; the last thing that went wrong."""
    problem = None
    for path, content in published.items():
        try:
            try:
                os.utime(path)
            except FileNotFoundError:
                _write(path, content)
        except OSError as error:
            problem = error
    return problem


def _write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _name_of(record: Record) -> str:
    return record.key.name


def _find_key(kind: Kind, filename: str) -> RecordKey | None:
    try:
        return RecordKey.parse(kind, unquote(filename))
    except Invalid:
        return None


def _find_record(key: RecordKey, content: bytes) -> Record | None:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        log.debug("%s is not a JSON object; left out", key)
        return None
    return Record(key, parsed)


def _unavailable(key: RecordKey, what: str, error: OSError) -> DiscoveryUnavailable:
    return DiscoveryUnavailable(
        f"{key} cannot be {what}: {error.strerror or error}. Check the discovery directory."
    )
