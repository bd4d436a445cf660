"""Registering: what a manifest does to the tables. The other operations are in the modules beside.

Every operation takes a list and answers in kind, inside a transaction of the caller's; it does
exactly what running its items one at a time in order would do. A refusal is a value in the
answer. No operation commits, takes the time, or touches the world: it may run again.

    register                here, register_rows.py     store_blobs    blobs.py
    unregister, remove      unregister.py, release.py  observe        file_status.py
    renew, drain            leases.py                  sweep, prune   expire.py, prune.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from registry.core.identity import Identity
from registry.core.records import (
    Artifact,
    ArtifactKey,
    ConflictingKey,
    Lease,
    Outcome,
    Owner,
    OwnerState,
    RefStatus,
    Registered,
    RegisteredArtifact,
    Registration,
)
from registry.errors import ChecksumMismatch, Conflict, ContentMissing, RegistryError, Superseded
from registry.store.engine import Connection
from registry.store.journal import (
    EventRow,
    Refusal,
    Unresolved,
    find_unresolved,
    write_events,
    write_refusals,
)
from registry.store.ops.blobs import collect_blobs, find_sizes
from registry.store.ops.conflicts import conflict_of, find_conflicts, refusals_of
from registry.store.ops.model_revisions import Placement, find_revision
from registry.store.ops.register_rows import (
    EntryDraft,
    OwnerDraft,
    RefDraft,
    find_entries,
    find_owners,
    find_refs,
    mark_revisions,
    write_entries,
    write_owners,
    write_refs,
)
from registry.store.ops.release import Freed, collect
from registry.store.ops.supersede import (
    Incarnation,
    Instance,
    Worker,
    find_incarnations,
    find_superseded,
    instance_of,
    older_instances,
    older_owners,
    supersede,
    worker_of,
)
from registry.store.owner_columns import identity


def register(
    conn: Connection, now: int, items: Sequence[Registration]
) -> list[Registered | RegistryError]:
    """Write manifests, each wholly or not at all (S1-S4).

    A refusal is Conflict, ContentMissing, ChecksumMismatch or Superseded, and changes nothing
    but the journal.
    """
    outcomes: list[Registered | RegistryError] = []
    ahead = len(items)
    while len(outcomes) < len(items):
        run = _register_run(conn, now, items[len(outcomes) :][:ahead])
        # Where items have to be judged alone, little is read ahead in vain.
        ahead = ahead * 4 if len(run) == ahead else 1
        outcomes += run
    return outcomes


def _register_run(
    conn: Connection, now: int, items: Sequence[Registration]
) -> list[Registered | RegistryError]:
    """As many of the items as can be judged against one reading of the tables, at least one.

    An item that would change or refuse content that is here is judged alone, against the tables
    themselves: a run ends before it, and the next one begins and ends with it.
    """
    batch = _Batch(conn, now, items)
    outcomes: list[Registered | RegistryError] = []
    for item in items:
        placement = batch.place(item)
        changes = batch.changes_content(placement.item)
        alone = changes or batch.supersedes(item)
        if alone and outcomes:
            break
        outcomes.append(batch.judge(placement, changes_content=changes))
        if alone:
            break
    batch.write()
    return outcomes


@dataclass(slots=True)
class _Batch:
    """The rows that a list of manifests speaks of, and what the list itself did to them."""

    conn: Connection
    now: int
    items: Sequence[Registration]
    revisions: dict[int, Placement] = field(init=False)
    owners: dict[Identity, OwnerDraft] = field(init=False)
    entries: dict[ArtifactKey, EntryDraft] = field(init=False)
    refs: dict[tuple[int, int], RefDraft] = field(init=False)
    sizes: dict[str, int] = field(init=False)
    last: dict[str, int] = field(init=False)
    events: list[EventRow] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    touched_owners: dict[int, tuple[Owner, OwnerDraft]] = field(default_factory=dict)
    touched_refs: dict[tuple[int, int], RefDraft] = field(default_factory=dict)
    replaced: list[EntryDraft] = field(default_factory=list)
    marked: list[EntryDraft] = field(default_factory=list)
    unmarked: set[tuple[str, str]] = field(default_factory=set)
    dropped: list[str] = field(default_factory=list)
    incarnations: dict[Worker, list[Incarnation]] = field(init=False)
    superseded: set[Instance] = field(init=False)
    freed: Freed | None = None
    unresolved: set[Unresolved] | None = None

    def __post_init__(self) -> None:
        conn, items = self.conn, self.items
        self.last = conn.last_ids()
        owners = find_owners(conn, [item.owner for item in items])
        superseded = find_superseded(conn, [instance_of(item.owner) for item in items])
        workers = [worker for item in items if (worker := worker_of(item)) is not None]
        incarnations = find_incarnations(conn, dict.fromkeys(workers))
        found = [(item, find_revision(item)) for item in items]
        self.revisions = {id(item): each for item, each in found if each is not None}
        artifacts = [artifact for item in self._manifests() for artifact in item.artifacts]
        entries = find_entries(conn, {artifact.key for artifact in artifacts})
        copies = [artifact.checksum for artifact in artifacts if artifact.path is None]
        sizes = find_sizes(conn, copies)
        self.owners, self.superseded, self.incarnations = owners(), superseded(), incarnations()
        self.entries, self.sizes = entries(), sizes()
        self.refs = find_refs(conn, self._pairs()) if self.owners and self.entries else {}

    def _pairs(self) -> list[tuple[int, int]]:
        pairs = []
        for item in self._manifests():
            owner = self.owners.get(identity(item.owner))
            if owner is not None:
                keys = [artifact.key for artifact in item.artifacts]
                pairs += [(owner.id, self.entries[key].id) for key in keys if key in self.entries]
        return pairs

    def _manifests(self) -> list[Registration]:
        """The items, and what they may become."""
        return [*self.items, *(revision.item for revision in self.revisions.values())]

    # Judging

    def place(self, item: Registration) -> Placement:
        """Where an item goes unless others hold other content there: as a revision, if it asks for
        that or its owner holds it so (S17), else as it is."""
        revision = self.revisions.get(id(item))
        if revision is None:
            return Placement(item)
        owner = self.owners.get(identity(item.owner))
        held = (self.entries.get(each.key) for each in revision.item.artifacts)
        is_held = owner and any(each and (owner.id, each.id) in self.refs for each in held)
        return revision if item.as_revision or is_held else Placement(item)

    def changes_content(self, item: Registration) -> bool:
        """Whether an item offers other content for a key that is here, or drops a copy."""
        owner = self.owners.get(identity(item.owner))
        for artifact in item.artifacts:
            entry = self.entries.get(artifact.key)
            if entry is None:
                continue
            if entry.checksum != artifact.checksum:
                return True
            ref = owner and self.refs.get((owner.id, entry.id))
            if ref and ref.blob_checksum and artifact.path is not None:
                return True
        return False

    def supersedes(self, item: Registration) -> bool:
        """Whether another instance has registered under the item's worker name (S11)."""
        worker = worker_of(item)
        return worker is not None and bool(older_instances(item, self.incarnations[worker]))

    def judge(self, placement: Placement, *, changes_content: bool) -> Registered | RegistryError:
        """Accept an item, or say why not. Only an accepted one changes anything."""
        item = placement.item
        if instance_of(item.owner) in self.superseded:
            return Superseded()
        owner = self.owners.get(identity(item.owner))
        worker = worker_of(item)
        older = []
        if worker is not None and self.supersedes(item):
            older = older_owners(self.conn, item, self.incarnations[worker])
        if changes_content:
            own_ids = [owner.id, *older] if owner else older
            conflicts = find_conflicts(self.conn, item, self.entries, own_ids)
            if conflicts and (revision := self.revisions.get(id(item))) is not None:
                placement = revision.because_of(conflicts[0])
                item = placement.item
                conflicts = find_conflicts(self.conn, item, self.entries, own_ids)
            if conflicts:
                return self._refuse(item, conflicts)
        copies = [artifact for artifact in item.artifacts if artifact.path is None]
        missing = dict.fromkeys(c.checksum for c in copies if c.checksum not in self.sizes)
        if missing:
            return ContentMissing(missing=list(missing))
        for copy in copies:
            if copy.size not in (None, self.sizes[copy.checksum]):
                return ChecksumMismatch(
                    f"{copy.key} is said to have {copy.size} bytes, but the content with its "
                    f"checksum has {self.sizes[copy.checksum]}. Correct the size or leave it out."
                )
        if older:
            self.freed = supersede(self.conn, self.now, item, older)
            self.last = self.conn.last_ids()
        row = self._attach(item, owner)
        lines = tuple(self._hold(placement, row, artifact) for artifact in item.artifacts)
        return Registered(item.owner, row.lease, lines)

    def _refuse(self, item: Registration, conflicts: list[ConflictingKey]) -> Conflict:
        self.refusals += refusals_of(item, conflicts, self.entries, self.sizes)
        return conflict_of(item, conflicts)

    # Accepting

    def _attach(self, item: Registration, row: OwnerDraft | None) -> OwnerDraft:
        """The owner's row, alive and with a renewed lease."""
        if row is None:
            row = OwnerDraft(self._next("owners"), "", None, is_new=True)
            self.owners[identity(item.owner)] = row
        if row.state != OwnerState.ACTIVE:
            reason = "drain cancelled" if row.state == OwnerState.DRAINING else None
            self._journal(item, row, None, "attached", reason=reason)
            if row.state != OwnerState.DRAINING:
                row.attached_at = self.now
        row.state = OwnerState.ACTIVE
        row.worker_name = item.worker_name or row.worker_name
        ttl_ms = item.lease_ttl_ms
        row.lease = None if ttl_ms is None else Lease(ttl_ms, self.now + ttl_ms)
        self.touched_owners[row.id] = (item.owner, row)
        worker = worker_of(item)
        if worker is not None:
            mine = Incarnation(row.id, str(item.owner.instance_id))
            self.incarnations[worker].append(mine)
        return row

    def _hold(
        self, placement: Placement, owner: OwnerDraft, artifact: Artifact
    ) -> RegisteredArtifact:
        """One line of an accepted manifest."""
        item = placement.item
        entry = self.entries.get(artifact.key)
        outcome = Outcome.SHARED
        kind, reason = "registered", placement.reason
        previous: EntryDraft | None = None
        if entry is None:
            entry = EntryDraft(
                self._next("entries"),
                artifact.checksum,
                self._size(artifact),
                base_slug=placement.base_slug,
                is_new=True,
            )
            self.entries[artifact.key] = entry
            self._journal(item, owner, entry, "created", reason=reason)
            outcome = Outcome.CREATED
        elif entry.checksum != artifact.checksum:
            kind, previous, outcome = "replaced", replace(entry), Outcome.REPLACED
            entry.checksum = artifact.checksum
            entry.size = self._size(artifact)
            self.replaced.append(entry)
        is_replaced = outcome is Outcome.REPLACED
        if is_replaced or placement.base_slug is not None:
            self._mark(placement, entry, artifact.key, is_replaced=is_replaced)
        ref = None if outcome is Outcome.CREATED else self.refs.get((owner.id, entry.id))
        if ref is not None and outcome is Outcome.SHARED:
            outcome = Outcome.UNCHANGED
            same_place = ref.path == artifact.path
            kind, reason = ("", None) if same_place else ("registered", "moved")
            if same_place and self._was_refused(placement, artifact):
                kind, reason = "registered", "again"
        if kind:
            self._journal(item, owner, entry, kind, previous, reason)
        self._set_ref(item, owner, entry, artifact, ref, journalled=bool(kind))
        return RegisteredArtifact(artifact.key, entry.checksum, entry.size, outcome)

    def _mark(
        self, placement: Placement, entry: EntryDraft, key: ArtifactKey, *, is_replaced: bool
    ) -> None:
        """Say of which model an entry is a revision (S17): what becomes one is one, however it came
        there; and with one file replaced under its own slug, be it one that came later, none of the
        slug's files is any more, since together they are not what it is named after."""
        base_slug = placement.base_slug
        if is_replaced and base_slug is None:
            self.unmarked.add((key.slug, key.suffix))
        elif base_slug not in (None, entry.base_slug) and (is_replaced or entry.base_slug is None):
            entry.base_slug = base_slug
            if not entry.is_new:
                self.marked.append(entry)

    def _was_refused(self, placement: Placement, artifact: Artifact) -> bool:
        """Whether the last word on an owner's key, or on that of the same file of the base slug, is
        a refusal. Asked once, it is taken back."""
        if self.unresolved is None:
            self.unresolved = find_unresolved(self.conn, self.now)
        key, who = artifact.key, identity(placement.item.owner)
        slugs = {key.slug, placement.base_slug or key.slug}
        names = {Unresolved(*who, slug, key.suffix, key.filename) for slug in slugs}
        was_refused = not names.isdisjoint(self.unresolved)
        self.unresolved -= names
        return was_refused

    def _set_ref(
        self,
        item: Registration,
        owner: OwnerDraft,
        entry: EntryDraft,
        artifact: Artifact,
        ref: RefDraft | None,
        *,
        journalled: bool,
    ) -> None:
        """Point the owner's ref at the bytes that were offered."""
        if ref is None:
            ref = RefDraft(is_new=True)
            self.refs[owner.id, entry.id] = ref
        elif not journalled and artifact.path is None:
            return
        blob_checksum = artifact.checksum if artifact.path is None else None
        if ref.blob_checksum not in (None, blob_checksum):
            self.dropped.append(ref.blob_checksum)
        if journalled:
            ref.event_id = self.last["events"]
        if ref.status != RefStatus.OK:
            self._journal(item, owner, entry, "restored")
        ref.blob_checksum, ref.path = blob_checksum, artifact.path
        ref.file_identity, ref.status = artifact.file_identity, RefStatus.OK
        self.touched_refs[owner.id, entry.id] = ref

    def _journal(
        self,
        item: Registration,
        owner: OwnerDraft,
        entry: EntryDraft | None,
        kind: str,
        previous: EntryDraft | None = None,
        reason: str | None = None,
    ) -> None:
        self.events.append(
            EventRow(
                self._next("events"),
                kind,
                owner.id,
                None if entry is None else entry.id,
                None if previous is None else previous.checksum,
                None if previous is None else previous.size,
                reason,
                item.actor,
                item.request_id,
            )
        )

    def _size(self, artifact: Artifact) -> int:
        return self.sizes[artifact.checksum] if artifact.path is None else artifact.size or 0

    def _next(self, table: str) -> int:
        self.last[table] = number = self.last.get(table, 0) + 1
        return number

    # Writing

    def write(self) -> None:
        """Put down what was accepted, in set form, and what was refused."""
        conn, now = self.conn, self.now
        write_owners(conn, now, self.touched_owners.values())
        write_entries(conn, now, self.entries, self.replaced)
        mark_revisions(conn, self.marked, self.unmarked)
        write_refs(conn, now, self.touched_refs)
        write_events(conn, now, self.events)
        write_refusals(conn, now, self.last.get("events", 0), self.refusals)
        collect_blobs(conn, now, self.dropped)
        if self.freed is not None:
            collect(conn, now, self.freed)
