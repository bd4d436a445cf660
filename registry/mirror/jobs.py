"""One step for one owner: what it does in the registry and in the store, and what is known then.

A step looks at what is there before it changes anything, and may be broken off anywhere: what was
done stays, and the rest is planned again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from registry.client.client import RegistryClient
from registry.core.model_revisions import OnConflict
from registry.core.records import Offer, Owner, OwnerState, Registered
from registry.discovery import Discovery, Kind, Record, RecordKey, Rewriting
from registry.errors import (
    Busy,
    ContentMissing,
    Internal,
    Refused,
    RegistryError,
    ServiceUnreachable,
    StorageUnavailable,
    Unauthenticated,
    UnknownOwner,
    UploadsPending,
)
from registry.mirror.contents import Contents, UnderWay
from registry.mirror.following import version_of
from registry.mirror.ledger import Ledger, NotWanted
from registry.mirror.mirrored_card import HereUrls, MirroredCard, pointed_here
from registry.mirror.origins import NotFetched
from registry.mirror.plan import Step
from registry.mirror.settings import MIRROR_PREFIX, MirrorSettings
from registry.mirror.status import MirrorStatus

UPLOAD_ROUNDS = 3
"""How often content may turn out to be missing: others may release it between two offers."""

UNDER_WAY_PAUSE_S = 0.1
SHORTAGE_PAUSE_S = 2.0
CHANGED_PAUSE_S = 0.5
"""How long the store has to tell of a card that is another one by now."""

OF_THE_REGISTRY = (
    *(Busy, Internal, ServiceUnreachable, StorageUnavailable, Unauthenticated, UploadsPending),
)
"""What a registry fails with whoever the owner is."""

log = logging.getLogger("registry.mirror")

Point = Callable[[str], None]
"""Called with the name of each place where a mirror may be killed; tests do that."""


class Jobs:
    """Does the steps of a plan. Used by several threads, each for another owner."""

    def __init__(
        self,
        settings: MirrorSettings,
        client: RegistryClient,
        store: Discovery,
        target: Discovery | None,
        ledger: Ledger,
        contents: Contents,
        here: HereUrls,
        status: MirrorStatus,
        at_point: Point = lambda name: None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._store = store
        self._target = target
        self._ledger = ledger
        self._contents = contents
        self._here = here
        self._status = status
        self._at_point = at_point

    def run(self, step: Step, owner: Owner) -> None:
        """Do a step, if it is still wanted. What it fails with is noted and not raised."""
        try:
            card = self._ledger.begin(owner, step, self._settings.mode)
        except NotWanted:
            return
        try:
            self._do(step, owner, card)
        except UnderWay:
            self._ledger.postpone(owner, UNDER_WAY_PAUSE_S)
        except OF_THE_REGISTRY as error:
            self._status.note_registry(error)
            self._ledger.fail(owner, SHORTAGE_PAUSE_S)
        except (NotFetched, RegistryError) as error:
            self._fail(step, owner, getattr(error, "detail", None) or str(error))
        except Exception as error:
            self._fail(step, owner, f"{type(error).__name__}: {error}")
            log.debug("%s of %s failed", step, owner, exc_info=True)

    def look_at_adopted(self) -> None:
        """What earlier mirrors registered and live cards name is known to be held, if it is whole.

        Raises:
            RegistryError: the registry cannot be asked.
        """
        for owner in self._ledger.adopted():
            card, _ = self._ledger.card_of(owner)
            if card is None:
                continue
            try:
                entries = self._client.owner(owner).entries
            except UnknownOwner:
                continue
            held = {(each.key, each.checksum) for each in entries}
            for slug in (card.slug, card.revision_slug):
                keys = {file.filename: card.key(file, slug) for file in card.files}
                if held == {(keys[file.filename], file.checksum) for file in card.files}:
                    urls = {name: self._here.url_of(key, owner) for name, key in keys.items()}
                    self._ledger.end(owner, held=card.digest, urls=urls)

    def _fail(self, step: Step, owner: Owner, why: str) -> None:
        self._ledger.fail(owner)
        self._status.tell(owner, f"cannot {_AIMS[step]}: {why}")

    def _do(self, step: Step, owner: Owner, card: MirroredCard | None) -> None:
        if step is Step.UNREGISTER:
            self._unregister(owner)
        elif step is Step.REGISTER and card is not None:
            self._register(card)
        elif step is Step.REWRITE:
            self._rewrite(owner)
        elif step is Step.PUBLISH and self._target is not None:
            self._publish(owner, card, self._target)
        elif step is Step.WITHDRAW and self._target is not None:
            self._target.withdraw(RecordKey(Kind.MODEL, owner))
            self._at_point("withdrawn")
            self._ledger.end(owner, passed=None)

    # In the registry

    def _register(self, card: MirroredCard) -> None:
        if not self._ledger.is_held(card.owner):
            self._check_free(card.owner)
        registered = self._hold(card)
        self._status.answered()
        self._at_point("registered")
        urls = {
            each.key.filename: self._here.url_of(each.key, card.owner)
            for each in registered.artifacts
        }
        is_revision = any(each.key.slug != card.slug for each in registered.artifacts)
        self._ledger.end(card.owner, held=card.digest, urls=urls, is_revision=is_revision)
        self._status.untell(card.owner)

    def _check_free(self, owner: Owner) -> None:
        """Raise Refused if a worker of the registry has registered this owner: what it holds, its
        name and its lease are its own, whatever stands in a card."""
        try:
            record = self._client.owner(owner).record
        except UnknownOwner:
            return
        is_mirrored = (record.worker_name or "").startswith(MIRROR_PREFIX)
        if not record.state.ended and not is_mirrored:
            raise Refused(
                "its owner is registered by a worker of the registry. Its card names the registry "
                "by another URL than --url and --public-url"
            )

    def _hold(self, card: MirroredCard) -> Registered:
        """Register the files of a card for its owner, and bring in what the registry lacks."""
        offers = [Offer(card.key(file), None, file.checksum) for file in card.files]
        for _ in range(UPLOAD_ROUNDS):
            try:
                return self._offer(card, offers)
            except ContentMissing as error:
                missing = set(error.missing)
            wanted = {file.checksum: file for file in card.files if file.checksum in missing}
            for file in wanted.values():
                self._at_point("fetch")
                self._contents.bring(file)
                self._at_point("uploaded")
        return self._offer(card, offers)

    def _offer(self, card: MirroredCard, offers: list[Offer]) -> Registered:
        return self._client.register(
            card.owner,
            offers,
            lease_ttl_s=self._settings.lease_ttl_s,
            worker_name=self._settings.worker_name(card.owner),
            on_conflict=OnConflict.REVISION,
            as_revision=card.as_revision,
        )

    def _unregister(self, owner: Owner) -> None:
        """Release what a mirror registered for an owner; what anybody else did stays."""
        try:
            record = self._client.owner(owner).record
            is_ours = record.worker_name == self._settings.worker_name(owner)
            is_there = record.state in (OwnerState.ACTIVE, OwnerState.DRAINING)
        except UnknownOwner:
            is_ours = is_there = False
        self._status.answered()
        self._at_point("unregister")
        if is_ours and is_there:
            receipt = self._client.unregister_for_owner(owner)
            log.info("%s is gone; files of it that are released: %d", owner, receipt.released)
        self._at_point("unregistered")
        self._ledger.end(owner, held=None, urls={}, is_revision=False)

    # In the store

    def _rewrite(self, owner: Owner) -> None:
        """Make the live card name the registry, where it is, if it is still the one that is known.
        Whoever published it keeps it live, or lets it lapse."""
        record = self._find_known(owner)
        if record is not None and isinstance(self._store, Rewriting):
            changed = pointed_here(record, self._ledger.urls_of(owner))
            self._at_point("rewrite")
            if self._store.replace(record, changed):
                self._at_point("rewritten")
                self._ledger.note_rewrite(owner)
        # The store tells what is live now. Only what it tells is known: a card that its worker
        # publishes again at once may look to it as if nothing had happened.
        self._ledger.postpone(owner, CHANGED_PAUSE_S)

    def _publish(self, owner: Owner, card: MirroredCard | None, target: Discovery) -> None:
        """Publish a live card in the second store. Where its worker registered its files itself, it
        is published as it is."""
        record = self._find_known(owner)
        if record is None:
            self._ledger.postpone(owner, CHANGED_PAUSE_S)
            return
        version = version_of(record)
        if card is not None:
            record = pointed_here(record, self._ledger.urls_of(owner))
        self._at_point("publish")
        target.publish(record)
        self._at_point("published")
        self._ledger.end(owner, passed=version)
        self._status.untell(owner)

    def _find_known(self, owner: Owner) -> Record | None:
        """The live card of an owner, unless it is another one than is known."""
        record = self._store.find(RecordKey(Kind.MODEL, owner))
        if record is None or version_of(record) != self._ledger.version_of(owner):
            return None
        return record


_AIMS = {
    Step.REGISTER: "be mirrored",
    Step.REWRITE: "be rewritten",
    Step.PUBLISH: "be passed on",
    Step.WITHDRAW: "be withdrawn",
    Step.UNREGISTER: "be unregistered",
}
