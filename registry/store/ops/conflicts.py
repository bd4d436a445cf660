"""Keys that others hold with other content (S2): finding them, and refusing a manifest for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from registry.core.records import ArtifactKey, ConflictingKey, Registration
from registry.errors import Conflict
from registry.store.engine import Connection
from registry.store.journal import Refusal
from registry.store.ops.register_rows import EntryDraft
from registry.store.reads.queries import holders_of

CONFLICT_HOLDERS_MAX = 20


def find_conflicts(
    conn: Connection,
    item: Registration,
    entries: Mapping[ArtifactKey, EntryDraft],
    own_ids: Sequence[int],
) -> list[ConflictingKey]:
    """Keys of a manifest that owners with other ids than these hold with other content.

    The entries are those of the tables, as they are now.
    """
    found = []
    for artifact in item.artifacts:
        entry = entries.get(artifact.key)
        if entry is not None and entry.checksum != artifact.checksum:
            holders = holders_of(
                conn, entry.id, limit=CONFLICT_HOLDERS_MAX, except_owner_ids=own_ids
            )
            if holders:
                found.append(
                    ConflictingKey(artifact.key, entry.checksum, artifact.checksum, holders)
                )
    return found


def refusals_of(
    item: Registration,
    conflicts: Sequence[ConflictingKey],
    entries: Mapping[ArtifactKey, EntryDraft],
    sizes: Mapping[str, int],
) -> list[Refusal]:
    """What the journal is told of a manifest that is refused. `sizes` are those of copies."""
    said = {artifact.key: artifact.size for artifact in item.artifacts}
    return [
        Refusal(
            owner=item.owner,
            key=conflict.key,
            entry_id=entries[conflict.key].id,
            offered=conflict.offered,
            offered_size=sizes.get(conflict.offered, said[conflict.key]),
            registered=conflict.registered,
            registered_size=entries[conflict.key].size,
            reason=f"held by {conflict.holders[0].owner}",
            actor=item.actor,
            request_id=item.request_id,
        )
        for conflict in conflicts
    ]


def conflict_of(item: Registration, conflicts: list[ConflictingKey]) -> Conflict:
    """What a caller is told of a manifest that is refused."""
    first = conflicts[0]
    others = (
        "Register the same bytes, use another slug, or unregister the holders."
        if item.may_be_revision
        else "Register the same bytes, use another slug, unregister the holders, or ask for a "
        "revision beside theirs (on_conflict)."
    )
    return Conflict(
        f"{len(conflicts)} of {len(item.artifacts)} keys are held by other owners with other "
        f"content, the first {first.key} by {first.holders[0].owner}; nothing was written. "
        f"{others}",
        conflicts=conflicts,
    )
