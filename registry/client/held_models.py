"""What a worker holds: its models, and how far each of them is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from registry.client.attach import Manifest
from registry.client.lifecycle import ModelState
from registry.core.records import Owner
from registry.discovery.cards import Card
from registry.errors import Busy, RegistryError


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What a model was called when it was attached."""

    base: str
    lora: str | None


class HeldModel:
    """A model of a worker. Its lock is held while the registry is changed for it.

    Args:
        lock_timeout_s: how long to wait for another thread that has the lock.
    """

    def __init__(self, owner: Owner, lock_timeout_s: float) -> None:
        self.owner = owner
        self._lock_timeout_s = lock_timeout_s
        self._lock = threading.Lock()
        self.state = ModelState.REGISTERING
        self.names: ModelNames | None = None
        self.manifest: Manifest | None = None
        self.card: Card | None = None
        self.make_card: Callable[[Manifest], Card] | None = None
        self.card_is_old = False
        """Whether its files are elsewhere by now than the card says that was published last."""
        self.refs = 0
        """How many refs the registry has for it when all is well."""
        self.refs_seen = 0
        """How many it told of last."""
        self.refusal: RegistryError | None = None
        self.asked_at = 0.0
        self.failures = 0
        self.unserveable = 0
        self.is_in_repair = False
        self.trouble: Exception | None = None
        """What kept it from being put right the last time."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, which another thread may have while it registers the model.

        Raises:
            Busy: the other thread did not release it in time.
        """
        if not self._lock.acquire(timeout=self._lock_timeout_s):
            raise Busy(f"{self.owner} is just being registered; try again.")
        try:
            yield
        finally:
            self._lock.release()


class HeldModels:
    """The models of a worker by suffix: those that are attached, or left half-way.

    Threads may add and remove models while others look at them.
    """

    def __init__(self, lock_timeout_s: float) -> None:
        self._lock_timeout_s = lock_timeout_s
        self._by_suffix: dict[str, HeldModel] = {}

    def all(self) -> list[HeldModel]:
        """Those that are there now."""
        return list(self._by_suffix.values())

    def states(self) -> dict[str, ModelState]:
        """How far each of them is, by suffix."""
        return {suffix: model.state for suffix, model in list(self._by_suffix.items())}

    def find(self, owner: Owner) -> HeldModel | None:
        """The model of an owner."""
        return self._by_suffix.get(owner.suffix)

    def new(self, owner: Owner) -> HeldModel:
        """A model that is not held yet: see `add`."""
        return HeldModel(owner, self._lock_timeout_s)

    def add(self, model: HeldModel) -> None:
        """Hold a model."""
        self._by_suffix[model.owner.suffix] = model

    def find_or_add(self, owner: Owner) -> HeldModel:
        """The model of an owner, which is held from now on."""
        return self._by_suffix.setdefault(owner.suffix, self.new(owner))

    def remove(self, model: HeldModel) -> None:
        """Hold a model no more."""
        self._by_suffix.pop(model.owner.suffix, None)

    def others_may_be_live(self, model: HeldModel) -> bool:
        """Whether the card of another model is live or may be."""
        return any(each.state.may_be_live for each in self.all() if each is not model)
