"""Which records are live: those of workers whose pod is in an endpoint that is ready.

A worker's object is owned by its pod, and usually has its name. Records that two objects have count
for the one whose name comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from registry.core.text import shown
from registry.discovery import Kind, Record, RecordKey
from registry.discovery.kubernetes.api import SLICES, WORKERS, ObjectKind
from registry.discovery.kubernetes.messages import (
    AnyObject,
    EndpointSlice,
    ObjectMeta,
    WorkerData,
    WorkerMetadata,
)
from registry.discovery.record_io import RecordReader
from registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod; one that was made anew under its name has another uid."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PodRecords:
    """The records of a worker, and the pod that it runs in."""

    uid: str
    pod: Pod
    records: dict[RecordKey, Record]


class Join:
    """The objects of two kinds, and the records of one kind that are live by them.

    Args:
        reader: names in the log what is left out.
    """

    def __init__(self, kind: Kind, reader: RecordReader) -> None:
        self._kind = kind
        self._reader = reader
        self._workers: dict[str, PodRecords] = {}
        self._ready: dict[str, frozenset[Pod]] = {}

    def replace(self, kind: ObjectKind, objects: Iterable[bytes]) -> None:
        """These are all objects of a kind."""
        named = {meta.name: each for each in objects if (meta := self._find_meta(each))}
        held = self._workers if kind is WORKERS else self._ready
        for name in held.keys() - named.keys():
            del held[name]
        for each in named.values():
            self.put(kind, each)

    def put(self, kind: ObjectKind, content: bytes) -> None:
        """An object is there, or has changed."""
        meta = self._find_meta(content)
        if meta is None:
            return
        if kind is WORKERS:
            self._workers[meta.name] = self._records_of(meta, content)
        elif kind is SLICES:
            self._ready[meta.name] = self._ready_in(meta, content)

    def remove(self, kind: ObjectKind, content: bytes) -> None:
        """An object is gone."""
        meta = self._find_meta(content)
        if meta is not None:
            (self._workers if kind is WORKERS else self._ready).pop(meta.name, None)

    def live(self) -> dict[RecordKey, Record]:
        """The records that are live now, by their keys."""
        ready: dict[str, set[str]] = {}
        for pods in self._ready.values():
            for pod in pods:
                ready.setdefault(pod.name, set()).add(pod.uid)
        found: dict[RecordKey, Record] = {}
        for _, worker in sorted(self._workers.items()):
            uids = ready.get(worker.pod.name, ())
            # Who writes slices by hand may leave out the uid.
            if uids and (worker.pod.uid in uids or not worker.pod.uid or "" in uids):
                found = worker.records | found
        return found

    # What others wrote

    def _find_meta(self, content: bytes) -> ObjectMeta | None:
        try:
            meta = msgspec.json.decode(content, type=AnyObject).metadata
            if meta.name:
                return meta
        except (ValueError, RecursionError):
            pass
        self._reader.leave_out(shown(content[:80]), "it is no object that has a name")
        return None

    def _records_of(self, meta: ObjectMeta, content: bytes) -> PodRecords:
        owners = [each for each in meta.owner_references if each.kind == "Pod"]
        pod = Pod(owners[0].name, owners[0].uid) if owners else Pod(meta.name, "")
        try:
            spec = msgspec.json.decode(content, type=WorkerMetadata).spec
            data = msgspec.json.decode(spec.data, type=WorkerData)
        except (ValueError, RecursionError) as error:
            self._reader.leave_out(meta.name, str(error))
            before = self._workers.get(meta.name)
            # A worker writes its whole object; one that has none for a moment has not left.
            is_known = before is not None and before.uid == meta.uid
            return before if is_known and before else PodRecords(meta.uid, pod, {})
        parts = data.model_cards if self._kind is Kind.MODEL else data.endpoints
        found = {}
        for name, raw in parts.items():
            record = self._find_record(name, bytes(raw))
            if record is not None:
                found[record.key] = record
        return PodRecords(meta.uid, pod, found)

    def _find_record(self, name: str, content: bytes) -> Record | None:
        try:
            key = RecordKey.parse(self._kind, name)
        except Invalid:
            self._reader.leave_out(name, "its name is not that of a record")
            return None
        return self._reader.find_record(key, name, content)

    def _ready_in(self, meta: ObjectMeta, content: bytes) -> frozenset[Pod]:
        try:
            endpoints = msgspec.json.decode(content, type=EndpointSlice).endpoints or []
        except (ValueError, RecursionError) as error:
            self._reader.leave_out(meta.name, str(error))
            return frozenset()
        return frozenset(
            Pod(each.target_ref.name, each.target_ref.uid)
            for each in endpoints
            if each.conditions and each.conditions.ready and each.target_ref
        )
