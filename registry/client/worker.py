"""A serving worker's side: attach models, keep their leases, detach them.

What happens in which order, and what a failure leaves behind, is in `lifecycle`; here are the calls
that make it happen. The worker's own threads attach and detach. A thread renews the leases and does
nothing else; what the registry lost is put right, and the worker told, in threads beside it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from registry.client import aside
from registry.client.attach import (
    Manifest,
    read_manifest,
    register_manifest,
    register_what_fits,
)
from registry.client.client import RegistryClient
from registry.client.environment import find_user
from registry.client.lifecycle import (
    ModelState,
    Next,
    after_registration,
    after_renewal,
    outcome_is_unknown,
)
from registry.client.network import at_most
from registry.client.protocol import Endpoint, content_path
from registry.client.publishing import CardPublisher, reaches_only_this_host
from registry.client.renewals import Renewals
from registry.client.retries import RetryPolicy
from registry.client.transport import TIMEOUT_S, checked_url
from registry.core.checks import BASE_SUFFIX, check_lease, milliseconds
from registry.core.forks import Birthplace
from registry.core.progress import OnProgress
from registry.core.records import Owner, Receipt, Renewed
from registry.core.regular import read_regular
from registry.core.slugs import slugify
from registry.core.text import shown
from registry.discovery import Discovery
from registry.discovery.cards import Card, CardFile, LoraInfo, find_context_length, make_card
from registry.errors import Busy, DiscoveryUnavailable, Invalid, RegistryError, Superseded
from registry.wire.requests import LEASE_DEFAULT_S

CONFIG_MAX_BYTES = 4 << 20

OnProblem = Callable[[Owner, RegistryError], None]
"""Called from a thread of its own when a model cannot be kept: it was superseded, or its files are
refused. In both cases its card is withdrawn. What it raises is logged; however long it takes,
renewals go on."""

log = logging.getLogger("registry.worker")


class Worker:
    """Attaches models to a registry and publishes their cards, and keeps both until it detaches.

    As a context manager it detaches everything at the end, and `close` alone detaches nothing: the
    cards stay live as long as their store keeps them, and the files until lease and grace are over.
    If its process dies, the same happens. While the registry cannot be
    reached, everything stays as it is, and the lease is renewed when it is back. What the registry
    lost is registered again; a card whose files it refuses is withdrawn.

    Attaches and detaches are done one after the other; they may be asked for by several threads.
    A forked child has no worker: there, leaving the block and `close` do nothing, and anything else
    raises WrongProcess.

    Args:
        url: the registry.
        owner: who this worker is, or the text that names it; its LoRAs are owners beside it.
        discovery: a store or its URL, like `file:/var/run/dynamo`; None publishes nothing. A store
            given as an object is not closed with the worker.
        worker_name: a name that outlives restarts: a worker of this name takes the place of an
            older instance of it.
        address: `host:port` where the engine takes requests, if the worker is to publish that as
            well; leave it out where the engine does it.
        public_url: the registry as frontends reach it, if that is not `url`. It stands in cards, so
            that a user and password in it are left out.
        token: the access token, if the registry asks for one.
        ca_file: authorities whose certificates are believed, instead of the system's.
        on_problem: see `OnProblem`.

    Raises:
        Invalid: the owner is a LoRA, or the lease is out of bounds.
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
        self._lease_ttl_s = lease_ttl_s
        self._worker_name = worker_name
        self._timeout_s = timeout_s
        self._client = RegistryClient(
            url, token=token, ca_file=ca_file, timeout_s=timeout_s, retries=retries
        )
        # A renewal is not repeated by the client: the next one comes soon enough.
        once = RetryPolicy(attempts=1)
        self._renewing = RegistryClient(
            url, token=token, ca_file=ca_file, timeout_s=timeout_s, retries=once
        )
        self._publisher = CardPublisher(discovery, address)
        self._warn_of(url, public_url)
        self._on_problem = on_problem
        self._untold: deque[tuple[Owner, RegistryError]] = deque()
        self._changing = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._superseded: Superseded | None = None
        self._renewals = Renewals(
            lease_ttl_s, lambda: list(self._models.values()), self._renew, self._note
        )

    def _warn_of(self, url: str, public_url: str | None) -> None:
        if not self._publisher.is_used:
            return
        if public_url is None and reaches_only_this_host(url):
            _say(
                logging.WARNING,
                "cards will say that the files are at %s, which leads other hosts to themselves; "
                "give public_url (--public-url) unless all frontends run on this host",
                self._public_url,
            )
        if public_url is not None and find_user(public_url) is not None:
            _say(logging.WARNING, "user and password of public_url are left out of the cards")

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
            _say(logging.WARNING, "not everything was detached; the leases end it: %s", error)
        finally:
            self.close()

    @property
    def superseded(self) -> Superseded | None:
        """Why this worker has stopped, if a newer instance has taken its place."""
        return self._superseded

    @property
    def states(self) -> dict[str, ModelState]:
        """Every model that is attached, or left half-way, by suffix: `_base` or a LoRA's slug."""
        return {suffix: model.state for suffix, model in list(self._models.items())}

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
            model = self._models.get(owner.suffix) or _Model(owner)
            if model.state is ModelState.ATTACHED:
                raise Invalid(f"{owner} is attached already; detach it first.")
            self._check_current()
            names = _Names(name, None if lora is None else lora.name)
            self._check_names(owner, names)
            manifest = read_manifest(
                owner,
                slugify(name),
                Path(model_dir),
                in_place=in_place,
                exclude=exclude,
                on_progress=on_progress,
            )

            def card_of(manifest: Manifest) -> Card:
                return self._card(manifest, name, lora, card_fields)

            # What no card can be made of is not even registered.
            card_of(manifest)
            model.names = names
            return self._attach(model, manifest, card_of, on_progress)

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
                self._check_lora(owner, lora)
            return self._detach(owner, drain_s)

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
                    self._detach(self._owner_of(None if suffix == BASE_SUFFIX else suffix), 0)
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
        self._publisher.close()
        self._client.close()
        self._renewing.close()

    @property
    def _heart(self) -> threading.Thread | None:
        return self._renewals.thread

    # Attaching and detaching, one model at a time

    def _attach(
        self,
        model: _Model,
        manifest: Manifest,
        card_of: Callable[[Manifest], Card],
        on_progress: OnProgress | None,
    ) -> Card:
        before = model.state
        self._models[model.owner.suffix] = model
        try:
            card = self._register(model, manifest, card_of, on_progress)
            self._publisher.publish(model.owner, card, lambda: self._superseded is None)
            with self._locked(model):
                self._check_current()
                if model.refusal is not None:
                    raise model.refusal
                model.state = ModelState.ATTACHED
        except BaseException as error:
            if model.state is ModelState.PUBLISHING or outcome_is_unknown(error):
                self._undo(model, error)
            elif not before.may_be_live:
                self._models.pop(model.owner.suffix, None)
            if isinstance(error, Superseded):
                self._stop(error)
            raise
        return card

    def _register(
        self,
        model: _Model,
        manifest: Manifest,
        card_of: Callable[[Manifest], Card],
        on_progress: OnProgress | None,
    ) -> Card:
        """Register; from then on the lease is renewed. Returns the card of what is registered."""
        try:
            self._renewals.start()
        except RuntimeError as error:
            raise RegistryError(
                f"The thread that renews leases cannot be started: {error}. Raise the limit of "
                "threads or memory of this process; nothing was registered."
            ) from None
        with self._locked(model):
            attached = register_what_fits(
                self._client,
                manifest,
                lease_ttl_s=self._lease_ttl_s,
                worker_name=self._worker_name,
                on_progress=on_progress,
            )
            card = card_of(attached.manifest)
            model.manifest, model.card, model.refusal = attached.manifest, card, None
            model.state = ModelState.PUBLISHING
        return card

    def _detach(self, owner: Owner, drain_s: float) -> Receipt:
        model = self._models.setdefault(owner.suffix, _Model(owner))
        with self._locked(model):
            model.state = ModelState.WITHDRAWING
        self._withdraw(model)
        if drain_s:
            self._drain(owner, drain_s)
        return self._release(model)

    def _undo(self, model: _Model, error: BaseException) -> None:
        """Take back an attach that failed: the card first, only then the files."""
        with self._locked(model):
            model.state = ModelState.WITHDRAWING
        try:
            self._withdraw(model)
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
            self._client.drain(owner, deadline_s=drain_s + self._lease_ttl_s)
        except RegistryError as error:
            _say(logging.INFO, "%s is drained without the registry knowing of it: %s", owner, error)
        self._renewals.wait(drain_s)

    def _withdraw(self, model: _Model) -> None:
        others = [each for each in list(self._models.values()) if each is not model]
        is_last = not any(each.state.may_be_live for each in others)
        self._publisher.withdraw(model.owner, and_instance=is_last)

    def _release(self, model: _Model) -> Receipt:
        with self._locked(model):
            model.state = ModelState.RELEASING
            receipt = self._client.unregister_for_owner(model.owner)
        self._models.pop(model.owner.suffix, None)
        return receipt

    @contextmanager
    def _locked(self, model: _Model) -> Iterator[None]:
        """Holds the lock of a model, which another thread may have while it registers it."""
        if not model.lock.acquire(timeout=self._timeout_s):
            raise Busy(f"{model.owner} is just being registered; try again.")
        try:
            yield
        finally:
            model.lock.release()

    def _card(
        self,
        manifest: Manifest,
        name: str,
        lora: LoraInfo | None,
        fields: Mapping[str, Any] | None,
    ) -> Card:
        owner = manifest.owner
        endpoint = Endpoint(owner.namespace, owner.component, owner.endpoint)
        files = [
            CardFile(
                self._public_url + content_path(manifest.key(each), endpoint),
                each.content.checksum,
                each.content.size,
            )
            for each in manifest.files
        ]
        paths = {each.file.filename: each.file.path for each in manifest.files}
        context_length = find_context_length(
            _find_json(paths.get("config.json")), _find_json(paths.get("tokenizer_config.json"))
        )
        return make_card(name, files, context_length=context_length, lora=lora, fields=fields)

    def _check_names(self, owner: Owner, names: _Names) -> None:
        """Raise Invalid if one of the names makes the slug of another one that is there."""
        for model in list(self._models.values()):
            if model.names is not None and model.names.base != names.base:
                _check_slugs(names.base, model.names.base)
        if names.lora is not None:
            self._check_lora(owner, names.lora)
        else:
            found = self._publisher.find_name(owner)
            if found is not None and found != names.base:
                _check_slugs(names.base, found)

    def _check_lora(self, owner: Owner, name: str) -> None:
        """Raise Invalid if another LoRA than the one of this name is there under its slug."""
        model = self._models.get(owner.suffix)
        if model is not None and model.names is not None:
            found = model.names.lora
        else:
            # Of a process before this one, or beside it.
            found = self._publisher.find_name(owner)
        if found is not None and found != name:
            _check_slugs(name, found)

    def _owner_of(self, lora_slug: str | None) -> Owner:
        me = self.owner
        return Owner(me.namespace, me.component, me.endpoint, me.instance_id, lora_slug)

    # Superseded

    def _check_current(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    def _stop(self, error: Superseded) -> None:
        """Note that a newer instance is there. The thread withdraws what is left."""
        if self._superseded is None:
            self._superseded = error
            self._tell(self.owner, error)

    # Renewing, in the thread of `renewals`

    def _renew(self, model: _Model, share_s: float) -> None:
        """Renew one model, and see to it that what is wrong with it is put right."""
        self._tell_the_untold()
        if self._superseded is not None:
            self._begin(model, self._leave)
        elif model.state is ModelState.REFUSED:
            self._begin(model, self._register_again)
        elif model.state.may_be_live and model.manifest is not None:
            outcome: Renewed | RegistryError
            try:
                with at_most(share_s):
                    outcome = self._renewing.renew(model.owner)
            except Superseded as error:
                self._stop(error)
                self._begin(model, self._leave)
                return
            except RegistryError as error:
                outcome = error
            if isinstance(outcome, Renewed):
                self._note_unserveable(model, outcome.unserveable)
            if after_renewal(outcome, len(model.manifest.files)) is Next.REGISTER:
                self._begin(model, self._register_again)
            elif isinstance(outcome, RegistryError):
                raise outcome
        if model.trouble is not None:
            raise model.trouble

    def _note_unserveable(self, model: _Model, count: int) -> None:
        if count and not model.unserveable:
            _say(
                logging.WARNING,
                "%d files of %s are not served from here: the registry did not find the bytes that "
                "were registered. Put them back, or attach again",
                count,
                model.owner,
            )
        elif model.unserveable and not count:
            _say(logging.INFO, "all files of %s are served from here again", model.owner)
        model.unserveable = count

    def _note(self, error: BaseException | None) -> None:
        if error is None:
            log.info("%s is renewed again", self.owner)
        else:
            log.warning("%s may lapse; retrying: %s", self.owner, error)

    # Putting right, in a thread for each model that needs it

    def _begin(self, model: _Model, work: Callable[[_Model], None]) -> None:
        """Do something about a model, unless something is being done about it."""
        if model.is_at_work:
            return
        model.is_at_work = True

        def run() -> None:
            try:
                work(model)
                model.trouble = None
            except Superseded as error:
                self._stop(error)
            except Exception as error:
                model.trouble = error
            finally:
                model.is_at_work = False

        try:
            aside.begin(run, "registry-repair")
        except BaseException:
            model.is_at_work = False
            raise

    def _leave(self, model: _Model) -> None:
        """Withdraw what a newer instance has taken over; the registry has released it already."""
        self._withdraw(model)
        self._models.pop(model.owner.suffix, None)

    def _register_again(self, model: _Model) -> None:
        """Put back what the registry lost, unless the model was detached meanwhile."""
        refusal = None
        with self._locked(model):
            was_refused = model.state is ModelState.REFUSED
            if model.manifest is None or not (model.state.may_be_live or was_refused):
                return
            if self._renewals.is_closing:
                return
            try:
                register_manifest(
                    self._client,
                    model.manifest,
                    lease_ttl_s=self._lease_ttl_s,
                    worker_name=self._worker_name,
                )
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
            _say(logging.INFO, "%s was registered again", model.owner)

    def _give_up(self, model: _Model, refusal: RegistryError) -> None:
        """Withdraw a model whose files are refused. It is retried, since that may change."""
        with self._locked(model):
            is_news, model.refusal = model.refusal is None, refusal
            if model.state is ModelState.ATTACHED:
                model.state = ModelState.REFUSED
        if is_news:
            self._tell(model.owner, refusal)
        if model.state is ModelState.REFUSED:
            self._withdraw(model)

    def _publish_again(self, model: _Model) -> None:
        assert model.card is not None
        self._publisher.publish(model.owner, model.card, lambda: model.state is ModelState.REFUSED)
        with self._locked(model):
            model.refusal = None
            if model.state is ModelState.REFUSED:
                model.state = ModelState.ATTACHED
        _say(logging.INFO, "%s was attached again", model.owner)

    # Telling, in a thread for each call: what is called may take for ever, or raise

    def _tell(self, owner: Owner, error: RegistryError) -> None:
        _say(logging.WARNING, "%s is withdrawn: %s", owner, error)
        self._untold.append((owner, error))
        self._tell_the_untold()

    def _tell_the_untold(self) -> None:
        while self._untold and self._on_problem is not None:
            owner, error = self._untold[0]
            try:
                aside.begin(functools.partial(self._call, owner, error), "registry-problem")
            except RuntimeError:
                # No thread can be started now. The next renewal tries again.
                return
            self._untold.popleft()

    def _call(self, owner: Owner, error: RegistryError) -> None:
        assert self._on_problem is not None
        try:
            self._on_problem(owner, error)
        except BaseException:
            _say(logging.ERROR, "on_problem failed for %s", owner, exc_info=True)


@dataclass(frozen=True, slots=True)
class _Names:
    """What a model was called when it was attached."""

    base: str
    lora: str | None


def _check_slugs(name: str, other: str) -> None:
    slug = slugify(name)
    try:
        is_same = slug == slugify(other)
    except Invalid:
        # What others published may be named anyhow.
        return
    if is_same:
        raise Invalid(
            f"{shown(name)} and {shown(other)}, which is there, both make the slug {slug}, so that "
            "one would be taken for the other. Give the exact name, or rename one of them."
        )


class _Model:
    """A model of a worker. `lock` is held while the registry is changed for it."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.lock = threading.Lock()
        self.state = ModelState.REGISTERING
        self.names: _Names | None = None
        self.manifest: Manifest | None = None
        self.card: Card | None = None
        self.refusal: RegistryError | None = None
        self.asked_at = 0.0
        self.failures = 0
        self.unserveable = 0
        self.is_at_work = False
        self.trouble: Exception | None = None
        """What kept it from being put right the last time."""


def _say(level: int, message: str, *arguments: object, exc_info: bool = False) -> None:
    """Log something where a handler that raises must not get in the way of what comes next."""
    with suppress(BaseException):
        log.log(level, message, *arguments, exc_info=exc_info)


def _find_json(path: Path | None) -> object:
    """What a JSON file holds, or None."""
    try:
        if path is None:
            return None
        content: object = json.loads(read_regular(path, CONFIG_MAX_BYTES, follow=True))
    except (OSError, ValueError, RecursionError):
        return None
    return content
