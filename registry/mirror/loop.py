"""The mirror itself: plans whenever something changed, and has the steps done, a few at a time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from types import TracebackType
from typing import Self

from registry.client.client import RegistryClient
from registry.client.retries import RetryPolicy
from registry.core import background
from registry.core.records import Owner, OwnerState
from registry.core.text import shown_url
from registry.discovery import Kind, RawStore, Rewriting, open_discovery
from registry.discovery.file import FileDiscovery
from registry.errors import RegistryError, SettingsError
from registry.mirror.contents import Contents
from registry.mirror.following import PROBE, CardReader, Following
from registry.mirror.jobs import OF_THE_REGISTRY, Jobs
from registry.mirror.ledger import Ledger
from registry.mirror.mirrored_card import HereUrls, MirroredCard
from registry.mirror.origins import Origins
from registry.mirror.plan import MirrorPlan, MirrorPolicy, Step, find_step, make_plan
from registry.mirror.relay import Relay
from registry.mirror.renewing import Renewing
from registry.mirror.settings import MirrorMode, MirrorSettings
from registry.mirror.status import MirrorReport, MirrorStatus, owners_in_words

STEPS_AT_ONCE = 16
"""How many owners are worked on at the same time."""

PLAN_EVERY_S = 1.0
PLAN_PAUSE_S = 0.02
TIMEOUT_S = 15.0
START_AGAIN_S = 2.0
CLOSE_MAX_S = 3.0

log = logging.getLogger("registry.mirror")


class Mirror:
    """A mirror at work in threads of its own, from `start` until `close`.

        with Mirror(MirrorSettings("etcd://etcd:2379", "http://registry:8090")):
            ...

    After `close` everything that was registered stays until its leases are over, or until another
    mirror of the same store takes it on. Several mirrors of a store may be at work at once.

    Args:
        at_point: called with the name of each place where it may be killed; for tests.

    Raises:
        SettingsError: store or registry cannot be used as they are named.
    """

    def __init__(
        self, settings: MirrorSettings, *, at_point: Callable[[str], None] = lambda name: None
    ) -> None:
        self._settings = settings
        self._policy = MirrorPolicy.of(settings)
        self._store = open_discovery(settings.discovery)
        self._target = None if settings.to is None else open_discovery(settings.to)
        self._client = RegistryClient(
            settings.url,
            token=settings.token,
            ca_file=settings.ca_file,
            timeout_s=TIMEOUT_S,
            retries=RetryPolicy(attempts=2, give_up_after_s=5.0),
        )
        if isinstance(self._store, FileDiscovery) and not self._store.root.is_dir():
            log.warning("the directory %s does not exist yet: no card is there", self._store.root)
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._status = MirrorStatus()
        self._ledger = Ledger(time.monotonic, self._changed.set)
        here = HereUrls(settings.base_url, self._client.url)
        origins = Origins(
            local_roots=settings.local_roots,
            max_bytes=settings.file_max_bytes,
            ca_file=settings.ca_file,
        )
        contents = Contents(self._client, origins, self._ledger, self._status.fetched)
        self._reader = CardReader(settings, self._ledger, here, self._status)
        self._relay = self._open_relay()
        watch = partial(self._store.watch, Kind.MODEL) if self._relay is None else self._relay.cards
        self._following = Following(self._store, watch, self._reader, self._ledger, self._status)
        self._renewing = Renewing(settings, self._client, self._ledger, self._status)
        self._jobs = Jobs(
            *(
                settings,
                self._client,
                self._store,
                self._target,
                self._ledger,
                contents,
                here,
                self._status,
            ),
            at_point=at_point,
        )
        self._due: queue.SimpleQueue[tuple[Step, Owner] | None] = queue.SimpleQueue()
        self._queued: set[Owner] = set()
        self._threads: list[Future[None]] = []

    def _open_relay(self) -> Relay | None:
        """What copies all that is no card, for a bridge; and whether the stores can do it."""
        mode = self._settings.mode
        if mode is MirrorMode.REWRITE and not isinstance(self._store, Rewriting):
            raise SettingsError(
                "The cards of this store cannot be changed where they are. Use mode copy."
            )
        if self._target is None:
            return None
        if not isinstance(self._store, RawStore) or not isinstance(self._target, RawStore):
            raise SettingsError(
                "A bridge goes from etcd or files to etcd or files; one of these stores is neither."
            )
        return Relay(self._settings, self._store, self._target, self._status)

    # From start to end

    def start(self) -> Self:
        """Begin; returns at once. What cannot be reached yet is waited for."""
        self._threads.append(background.begin(self._run, "registry-mirror"))
        return self

    def close(self) -> None:
        """Stop. What is under way has three seconds to end; nothing is taken back."""
        self._status.is_over = True
        self._closed.set()
        self._changed.set()
        self._following.close()
        self._renewing.close()
        if self._relay is not None:
            self._relay.close()
        for _ in range(STEPS_AT_ONCE):
            self._due.put(None)
        relaying = self._relay.threads if self._relay is not None else []
        wait([*self._threads, *relaying, *self._renewing.threads], CLOSE_MAX_S)
        for store in (self._store, self._target):
            if store is not None:
                store.close()
        wait(self._following.threads, CLOSE_MAX_S)
        self._client.close()

    def run_once(self, say: Callable[[str], None] = log.info) -> MirrorReport:
        """Take the cards that are live now, and do what is to be done about them, once.

        Cards that are gone are looked for again when `linger_s` is over.

        Args:
            say: told what it waits for, if it does.

        Raises:
            RegistryError: the store or the registry cannot be used at all.
        """
        self._status.is_once = True
        self._adopt()
        self._following.list_once()
        if gone := self._ledger.counts().lingering:
            cards = "1 card comes" if gone == 1 else f"{gone} cards come"
            say(f"waiting {self._policy.linger_s:g} s to see whether {cards} back")
        self._start_workers()
        while not (plan := self._plan()).settled:
            pause_s = min(PLAN_EVERY_S, max(PLAN_PAUSE_S, plan.next_at - _now()))
            self._changed.wait(pause_s)
            self._changed.clear()
            if plan.next_at <= _now():
                # What is due may be another thing by now.
                self._following.list_once()
        return self.report()

    def preview(self) -> list[tuple[str, Owner, str]]:
        """What there is to do: a step, or `refuse`, the owner, and the files or the reason. What
        comes after the first step of an owner is not told. Nothing is changed.

        Raises:
            RegistryError: a store or the registry cannot be used.
        """
        self._adopt()
        self._following.list_once()
        if self._target is not None:
            self._target.find(PROBE)
        self._jobs.look_at_adopted()
        found: list[tuple[str, Owner, str]] = []
        for owner, standing in sorted(self._ledger.standings().items()):
            step = find_step(standing, self._settings.mode)
            card, refusal = self._ledger.card_of(owner)
            if refusal:
                found.append(("refuse", owner, refusal))
            elif step is Step.UNREGISTER:
                found.append(
                    (step, owner, f"unless its card is back in {self._policy.linger_s:g} s")
                )
            elif step is not None and card is not None:
                found.append((step, owner, _files_of(card)))
        return found

    def report(self) -> MirrorReport:
        """How it is doing."""
        return self._status.report(self._ledger.counts())

    def problem_of(self, owner: Owner) -> str | None:
        """Why the card of an owner is not mirrored, or None: nothing is wrong with it."""
        return self._status.problem_of(owner)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # In its own thread

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._adopt()
                break
            except OF_THE_REGISTRY as error:
                self._status.note_registry(error)
            except RegistryError as error:
                log.error("the registry does not tell what it holds; retrying: %s", error.detail)
            self._closed.wait(START_AGAIN_S)
        if self._closed.is_set():
            return
        if self._relay is not None:
            self._relay.start()
        self._following.start()
        self._renewing.start()
        self._start_workers()
        while not self._closed.is_set():
            started = _now()
            plan = self._plan()
            pause_s = max(PLAN_PAUSE_S, 4 * (_now() - started))
            self._closed.wait(pause_s)
            self._changed.wait(max(0.0, min(PLAN_EVERY_S, plan.next_at - _now())))
            self._changed.clear()

    def _adopt(self) -> None:
        """Take on what earlier mirrors of this store registered.

        Raises:
            RegistryError: the registry does not tell.
        """
        adopted = 0
        for record in self._client.owners():
            owner = record.owner
            is_ours = record.worker_name == self._settings.worker_name(owner)
            is_there = record.state in (OwnerState.ACTIVE, OwnerState.DRAINING)
            if is_ours and is_there and self._settings.looks_at(owner):
                self._ledger.adopt(owner)
                adopted += 1
        self._status.answered()
        if adopted:
            log.info("took on %s that an earlier mirror registered", owners_in_words(adopted))

    def _plan(self) -> MirrorPlan:
        """Plan, and queue what is due."""
        plan = make_plan(self._ledger.standings(), _now(), self._policy)
        self._status.note_held_back(plan.held_back)
        for item in plan.steps:
            if item[1] not in self._queued:
                self._queued.add(item[1])
                self._due.put(item)
        return plan

    def _start_workers(self) -> None:
        for _ in range(STEPS_AT_ONCE):
            self._threads.append(background.begin(self._work, "registry-mirror-step"))

    def _work(self) -> None:
        while (item := self._due.get()) is not None and not self._closed.is_set():
            try:
                self._jobs.run(*item)
            finally:
                self._queued.discard(item[1])
                self._changed.set()


def _now() -> float:
    return time.monotonic()


def _files_of(card: MirroredCard) -> str:
    """The files of a card in a line."""
    first = next((source for file in card.files for source in file.sources), "")
    files = "1 file" if len(card.files) == 1 else f"{len(card.files)} files"
    return f"{files} under {card.slug}, as {shown_url(first)}"
