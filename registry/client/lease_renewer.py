"""Renews the lease of one model of a worker, and has put right what the answer says is wrong."""

from __future__ import annotations

import logging

from registry.client.held_models import HeldModel
from registry.client.lifecycle import ModelState, Next, after_renewal
from registry.client.repairs import Repairs
from registry.client.worker_log import log_safely
from registry.client.worker_resources import WorkerResources
from registry.core.records import Renewed
from registry.errors import RegistryError, Superseded
from registry.network.deadline import at_most


class LeaseRenewer:
    """What the renewal thread of a worker does with each model."""

    def __init__(self, worker: WorkerResources, repairs: Repairs) -> None:
        self._client = worker.renewal_client
        self._supersession = worker.supersession
        self._problems = worker.problems
        self._repairs = repairs

    def renew(self, model: HeldModel, share_s: float) -> None:
        """Renew one model within so many seconds, and begin to put right what is wrong with it.

        Raises:
            Exception: what keeps it from being renewed, or kept it from being put right.
        """
        self._problems.deliver()
        if self._supersession.is_noted:
            self._repairs.begin_withdrawing(model)
        elif model.state is ModelState.REFUSED:
            self._repairs.begin_registering(model)
        elif model.state.may_be_live and model.manifest is not None:
            outcome: Renewed | RegistryError
            try:
                with at_most(share_s):
                    outcome = self._client.renew(model.owner)
            except Superseded as error:
                self._supersession.note(error)
                self._repairs.begin_withdrawing(model)
                return
            except RegistryError as error:
                outcome = error
            if isinstance(outcome, Renewed):
                _note_unserveable(model, outcome.unserveable)
                model.refs_seen = outcome.refs
            if after_renewal(outcome, model.refs) is Next.REGISTER or model.card_is_old:
                self._repairs.begin_registering(model)
            elif isinstance(outcome, RegistryError):
                raise outcome
        if model.trouble is not None:
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
