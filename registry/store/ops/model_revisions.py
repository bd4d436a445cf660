"""Where a manifest goes that may become a revision of its model (S17).

It goes where its owner holds it already, or else under the slug that it names; under that of a
revision, if others hold other content there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from registry.core.model_revisions import revision_slug
from registry.core.records import ConflictingKey, Registration


@dataclass(frozen=True, slots=True)
class Placement:
    """A manifest under the slug that it is to be registered under.

    `base_slug` is the slug that it named, if that is another, and `reason` says for the journal why
    it is not there.
    """

    item: Registration
    base_slug: str | None = None
    reason: str | None = None

    def because_of(self, conflict: ConflictingKey) -> Placement:
        """The same, since a key is held by somebody else."""
        holder = conflict.holders[0].owner
        return replace(self, reason=f"{self.reason}: {conflict.key} is held by {holder}")


def find_revision(item: Registration) -> Placement | None:
    """A manifest as a revision of its model; None: it may be none, has nothing, or names (with a
    slug so long that it is cut) what would be its own revision."""
    if not item.may_be_revision or not item.artifacts:
        return None
    base_slug = item.artifacts[0].key.slug
    slug = revision_slug(base_slug, ((each.key.filename, each.checksum) for each in item.artifacts))
    if slug == base_slug:
        return None
    artifacts = tuple(replace(each, key=replace(each.key, slug=slug)) for each in item.artifacts)
    return Placement(replace(item, artifacts=artifacts), base_slug, f"revision of {base_slug}")
