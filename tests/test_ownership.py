"""Owners come and go in any order; a model of a few lines says what must be there after each step.

The machine drives one real file, in place and copied, through the in-process registry and the
store's own operations, and closes and reopens it in between.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from registry import MetadataArtifactRegistry
from registry.content.manifest import prepare as prepare_manifest
from registry.content.roots import ArtifactRoots
from registry.core.model_revisions import OnConflict, revision_slug
from registry.core.records import (
    Artifact,
    ArtifactKey,
    Kept,
    Offer,
    Outcome,
    Owner,
    Receipt,
    Registered,
    Registration,
    Source,
    Unregistration,
)
from registry.errors import Conflict, NotRegistered
from registry.store.engine import Engine
from registry.store.opening import open_database
from registry.store.ops import blobs, unregister
from registry.store.ops import register as register_ops
from tests.places import SQLITE, Places, on_both
from tests.support import checksum

pytestmark = on_both

OWNERS = [
    Owner("a", "backend", "generate", 0),
    Owner("a", "backend", "prefill", 0),
    Owner("a", "backend", "generate", 0, "tuned"),
    Owner("b", "backend", "generate", 2**64 - 1),
]
KEYS = [
    ArtifactKey("model", "_base", "config.json"),
    ArtifactKey("model", "_base", "tokenizer.json"),
    ArtifactKey("model", "tuned", "config.json"),
]
CONTENTS = [b"", b"one", b"other"]
PLACES = ["left", "right"]
COPY = None

owners = st.sampled_from(OWNERS)
keys = st.sampled_from(KEYS)
contents = st.sampled_from(CONTENTS)
places = st.sampled_from(PLACES)
manifests = st.dictionaries(
    keys, st.tuples(contents, st.sampled_from([COPY, COPY, *PLACES])), max_size=3
)


@dataclass
class Model:
    """What every key stands for, and who holds it from where: a place, or a copy."""

    entries: dict[ArtifactKey, bytes] = field(default_factory=dict)
    held: dict[Owner, dict[ArtifactKey, str | None]] = field(default_factory=dict)
    revisions: set[ArtifactKey] = field(default_factory=set)
    """Those of the entries that are revisions of "model"."""

    def register(
        self,
        owner: Owner,
        lines: Mapping[ArtifactKey, tuple[bytes, str | None]],
        *,
        as_revision: bool = False,
    ) -> bool:
        for key, (content, _) in lines.items():
            if self.entries.get(key, content) != content and self.holders(key) - {owner}:
                return False
        changed = {
            (key.slug, key.suffix)
            for key, (content, _) in lines.items()
            if self.entries.get(key, content) != content
        }
        if as_revision:
            self.revisions |= lines.keys()
        else:
            self.revisions = {
                each for each in self.revisions if (each.slug, each.suffix) not in changed
            }
        self.entries |= {key: content for key, (content, _) in lines.items()}
        self.held.setdefault(owner, {}).update({key: lines[key][1] for key in lines})
        return True

    def place(
        self, owner: Owner, lines: Mapping[ArtifactKey, tuple[bytes, str | None]]
    ) -> Mapping[ArtifactKey, tuple[bytes, str | None]]:
        """S17: what an owner holds as a revision, or what others hold with other content, goes
        under a slug of its own."""
        moved = {replace(key, slug=slug_of(lines)): line for key, line in lines.items()}
        is_mine = self.held.get(owner, {}).keys() & moved.keys()
        is_free = all(
            self.entries.get(key, content) == content or not self.holders(key) - {owner}
            for key, (content, _) in lines.items()
        )
        return lines if is_free and not is_mine else moved

    def release(self, owner: Owner, keys: Sequence[ArtifactKey]) -> list[ArtifactKey]:
        for key in keys:
            del self.held[owner][key]
        gone = [key for key in keys if not self.holders(key)]
        self.entries = {key: self.entries[key] for key in self.entries if key not in gone}
        self.revisions.difference_update(gone)
        return gone

    def holders(self, key: ArtifactKey) -> set[Owner]:
        return {owner for owner, held in self.held.items() if key in held}

    def copies(self) -> set[bytes]:
        return {
            self.entries[key]
            for held in self.held.values()
            for key, place in held.items()
            if place is COPY
        }


class Ownership(RuleBasedStateMachine):
    """The registry beside the model."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.model = Model()
        self.uploaded: set[bytes] = set()
        """Content that is here: what was uploaded, without what the last ref took along."""
        self.uploads: list[str] = []
        self.grace_over = True
        self.folder = Path(tempfile.mkdtemp(prefix="metadata-registry-tests-"))
        self.places = ExitStack()
        self.place = self.places.enter_context(places.at(self.folder))
        self.place.migrate()
        for place in PLACES:
            for content in CONTENTS:
                self.file(content, place).parent.mkdir(exist_ok=True)
                self.file(content, place).write_bytes(content)
        self.open()

    def file(self, content: bytes, place: str) -> Path:
        return self.folder / place / f"{CONTENTS.index(content)}.json"

    def open(self) -> None:
        self.registry = MetadataArtifactRegistry(self.place.url)
        self.database = open_database(self.place.url)

    def close(self) -> None:
        self.registry.close()
        self.database.close()

    def teardown(self) -> None:
        self.close()
        self.places.close()
        shutil.rmtree(self.folder)

    # Rules

    @initialize(over=st.booleans())
    def set_the_upload_grace(self, over: bool) -> None:
        self.grace_over = over
        with self.place.sql() as connection:
            value = "0" if over else "3600000"
            connection.execute("INSERT INTO settings VALUES ('upload_grace_ms', ?)", [value])

    @rule(content=contents)
    def upload(self, content: bytes) -> None:
        self.store_copy(content)

    @rule(owner=owners, key=keys, content=contents, place=places)
    def register_in_process(
        self, owner: Owner, key: ArtifactKey, content: bytes, place: str
    ) -> None:
        before = self.describe(owner, {key: (content, place)})
        copies = self.model.copies()
        if self.model.register(owner, {key: (content, place)}):
            path = self.file(content, place)
            outcome = self.registry.register(owner, key.slug, key.suffix, key.filename, path)
            assert [outcome] == before
            self.collect(copies)
        else:
            with pytest.raises(Conflict):
                self.registry.register(
                    owner, key.slug, key.suffix, key.filename, self.file(content, place)
                )

    @rule(owner=owners, lines=manifests)
    def register_as_revision_if_need_be(
        self, owner: Owner, lines: dict[ArtifactKey, tuple[bytes, str | None]]
    ) -> None:
        for content, place in lines.values():
            if place is COPY:
                self.store_copy(content)
        placed = self.model.place(owner, lines)
        before = self.describe(owner, placed)
        copies = self.model.copies()
        registration = Registration(
            owner, self.artifacts(lines), lease_ttl_ms=60_000, on_conflict=OnConflict.REVISION
        )
        with self.database.write() as conn:
            outcome = register_ops.register(conn, conn.now, [registration])[0]
        holders = {key: self.model.holders(key) for key in placed}
        if self.model.register(owner, placed, as_revision=placed is not lines):
            assert isinstance(outcome, Registered)
            assert [each.key for each in outcome.artifacts] == list(placed)
            assert [each.outcome for each in outcome.artifacts] == before
            self.collect(copies)
        else:
            # Two files of one name that differ by suffix only may have changed places: the same
            # revision, by its name, with other content.
            self.expect_conflict(outcome, owner, placed, holders)

    @rule(owner=owners, lines=manifests)
    def register_manifest(
        self, owner: Owner, lines: dict[ArtifactKey, tuple[bytes, str | None]]
    ) -> None:
        for content, place in lines.values():
            if place is COPY:
                self.store_copy(content)
        before = self.describe(owner, lines)
        copies = self.model.copies()
        holders = {key: self.model.holders(key) for key in lines}
        registration = Registration(owner, self.artifacts(lines), lease_ttl_ms=60_000)
        with self.database.write() as conn:
            outcome = register_ops.register(conn, conn.now, [registration])[0]
        if self.model.register(owner, lines):
            assert isinstance(outcome, Registered)
            assert [each.outcome for each in outcome.artifacts] == before
            self.collect(copies)
        else:
            self.expect_conflict(outcome, owner, lines, holders)

    @rule(owner=owners, lines=manifests, number=st.integers(0, 3))
    def register_under_the_slug_of_a_revision(
        self, owner: Owner, lines: dict[ArtifactKey, tuple[bytes, str | None]], number: int
    ) -> None:
        slugs = sorted({key.slug for key in self.model.revisions} | {slug_of(lines)})
        slug = slugs[number % len(slugs)]
        self.register_manifest(
            owner, {replace(key, slug=slug): line for key, line in lines.items()}
        )

    @rule(owner=owners)
    def unregister_in_process(self, owner: Owner) -> None:
        expected = self.expect_release_of(owner)
        assert_same_receipt(self.registry.unregister_for_owner(owner), expected)

    @rule(first=owners, second=owners)
    def unregister_two_in_one_list(self, first: Owner, second: Owner) -> None:
        expected = [self.expect_release_of(owner) for owner in (first, second)]
        with self.database.write() as conn:
            items = [Unregistration(first), Unregistration(second)]
            receipts = unregister.unregister(conn, conn.now, items)
        for receipt, each in zip(receipts, expected, strict=True):
            assert_same_receipt(receipt, each)

    @rule(key=keys)
    def remove(self, key: ArtifactKey) -> None:
        copies = self.model.copies()
        model = (key.slug, key.suffix)
        gone = {each for each in self.model.entries if (each.slug, each.suffix) == model}
        released = 0
        for owner, held in self.model.held.items():
            mine = [each for each in held if each in gone]
            self.model.release(owner, mine)
            released += len(mine)
        self.collect(copies)
        receipt = self.registry.unregister(key.slug, key.suffix)
        assert_same_receipt(receipt, Receipt(None, released, tuple(gone)))

    @precondition(lambda self: bool(self.model.entries))
    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    # What the rules need

    def store_copy(self, content: bytes) -> None:
        upload = blobs.Upload(checksum(content), len(content), lambda: content)
        with self.database.write() as conn:
            is_new = blobs.store_blobs(conn, conn.now, [upload])
        assert is_new == [content not in self.uploaded]
        self.uploaded.add(content)
        self.uploads.append(checksum(content))

    def expect_conflict(
        self,
        outcome: object,
        owner: Owner,
        lines: Mapping[ArtifactKey, tuple[bytes, str | None]],
        holders: Mapping[ArtifactKey, set[Owner]],
    ) -> None:
        """S2: every conflict names both contents and who holds the key."""
        assert isinstance(outcome, Conflict)
        assert outcome.conflicts
        for conflict in outcome.conflicts:
            assert conflict.registered == checksum(self.model.entries[conflict.key])
            assert conflict.offered == checksum(lines[conflict.key][0])
            named = {holder.owner for holder in conflict.holders}
            assert named == holders[conflict.key] - {owner}

    def artifacts(
        self, lines: Mapping[ArtifactKey, tuple[bytes, str | None]]
    ) -> tuple[Artifact, ...]:
        offers = [
            Offer(key, checksum=checksum(content))
            if place is COPY
            else Offer(key, path=str(self.file(content, place)))
            for key, (content, place) in lines.items()
        ]
        return prepare_manifest(
            offers, ArtifactRoots(None), max_blob_bytes=1000, max_manifest_bytes=3000
        )

    def describe(
        self, owner: Owner, lines: Mapping[ArtifactKey, tuple[bytes, str | None]]
    ) -> list[Outcome]:
        """What registering the lines is going to do to each entry, unless it is refused."""
        held = self.model.held.get(owner, {})
        return [
            Outcome.CREATED
            if key not in self.model.entries
            else Outcome.REPLACED
            if self.model.entries[key] != content
            else Outcome.UNCHANGED
            if key in held
            else Outcome.SHARED
            for key, (content, _) in lines.items()
        ]

    def expect_release_of(self, owner: Owner) -> Receipt:
        """Release it in the model."""
        copies = self.model.copies()
        mine = list(self.model.held.get(owner, {}))
        removed = self.model.release(owner, mine)
        self.model.held.pop(owner, None)
        self.collect(copies)
        kept = [Kept(key, len(self.model.holders(key))) for key in mine if key not in removed]
        return Receipt(owner, len(mine), tuple(removed), tuple(kept))

    def collect(self, copies_before: set[bytes]) -> None:
        """With the upload grace over, content goes with the last copied ref to it."""
        if self.grace_over:
            self.uploaded -= copies_before - self.model.copies()

    # What must hold after each step

    @invariant()
    def the_tables_agree_with_the_model(self) -> None:
        model = self.model
        with self.place.sql() as connection:
            entries = connection.execute(
                "SELECT slug, suffix, filename, checksum, size, base_slug FROM entries"
            ).fetchall()
            refs = connection.execute(
                "SELECT namespace, component, endpoint, instance_id, lora_slug, "
                "slug, suffix, filename, path, blob_checksum FROM owner_refs "
                "JOIN owners ON owners.id = owner_id JOIN entries ON entries.id = entry_id"
            ).fetchall()
            copies = connection.execute("SELECT checksum FROM blobs").fetchall()
            live = connection.execute("SELECT count(*) FROM owners WHERE state = 'active'")
            assert live.fetchone() == (len(model.held),)
        assert sorted(entries) == sorted(
            (
                *(*name_of(key), checksum(content), len(content)),
                "model" if key in model.revisions else None,
            )
            for key, content in model.entries.items()
        )
        assert set(refs) == {
            (
                *(owner.namespace, owner.component, owner.endpoint),
                *(str(owner.instance_id), owner.lora_slug or ""),
                *(key.slug, key.suffix, key.filename),
                *self.source(key, place),
            )
            for owner, held in model.held.items()
            for key, place in held.items()
        }
        assert len(refs) == sum(map(len, model.held.values()))
        assert {name for (name,) in copies} == {checksum(content) for content in self.uploaded}

    def source(self, key: ArtifactKey, place: str | None) -> tuple[str | None, str | None]:
        content = self.model.entries[key]
        return (
            (None, checksum(content)) if place is COPY else (str(self.file(content, place)), None)
        )

    @invariant()
    def the_registry_answers_as_the_model_would(self) -> None:
        assert len(self.registry) == len(self.model.entries)
        assert self.registry.is_empty() == (not self.model.entries)
        for key in {*KEYS, *self.model.entries}:
            name = name_of(key)
            explanation = self.registry.explain(*name)
            if key not in self.model.entries:
                assert explanation.entry is None
                assert self.registry.get(*name) is None
                with pytest.raises(NotRegistered):
                    self.registry.read(*name)
                continue
            holders = self.model.holders(key)
            assert explanation.entry is not None
            assert explanation.entry.holders == len(holders)
            assert {holder.owner for holder in explanation.holders} == holders
            assert self.registry.read(*name) == self.model.entries[key]
            in_place = [each.path for each in explanation.holders if each.source is Source.IN_PLACE]
            found = self.registry.get(*name)
            assert (str(found) in in_place) if in_place else found is None

    @invariant()
    def the_journal_tells_the_same_story(self) -> None:
        """S14: played back, the events come to what is there."""
        entries: set[tuple[str, ...]] = set()
        held: set[tuple[str, ...]] = set()
        live: set[tuple[str, ...]] = set()
        with self.place.sql() as connection:
            events = connection.execute(
                "SELECT kind, namespace, component, endpoint, instance_id, lora_slug, "
                "slug, suffix, filename FROM events WHERE kind <> 'uploaded' ORDER BY id"
            ).fetchall()
            uploads = connection.execute(
                "SELECT checksum FROM events WHERE kind = 'uploaded' ORDER BY id"
            ).fetchall()
            ((growth,),) = connection.execute("SELECT COALESCE(SUM(growth), 0) FROM journal")
            ((size,),) = connection.execute("SELECT COALESCE(SUM(size), 0) FROM entries")
        assert [each for (each,) in uploads] == self.uploads
        assert growth == size
        for kind, *names in events:
            owner, key = tuple(names[:5]), tuple(names[5:])
            if kind == "created":
                assert key not in entries
                entries.add(key)
            elif kind == "removed":
                entries.remove(key)
            elif kind == "registered":
                held.add(owner + key)
            elif kind == "released":
                held.remove(owner + key)
            elif kind == "attached":
                assert owner not in live
                live.add(owner)
            elif kind == "detached":
                live.remove(owner)
            elif kind == "replaced":
                held.add(owner + key)
            else:
                assert kind == "refused"
        model = self.model
        assert entries == {(key.slug, key.suffix, key.filename) for key in model.entries}
        assert len(held) == sum(map(len, model.held.values()))
        assert len(live) == len(model.held)

    @invariant()
    def the_database_is_sound(self) -> None:
        self.place.assert_sound()


