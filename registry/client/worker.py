"""A serving worker's side: attach models, keep their leases, detach them.

What happens in which order, and what a failure leaves behind, is in `lifecycle`; what is done for
it is in `transitions`. The worker's own threads attach and detach. A thread, that of `renewals`,
renews the leases and does nothing else; what the registry lost is put right in the threads of
`repairs`, and the program that has the worker is told in those of `problem_reporter`.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from registry.client.attach import read_manifest
from registry.client.client import RegistryClient
from registry.client.held_models import HeldModel, HeldModels, ModelNames
from registry.client.lease_renewer import LeaseRenewer
from registry.client.lease_terms import LeaseTerms
from registry.client.lifecycle import ModelState
from registry.client.manifest_card import card_of
from registry.client.name_conflicts import NameConflicts
from registry.client.problem_reporter import OnProblem as OnProblem
from registry.client.problem_reporter import ProblemReporter
from registry.client.publishing import CardPublisher, reaches_only_this_host
from registry.client.renewals import RenewalLoop
from registry.client.repairs import Repairs
from registry.client.retries import RetryPolicy
from registry.client.supersession import Supersession
from registry.client.transitions import Transitions
from registry.client.transport import TIMEOUT_S, checked_url
from registry.client.worker_log import log, log_safely
from registry.client.worker_resources import WorkerResources
from registry.core.checks import BASE_SUFFIX, check_lease, milliseconds
from registry.core.forks import Birthplace
from registry.core.model_revisions import OnConflict
from registry.core.progress import OnProgress
from registry.core.records import Owner, Receipt
from registry.core.slugs import slugify
from registry.discovery import Discovery
from registry.discovery.cards import Card, LoraInfo
from registry.errors import Invalid, RegistryError, Superseded
from registry.network.environment import find_user
from registry.wire.requests import LEASE_DEFAULT_S


class Worker:
    """Attaches models to a registry and publishes their cards, and keeps both until it detaches.

    As a context manager it detaches everything at the end, and `close` alone detaches nothing: the
    cards stay live as long as their store keeps them, and the files until lease and grace are over.
    If its process dies, the same happens. While the registry cannot be reached, everything stays as
    it is, and the lease is renewed when it is back. What the registry lost is registered again; a
    card whose files it refuses is withdrawn.

    Attaches and detaches are done one after the other; they may be asked for by several threads.
    A forked child has no worker: there, leaving the block and `close` do nothing, and anything else
    raises WrongProcess.

    Args:
        url: the registry.
        owner: who this worker is, or the text that names it; its LoRAs are owners beside it.
        discovery: a store or its URL, like `file:/var/run/dynamo` or `etcd://host`; None publishes
            nothing. A store given as an object is not closed with the worker.
        worker_name: a name that outlives restarts: a worker of this name takes the place of an
            older instance of it.
        on_conflict: what happens when others hold files of a model with other content. With
            `revision` the model is registered beside theirs, and its card points there.
        address: `host:port` where the engine takes requests, if the worker is to publish that as
            well; leave it out where the engine does it.
        public_url: the registry as frontends reach it, if that is not `url`. It stands in cards, so
            that a user and password in it are left out.
        token: the access token, if the registry asks for one.
        ca_file: authorities whose certificates are believed, instead of the system's.
        on_problem: see `OnProblem`.

    Raises:
        Invalid: the owner is a LoRA, the lease is out of bounds, or `on_conflict` is none.
        SettingsError: a URL is none.
    """

    def __init__(
        self,
        url: str,
        owner: Owner | str,
        *,
        discovery: Discovery | str | None = None,
        lease_ttl_s: float = LEASE_DEFAULT_S,
        worker_name: str | None = None,
        on_conflict: OnConflict | str = OnConflict.REFUSE,
        address: str | None = None,
        public_url: str | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: RetryPolicy | None = None,
        on_problem: OnProblem | None = None,
    ) -> None:
        owner = Owner.of(owner)
        if owner.lora_slug is not None:
            raise Invalid(f"A worker is no LoRA: attach {owner.lora_slug} with lora= instead.")
        check_lease(milliseconds("lease_ttl_s", lease_ttl_s))
        self.owner = owner
        self._birthplace = Birthplace("worker")
        self._public_url = checked_url(url if public_url is None else public_url)
        connect = functools.partial(
            RegistryClient, url, token=token, ca_file=ca_file, timeout_s=timeout_s
        )
        problems = ProblemReporter(on_problem)
        self._resources = WorkerResources(
            client=connect(retries=retries),
            renewal_client=connect(retries=RetryPolicy(attempts=1)),
            publisher=CardPublisher(discovery, address),
            lease=LeaseTerms(lease_ttl_s, worker_name, OnConflict.of(on_conflict)),
            models=HeldModels(timeout_s),
            problems=problems,
            supersession=Supersession(owner, problems),
        )
        if self._resources.publisher.is_used:
            _warn_of_urls(url, public_url)
        self._conflicts = NameConflicts(self._resources.models, self._resources.publisher)
        self._renewals = RenewalLoop(
            lease_ttl_s, self._resources.models.all, self._renew, self._renew_many, self._note
        )
        self._transitions = Transitions(self._resources, self._renewals)
        repairs = Repairs(self._resources, self._transitions, self._renewals)
        self._renewer = LeaseRenewer(self._resources, repairs)
        self._changing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._birthplace.is_here:
            return
        try:
            self.detach_all()
        except RegistryError as error:
            if exc is None:
                raise
            log_safely(logging.WARNING, "not everything was detached; the leases end it: %s", error)
        finally:
            self.close()

    @property
    def _heart(self) -> threading.Thread | None:
        """The renewal thread, under the name by which programs that watch it know it."""
        return self._renewals.thread

    @property
    def superseded(self) -> Superseded | None:
        """Why this worker has stopped, if a newer instance has taken its place."""
        return self._resources.supersession.error

    @property
    def states(self) -> dict[str, ModelState]:
        """Every model that is attached, or left half-way, by suffix: `_base` or a LoRA's slug."""
        return self._resources.models.states()

    def attach(
        self,
        model_dir: str | os.PathLike[str],
        *,
        name: str,
        lora: LoraInfo | str | None = None,
        in_place: bool = False,
        exclude: Sequence[str] = (),
        card_fields: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Card:
        """Register a model's files, then publish its card, which is returned.

        For a LoRA, `model_dir` and `name` are those of its base model. `exclude` has patterns of
        file names that are not looked at, like `*.distcp`; `card_fields` replace fields of the
        card. A file that has no place of its own in a card and cannot be registered is left out,
        with a warning in the log. If publishing fails, the card is withdrawn before the files are
        released; if that fails as well, everything stays: attach or detach again.

        Raises:
            DiscoveryUnavailable: it could not be published; the message says what is left.
            Superseded: a newer instance has taken this worker's place.
            FileUnreadable: a file with a place of its own in a card is broken.
            Invalid: it is attached already, or another name that makes the same slug is; or
                nothing says which of several tokenizers is meant.
            RegistryError: as `register_what_fits`; nothing is left behind, and if the registry
                cannot be told, its lease sees to that.
        """
        self._birthplace.check()
        lora = LoraInfo(lora) if isinstance(lora, str) else lora
        owner = self._owner_of(None if lora is None else lora.slug)
        with self._changing:
            model = self._resources.models.find(owner) or self._resources.models.new(owner)
            if model.state is ModelState.ATTACHED:
                raise Invalid(f"{owner} is attached already; detach it first.")
            self._resources.supersession.check()
            names = ModelNames(name, None if lora is None else lora.name)
            self._conflicts.check(owner, names)
            manifest = read_manifest(
                owner,
                slugify(name),
                Path(model_dir),
                in_place=in_place,
                exclude=exclude,
                on_progress=on_progress,
            )
            make_card = functools.partial(
                card_of, registry_url=self._public_url, name=name, lora=lora, fields=card_fields
            )
            # What no card can be made of is not even registered.
            make_card(manifest)
            model.names = names
            return self._transitions.attach(model, manifest, make_card, on_progress)

    def detach(self, *, lora: str | None = None, drain_s: float = 0) -> Receipt:
        """Withdraw the card of the base model or of a LoRA (by name), then release its files.

        With `drain_s`, files are served that much longer, for frontends that just read the card.
        Detaching what is not attached is fine.

        Raises:
            Invalid: a LoRA of another name, which makes the same slug, is there; it stays.
            DiscoveryUnavailable: the card may still be live. Everything stays; detach again.
            RegistryError: the card is gone, the files are not released. Detach again, or leave it
                to the lease, which is not renewed any more.
        """
        self._birthplace.check()
        owner = self._owner_of(None if lora is None else slugify(lora))
        with self._changing:
            if lora is not None:
                self._conflicts.check_lora(owner, lora)
            return self._transitions.detach(owner, drain_s)

    def detach_all(self) -> None:
        """Detach every model, LoRAs first. One that fails does not keep the others from it.

        Raises:
            RegistryError: as `detach`, of the first that failed.
        """
        self._birthplace.check()
        failed: Exception | None = None
        for suffix in sorted(self.states, key=lambda suffix: suffix == BASE_SUFFIX):
            try:
                with self._changing:
                    self._transitions.detach(
                        self._owner_of(None if suffix == BASE_SUFFIX else suffix), 0
                    )
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Stop renewing, and let go of what this worker opened, within seconds. Nothing is
        detached: use `detach_all` before, or the worker as a context manager."""
        if not self._birthplace.is_here:
            return
        self._renewals.close()
        self._resources.close()

    def _owner_of(self, lora_slug: str | None) -> Owner:
        me = self.owner
        return Owner(me.namespace, me.component, me.endpoint, me.instance_id, lora_slug)

    def _renew(self, model: HeldModel, share_s: float) -> None:
        self._renewer.renew(model, share_s)

    def _renew_many(
        self, models: Sequence[HeldModel], share_s: float
    ) -> Sequence[Exception | None] | None:
        return self._renewer.renew_many(models, share_s)

    def _note(self, error: BaseException | None) -> None:
        if error is None:
            log.info("%s is renewed again", self.owner)
        else:
            log.warning("%s may lapse; retrying: %s", self.owner, error)


def _warn_of_urls(url: str, public_url: str | None) -> None:
    """Warn of URLs in cards that lead frontends to nowhere, or are not all of what was given."""
    if public_url is None and reaches_only_this_host(url):
        log_safely(
            logging.WARNING,
            "cards will say that the files are at %s, which leads other hosts to themselves; "
            "give public_url (--public-url) unless all frontends run on this host",
            checked_url(url),
        )
    if public_url is not None and find_user(public_url) is not None:
        log_safely(logging.WARNING, "user and password of public_url are left out of the cards")
