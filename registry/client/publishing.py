"""Where a worker's records are published, one after the other, and never waited for without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit

from registry.core import background
from registry.core.records import Owner
from registry.discovery import (
    Discovery,
    Kind,
    RecordKey,
    instance_key,
    instance_record,
    model_record,
    open_discovery,
)
from registry.discovery.cards import Card
from registry.errors import DiscoveryUnavailable, Invalid
from registry.network.environment import is_loopback

T = TypeVar("T")

LONGEST_S = 15.0
"""How long a store may take for one thing that is asked of it."""


class CardPublisher:
    """Publishes the cards of a worker, and with an address its instance.

    A store that does not answer is given up after 15 s. What it was asked for may still happen;
    nothing else is asked of it before.

    Args:
        discovery: a store or its URL; None publishes nothing. Only a store that was given as a URL
            is closed.
    """

    def __init__(self, discovery: Discovery | str | None, address: str | None) -> None:
        self._is_ours = isinstance(discovery, str)
        self._discovery = open_discovery(discovery) if isinstance(discovery, str) else discovery
        self._address = address
        self._free = threading.Lock()

    @property
    def is_used(self) -> bool:
        """Whether anything is published."""
        return self._discovery is not None

    def publish(self, owner: Owner, card: Card, still_wanted: Callable[[], bool]) -> None:
        """Publish a model's card, and the instance before it, if it is wanted by then.

        Raises:
            DiscoveryUnavailable: it may be live or not.
        """

        def work(discovery: Discovery) -> None:
            if not still_wanted():
                return
            if self._address is not None:
                discovery.publish(instance_record(owner, self._address))
            discovery.publish(model_record(owner, card))

        self._ask(f"The card of {owner} cannot be published", work)

    def withdraw(self, owner: Owner, *, and_instance: bool) -> None:
        """Withdraw a model's card, and the instance after it if that was the last.

        Raises:
            DiscoveryUnavailable: it may be live or not.
        """

        def work(discovery: Discovery) -> None:
            discovery.withdraw(RecordKey(Kind.MODEL, owner))
            if and_instance and self._address is not None:
                discovery.withdraw(instance_key(owner))

        self._ask(f"The card of {owner} cannot be withdrawn", work)

    def close(self) -> None:
        """Let go of the store, and do not wait long for it."""
        if self._is_ours:
            with suppress(DiscoveryUnavailable):
                self._ask("The store cannot be closed", lambda discovery: discovery.close())

    def find_name(self, owner: Owner) -> str | None:
        """The name in the card that is live for an owner, whoever published it.

        Raises:
            DiscoveryUnavailable: nobody knows.
        """
        key = RecordKey(Kind.MODEL, owner)
        record = self._ask(
            f"The card of {owner} cannot be read", lambda discovery: discovery.find(key)
        )
        try:
            return None if record is None else record.card.name or None
        except Invalid:
            return None

    def _ask(self, what: str, work: Callable[[Discovery], T]) -> T | None:
        """Let the store do something; without a store nothing is done. What is given up before it
        was begun is not done any more, so that it cannot come behind what is asked for next."""
        discovery = self._discovery
        if discovery is None:
            return None
        given_up = threading.Event()

        def run() -> T:
            if not self._free.acquire(timeout=LONGEST_S):
                raise DiscoveryUnavailable(f"{what}: the store is busy.")
            try:
                if given_up.is_set():
                    raise DiscoveryUnavailable(f"{what}: it was given up.")
                return work(discovery)
            finally:
                self._free.release()

        asked = None
        try:
            asked = background.begin(run, "registry-publisher")
            return asked.result(LONGEST_S)
        except TimeoutError as error:
            if asked is None or asked.done():
                raise
            given_up.set()
            raise DiscoveryUnavailable(
                f"{what}: the discovery store did not answer within {LONGEST_S:g} s. What was "
                "asked of it may still happen."
            ) from error
        except background.NoThread as error:
            raise DiscoveryUnavailable(f"{what}: {error}.") from None
        except BaseException:
            given_up.set()
            raise


def reaches_only_this_host(url: str) -> bool:
    """Whether a URL that others are to use would lead them to themselves."""
    return is_loopback(urlsplit(url).hostname or "")
