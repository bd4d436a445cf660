"""The transitions of a model on a worker, with what they do: see `lifecycle` for their order.

attach     register the files, then publish the card; an attach that fails is taken back
detach     withdraw the card, then release the files
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from registry.client.attach import Manifest, register_what_fits
from registry.client.held_models import HeldModel
from registry.client.lifecycle import ModelState, outcome_is_unknown
from registry.client.renewals import RenewalLoop
from registry.client.worker_log import log_safely
from registry.client.worker_resources import WorkerResources
from registry.core.progress import OnProgress
from registry.core.records import Owner, Receipt
from registry.discovery.cards import Card
from registry.errors import DiscoveryUnavailable, RegistryError, Superseded


class Transitions:
    """Attaches and detaches the models of a worker, one at a time."""

    def __init__(self, worker: WorkerResources, renewals: RenewalLoop[HeldModel]) -> None:
        self._client = worker.client
        self._publisher = worker.publisher
        self._models = worker.models
        self._lease = worker.lease
        self._supersession = worker.supersession
        self._renewals = renewals

    def attach(
        self,
        model: HeldModel,
        manifest: Manifest,
        card_of: Callable[[Manifest], Card],
        on_progress: OnProgress | None,
    ) -> Card:
        """Register a manifest, and publish the card of what was registered, which is returned.

        If it fails, nothing is left behind, or what is left is in the message.
        """
        before = model.state
        self._models.add(model)
        try:
            # From the registration on, the lease is renewed.
            self._start_renewals()
            with model.locked():
                attached = register_what_fits(
                    self._client, manifest, self._lease, on_progress=on_progress
                )
                card = card_of(attached.manifest)
                model.manifest, model.card, model.refusal = attached.manifest, card, None
                model.make_card, model.card_is_old = card_of, False
                model.refs = len(attached.manifest.files)
                model.state = ModelState.PUBLISHING
            self._publisher.publish(model.owner, card, lambda: not self._supersession.is_noted)
            with model.locked():
                self._supersession.check()
                if model.refusal is not None:
                    raise model.refusal
                model.state = ModelState.ATTACHED
        except BaseException as error:
            if model.state is ModelState.PUBLISHING or outcome_is_unknown(error):
                self._undo(model, error)
            elif not before.may_be_live:
                self._models.remove(model)
            if isinstance(error, Superseded):
                self._supersession.note(error)
            raise
        return card

    def detach(self, owner: Owner, drain_s: float) -> Receipt:
        """Withdraw the card of an owner, then release its files, after a while if need be."""
        model = self._models.find_or_add(owner)
        with model.locked():
            model.state = ModelState.WITHDRAWING
        self.withdraw(model)
        if drain_s:
            self._drain(owner, drain_s)
        return self._release(model)

    def withdraw(self, model: HeldModel) -> None:
        """Withdraw the card of a model; with the last one, what says where requests are taken.

        Raises:
            DiscoveryUnavailable: it may still be live.
        """
        is_last = not self._models.others_may_be_live(model)
        self._publisher.withdraw(model.owner, and_instance=is_last)

    def _start_renewals(self) -> None:
        try:
            self._renewals.start()
        except RuntimeError as error:
            raise RegistryError(
                f"The thread that renews leases cannot be started: {error}. Raise the limit of "
                "threads or memory of this process; nothing was registered."
            ) from None

    def _undo(self, model: HeldModel, error: BaseException) -> None:
        """Take back an attach that failed: the card first, only then the files."""
        with model.locked():
            model.state = ModelState.WITHDRAWING
        try:
            self.withdraw(model)
        except DiscoveryUnavailable as failure:
            detail = (
                f"The card of {model.owner} may be live, so its files stay registered. Attach or "
                f"detach it again. {failure.detail}"
            )
            if isinstance(error, Exception):
                raise DiscoveryUnavailable(detail) from error
            error.add_note(detail)
            return
        try:
            self._release(model)
        except RegistryError as failure:
            error.add_note(f"What was registered goes when its lease is over. {failure.detail}")

    def _drain(self, owner: Owner, drain_s: float) -> None:
        try:
            # The deadline is for a worker that dies meanwhile; this one comes before it.
            self._client.drain(owner, deadline_s=drain_s + (self._lease.ttl_s or 0))
        except RegistryError as error:
            log_safely(
                logging.INFO, "%s is drained without the registry knowing of it: %s", owner, error
            )
        self._renewals.wait(drain_s)

    def _release(self, model: HeldModel) -> Receipt:
        with model.locked():
            model.state = ModelState.RELEASING
            receipt = self._client.unregister_for_owner(model.owner)
        self._models.remove(model)
        return receipt
