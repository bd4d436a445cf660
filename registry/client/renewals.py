"""The thread that renews the leases of a worker. Nothing ends it but `close`.

It waits for nothing but the registry, and for that only a share of the lease: what else is to be
done, publishing and registering again, telling the caller, is done in other threads.

At each beat one call renews all models whose last renewal succeeded. A model whose renewal failed,
alone or with all of its call, is asked for by itself and last, until one succeeds: so it takes no
time from the others, and a call that one model spoils is made once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from registry.client.lifecycle import find_pause_s
from registry.client.worker_log import log

CLOSED_WITHIN_S = 5.0
SHORTEST_SHARE_S = 0.5
TOGETHER_MAX = 1000
"""How many models are renewed by one call."""


class Renewable(Protocol):
    """What is renewed: its last attempt, and how many have failed since one succeeded."""

    asked_at: float
    failures: int


T = TypeVar("T", bound=Renewable)


class RenewalLoop(Generic[T]):
    """Looks after models in turn, from `start` until `close`.

    Args:
        models: those there are now.
        renew: renews one within so many seconds; raises what went wrong.
        renew_many: renews several within so many seconds; what went wrong with each, or None: they
            have to be renewed one by one. Raises what went wrong with all.
        note: told when renewals begin to fail and when they succeed again.
    """

    def __init__(
        self,
        lease_ttl_s: float,
        models: Callable[[], Sequence[T]],
        renew: Callable[[T, float], None],
        renew_many: Callable[[Sequence[T], float], Sequence[Exception | None] | None],
        note: Callable[[BaseException | None], None],
    ) -> None:
        self._lease_ttl_s = lease_ttl_s
        self._models = models
        self._renew = renew
        self._note = note
        self._renew_many = renew_many
        self._closing = threading.Event()
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def start(self) -> None:
        """Begin, unless it has begun.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._lock:
            if self.thread is None:
                thread = threading.Thread(target=self._run, name="registry-worker", daemon=True)
                thread.start()
                self.thread = thread

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond `close`."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Begin no renewal any more. One that is under way is waited for at most 5 s."""
        self._closing.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(CLOSED_WITHIN_S)

    def _run(self) -> None:
        all_is_well = True
        while not self._closing.is_set():
            # Whatever goes wrong here, memory that is short included, must not end the thread.
            try:
                self._closing.wait(find_pause_s(self._lease_ttl_s, all_is_well=all_is_well))
                error = self._renew_all()
                if (error is None) != all_is_well and not self._closing.is_set():
                    all_is_well = error is None
                    self._note(error)
            except BaseException:
                all_is_well = False
                with suppress(BaseException):
                    log.exception("renewing the leases of this worker failed; retrying")
                with suppress(BaseException):
                    time.sleep(min(1.0, self._lease_ttl_s / 12))

    def _renew_all(self) -> BaseException | None:
        """Renew every model, those that failed last; what went wrong, if anything did.

        What fails takes a third of the lease at most, all together.
        """
        failed: BaseException | None = None
        lost_s, budget_s = 0.0, self._lease_ttl_s / 3
        waiting = deque(self._groups())
        while waiting and not self._closing.is_set() and lost_s < budget_s:
            models, began = waiting.popleft(), time.monotonic()
            outcomes = self._ask(models)
            if outcomes is None:
                waiting.extendleft([each] for each in reversed(models))
                continue
            for model, error in zip(models, outcomes, strict=True):
                model.failures = 0 if error is None else model.failures + 1
                failed = error or failed
            if any(outcomes):
                lost_s += time.monotonic() - began
        return failed

    def _groups(self) -> Iterator[list[T]]:
        """The models in the order in which they are renewed, those together that may be."""
        models = sorted(self._models(), key=lambda each: (each.failures > 0, each.asked_at))
        well = [each for each in models if not each.failures]
        yield from (well[at : at + TOGETHER_MAX] for at in range(0, len(well), TOGETHER_MAX))
        yield from ([each] for each in models[len(well) :])

    def _ask(self, models: list[T]) -> Sequence[Exception | None] | None:
        """Renew models; what went wrong with each. None: that is to be done one by one."""
        for model in models:
            model.asked_at = time.monotonic()
        try:
            if len(models) > 1:
                return self._renew_many(models, max(SHORTEST_SHARE_S, self._lease_ttl_s / 6))
            self._renew(models[0], max(SHORTEST_SHARE_S, self._lease_ttl_s / 4))
        except Exception as error:
            return [error] * len(models)
        return [None]