def slug_of(lines: Mapping[ArtifactKey, tuple[bytes, str | None]]) -> str:
    """The slug that a manifest of "model" has as a revision."""
    files = [(key.filename, checksum(content)) for key, (content, _) in lines.items()]
    return revision_slug("model", files)


def name_of(key: ArtifactKey) -> tuple[str, str, str]:
    return key.slug, key.suffix, key.filename


def assert_same_receipt(receipt: Receipt, expected: Receipt) -> None:
    assert receipt.owner == expected.owner
    assert receipt.released == expected.released
    assert sorted(receipt.removed) == sorted(expected.removed)
    assert sorted(receipt.kept, key=by_key) == sorted(expected.kept, key=by_key)


def by_key(kept: Kept) -> ArtifactKey:
    return kept.key


@pytest.mark.timeout(900)  # To make a failing example small takes minutes.
def test_after_every_step_there_is_what_the_owners_left_and_nothing_else(places: Places) -> None:
    """S1 to S7: entries, refs, copies, counts, receipts and answers, restarts included."""
    part = 2 if places.engine == SQLITE else 20
    few = settings(max_examples=max(1, settings().max_examples // part))
    run_state_machine_as_test(partial(Ownership, places), settings=few)  # type: ignore[arg-type]


def test_a_repeated_upload_protects_content_for_another_grace_period(database: Engine) -> None:
    """Between somebody's upload and registration nobody's removal may take the content."""
    grace_ms = 1000
    content = CONTENTS[1]
    item = blobs.Upload(checksum(content), len(content), lambda: content)
    registration = Registration(OWNERS[0], (Artifact(KEYS[0], checksum(content)),))

    def unregister_after(again_at: int | None, at: int) -> bool:
        """Whether the content is still there."""
        with database.write() as conn:
            conn.run_text("DELETE FROM blobs")
            blobs.store_blobs(conn, 0, [item])
            register_ops.register(conn, 0, [registration])
            if again_at is not None:
                assert blobs.store_blobs(conn, again_at, [item]) == [False]
            unregister.unregister(conn, at, [Unregistration(OWNERS[0])])
            return blobs.find_content(conn, checksum(content)) is not None

    with database.write() as conn:
        conn.run_text("INSERT INTO settings VALUES ('upload_grace_ms', :ms)", {"ms": str(grace_ms)})
    assert unregister_after(None, grace_ms - 1)
    assert not unregister_after(None, grace_ms)
    assert unregister_after(500, grace_ms)
    assert unregister_after(500, grace_ms + 499)
    assert not unregister_after(500, grace_ms + 500)
