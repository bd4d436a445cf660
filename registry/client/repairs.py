"""Puts right what is wrong with a model of a worker, in a thread for each model that needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from registry.client.attach import Attached, register_manifest
from registry.client.held_models import HeldModel
from registry.client.lifecycle import ModelState, Next, after_registration
from registry.client.renewals import RenewalLoop
from registry.client.transitions import Transitions
from registry.client.worker_log import log_safely
from registry.client.worker_resources import WorkerResources
from registry.core import background
from registry.core.records import Outcome
from registry.errors import RegistryError, Superseded


class Repairs:
    """Registers again what the registry lost, and withdraws what must not be published any more.

    What keeps a model from being put right is in its `trouble`; the next renewal tries again.
    """

    def __init__(
        self,
        worker: WorkerResources,
        transitions: Transitions,
        renewals: RenewalLoop[HeldModel],
    ) -> None:
        self._client = worker.client
        self._publisher = worker.publisher
        self._models = worker.models
        self._lease = worker.lease
        self._supersession = worker.supersession
        self._problems = worker.problems
        self._transitions = transitions
        self._renewals = renewals

    def begin_withdrawing(self, model: HeldModel) -> None:
        """Withdraw what a newer instance has taken over; the registry has released it already."""
        self._begin(model, self._withdraw)

    def begin_registering(self, model: HeldModel) -> None:
        """Put back what the registry lost, unless the model was detached meanwhile."""
        self._begin(model, self._register_again)

    def _begin(self, model: HeldModel, work: Callable[[HeldModel], None]) -> None:
        """Do something about a model, unless something is being done about it."""
        if model.is_in_repair:
            return
        model.is_in_repair = True

        def run() -> None:
            try:
                work(model)
                model.trouble = None
            except Superseded as error:
                self._supersession.note(error)
            except Exception as error:
                model.trouble = error
            finally:
                model.is_in_repair = False

        try:
            background.begin(run, "registry-repair")
        except BaseException:
            model.is_in_repair = False
            raise

    def _withdraw(self, model: HeldModel) -> None:
        self._transitions.withdraw(model)
        self._models.remove(model)

    def _register_again(self, model: HeldModel) -> None:
        refusal = None
        with model.locked():
            was_refused = model.state is ModelState.REFUSED
            if model.manifest is None or not (model.state.may_be_live or was_refused):
                return
            if self._renewals.is_closing:
                return
            try:
                attached = register_manifest(self._client, model.manifest, self._lease)
                _note_registered(model, attached)
            except RegistryError as error:
                refusal = error
        what = after_registration(refusal)
        if what is Next.WITHDRAW and refusal is not None:
            self._give_up(model, refusal)
        elif refusal is not None:
            raise refusal
        elif was_refused:
            self._publish_again(model)
        else:
            if model.card_is_old:
                self._publish_moved(model)
            log_safely(logging.INFO, "%s was registered again", model.owner)

    def _give_up(self, model: HeldModel, refusal: RegistryError) -> None:
        """Withdraw a model whose files are refused. It is retried, since that may change."""
        with model.locked():
            is_news, model.refusal = model.refusal is None, refusal
            if model.state is ModelState.ATTACHED:
                model.state = ModelState.REFUSED
        if is_news:
            self._problems.report(model.owner, refusal)
        if model.state is ModelState.REFUSED:
            self._transitions.withdraw(model)

    def _publish_again(self, model: HeldModel) -> None:
        assert model.card is not None
        self._publisher.publish(model.owner, model.card, lambda: model.state is ModelState.REFUSED)
        with model.locked():
            model.refusal, model.card_is_old = None, False
            if model.state is ModelState.REFUSED:
                model.state = ModelState.ATTACHED
        log_safely(logging.INFO, "%s was attached again", model.owner)

    def _publish_moved(self, model: HeldModel) -> None:
        """Publish the card of a model whose files the registry has under another slug by now."""
        card = model.card
        assert card is not None
        self._publisher.publish(model.owner, card, lambda: model.state is ModelState.ATTACHED)
        with model.locked():
            model.card_is_old = model.card is not card


def _note_registered(model: HeldModel, attached: Attached) -> None:
    """Note where the registry has the files of a model, and of how many refs it is to tell."""
    manifest = attached.manifest
    if model.manifest != manifest and model.make_card is not None:
        model.manifest, model.card = manifest, model.make_card(manifest)
        model.card_is_old = True
    outcomes = {each.outcome for each in attached.registered.artifacts}
    # Of an owner that held more before, the registry tells more each time.
    model.refs = len(manifest.files)
    if outcomes == {Outcome.UNCHANGED}:
        model.refs = max(model.refs, model.refs_seen)
