"""What the parts of a worker share."""

from __future__ import annotations

from dataclasses import dataclass

from registry.client.client import RegistryClient
from registry.client.held_models import HeldModels
from registry.client.lease_terms import LeaseTerms
from registry.client.problem_reporter import ProblemReporter
from registry.client.publishing import CardPublisher
from registry.client.supersession import Supersession


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """The connections of a worker, and what is known of its models.

    `renewal_client` repeats no call: the next renewal comes soon enough.
    """

    client: RegistryClient
    renewal_client: RegistryClient
    publisher: CardPublisher
    lease: LeaseTerms
    models: HeldModels
    problems: ProblemReporter
    supersession: Supersession

    def close(self) -> None:
        """Let go of the store and of the connections."""
        self.publisher.close()
        self.client.close()
        self.renewal_client.close()
