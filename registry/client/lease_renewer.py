"""Renews the leases of the models of a worker, and has put right what the answers say is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from registry.client.held_models import HeldModel
from registry.client.lifecycle import ModelState, Next, after_renewal
from registry.client.repairs import Repairs
from registry.client.worker_log import log_safely
from registry.client.worker_resources import WorkerResources
from registry.core.records import Renewed
from registry.errors import MethodNotAllowed, NotFound, RegistryError, Superseded
from registry.network.deadline import at_most


class LeaseRenewer:
    """What the renewal thread of a worker does with its models."""

    def __init__(self, worker: WorkerResources, repairs: Repairs) -> None:
        self._client = worker.renewal_client
        self._supersession = worker.supersession
        self._problems = worker.problems
        self._repairs = repairs
        self._takes_many = True

    def renew(self, model: HeldModel, share_s: float) -> None:
        """Renew one model within so many seconds, and begin to put right what is wrong with it.

        Raises:
            Exception: what keeps it from being renewed, or kept it from being put right.
        """
        self._problems.deliver()
        outcome: Renewed | RegistryError | None = None
        if self._is_due(model):
            try:
                with at_most(share_s):
                    outcome = self._client.renew(model.owner)
            except RegistryError as error:
                outcome = error
                # By the time it is back, it may be one that takes many.
                self._takes_many = True
        self._conclude(model, outcome)

    def renew_many(
        self, models: Sequence[HeldModel], share_s: float
    ) -> list[Exception | None] | None:
        """Renew several models by one call within so many seconds; for each, what `renew` would
        raise. None: the registry does not know that call, and is not asked again for it before a
        renewal has failed.

        Raises:
            Exception: what keeps all of them from being renewed.
        """
        due = [each for each in models if self._is_due(each)]
        if not self._takes_many or len(due) < 2:
            return None
        self._problems.deliver()
        try:
            with at_most(share_s):
                answers = self._client.renew_many([each.owner for each in due])
        except RegistryError as error:
            # An older registry says so; what stands before one may say anything.
            if isinstance(error, NotFound | MethodNotAllowed) or type(error) is RegistryError:
                self._takes_many = False
                return None
            raise
        outcomes = {id(each): answer for each, answer in zip(due, answers, strict=True)}
        return [self._find_trouble(each, outcomes.get(id(each))) for each in models]

    def _is_due(self, model: HeldModel) -> bool:
        is_kept = model.state.may_be_live and model.manifest is not None
        return is_kept and not self._supersession.is_noted

    def _find_trouble(
        self, model: HeldModel, outcome: Renewed | RegistryError | None
    ) -> Exception | None:
        try:
            self._conclude(model, outcome)
        except Exception as error:
            return error
        return None

    def _conclude(self, model: HeldModel, outcome: Renewed | RegistryError | None) -> None:
        """Begin to put right what is wrong with a model, by what its renewal came to. None: it was
        not to be renewed.

        Raises:
            Exception: what keeps it from being renewed, or kept it from being put right.
        """
        if isinstance(outcome, Superseded):
            self._supersession.note(outcome)
        if self._supersession.is_noted:
            self._repairs.begin_withdrawing(model)
        elif model.state is ModelState.REFUSED:
            self._repairs.begin_registering(model)
        elif outcome is not None:
            if isinstance(outcome, Renewed):
                _note_unserveable(model, outcome.unserveable)
                model.refs_seen = outcome.refs
            if after_renewal(outcome, model.refs) is Next.REGISTER or model.card_is_old:
                self._repairs.begin_registering(model)
            elif isinstance(outcome, RegistryError):
                raise outcome
        if model.trouble is not None and not isinstance(outcome, Superseded):
            raise model.trouble


def _note_unserveable(model: HeldModel, count: int) -> None:
    if count and not model.unserveable:
        log_safely(
            logging.WARNING,
            "%d files of %s are not served from here: the registry did not find the bytes that "
            "were registered. Put them back, or attach again",
            count,
            model.owner,
        )
    elif model.unserveable and not count:
        log_safely(logging.INFO, "all files of %s are served from here again", model.owner)
    model.unserveable = count
