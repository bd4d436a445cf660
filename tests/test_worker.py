"""Workers: what is registered and published after each way in which attaching and detaching can
fail, and how a worker keeps what it attached.

The namespace of an owner is its test's own. At the end of the module everything must be gone, with
nothing but leases to see to it.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from registry.cli import main
from registry.client import LoraInfo, RegistryClient, Worker
from registry.client.lifecycle import (
    ModelState,
    Next,
    after_registration,
    after_renewal,
    find_pause_s,
)
from registry.client.problem_reporter import ProblemReporter
from registry.client.retries import RetryPolicy
from registry.core.hashing import checksum_of
from registry.core.model_revisions import revision_slug
from registry.core.records import ArtifactKey, Lease, Owner, Renewed
from registry.core.slugs import slugify
from registry.discovery import Change, Kind, Listed, Record, RecordKey
from registry.discovery.file import FileDiscovery
from registry.errors import (
    Busy,
    Conflict,
    DiscoveryUnavailable,
    FileUnreadable,
    Forbidden,
    Invalid,
    LeaseGone,
    RegistryError,
    ServiceUnreachable,
    Superseded,
)
from tests.exchanges import running
from tests.proxies import Proxy, Rule, busy
from tests.support import ROOT, Server, wait_for

LEASE_S = 1.0
GRACE_S = 2.0
QUICK = RetryPolicy(attempts=2, first_pause_s=0)
REGISTER = "/v1/registrations"
OWNERS = "/v1/owners/"

_numbers = itertools.count(1)


# Decisions


RENEWED = Renewed(Owner("n", "c", "e", 1), Lease(1000, 0), refs=3)


@pytest.mark.parametrize(
    ("outcome", "what"),
    [
        (RENEWED, Next.NOTHING),
        (Renewed(RENEWED.owner, None, refs=2), Next.REGISTER),
        (Renewed(RENEWED.owner, None, refs=4), Next.REGISTER),
        (LeaseGone(), Next.REGISTER),
        (Superseded(), Next.STOP),
        (ServiceUnreachable(), Next.WAIT),
        (Busy(), Next.WAIT),
        (Forbidden(), Next.WAIT),
        (RegistryError(), Next.WAIT),
    ],
)
def test_what_a_renewal_leads_to(outcome: Renewed | RegistryError, what: Next) -> None:
    assert after_renewal(outcome, 3) is what


@pytest.mark.parametrize(
    ("outcome", "what"),
    [
        (None, Next.NOTHING),
        (Superseded(), Next.STOP),
        (ServiceUnreachable(), Next.WAIT),
        (Busy(), Next.WAIT),
        (Conflict(), Next.WITHDRAW),
        (FileUnreadable(), Next.WITHDRAW),
        (Forbidden(), Next.WITHDRAW),
    ],
)
def test_what_registering_again_leads_to(outcome: RegistryError | None, what: Next) -> None:
    assert after_registration(outcome) is what


def test_renewals_come_within_a_third_of_the_lease_and_sooner_when_they_fail() -> None:
    well = [find_pause_s(60, all_is_well=True) for _ in range(100)]
    failing = [find_pause_s(60, all_is_well=False) for _ in range(100)]
    assert 15 <= min(well) < max(well) <= 20
    assert max(failing) <= 5


# The stage


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with little patience. At the end, nothing may be left in it."""
    folder = tmp_path_factory.mktemp("service")
    with running(
        folder, lease_grace_s=GRACE_S, sweep_interval_s=1, brake_min_owners=1000
    ) as server:
        yield server
        wait_for(lambda: server.client.get("/v1/artifacts").json()["artifacts"] == [], 30)
        audit = server.client.get("/v1/audit").json()
        assert audit["worst"] in (None, "note"), audit["findings"]


class Store:
    """Discovery that fails when and how it is told to. `log` has what was asked of it.

    Before and after everything that it does, no live card may name a file that is not served.
    """

    def __init__(self, root: Path, log: list[str]) -> None:
        self.inner = FileDiscovery(root, ttl_s=2.0)
        self.log = log
        self.plan: dict[str, list[BaseException | None]] = {}
        self.late: dict[str, list[BaseException | None]] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.checking = True
        self.http = httpx2.Client(timeout=30)

    def fail(self, what: str, *, after: bool = False, times: int = 1) -> None:
        """Let calls fail, before or after they took effect."""
        error = DiscoveryUnavailable(f"{what} failed on purpose.")
        (self.late if after else self.plan)[what] = [error] * times

    def publish(self, record: Record) -> None:
        self._do("publish", record.key, lambda: self.inner.publish(record))

    def withdraw(self, key: RecordKey) -> None:
        self._do("withdraw", key, lambda: self.inner.withdraw(key))

    def find(self, key: RecordKey) -> Record | None:
        return self.inner.find(key)

    def _do(self, what: str, key: RecordKey, work: Callable[[], None]) -> None:
        if key.kind is Kind.MODEL:
            self.log.append(f"{what} {key.owner.suffix}")
            self.before.get(what, lambda: None)()
            _raise_next(self.plan.get(what))
        self.check()
        work()
        self.check()
        if key.kind is Kind.MODEL:
            _raise_next(self.late.get(what))

    def check(self) -> None:
        for record in self.list(Kind.MODEL) if self.checking else []:
            for file in record.card.files:
                answer = self.http.get(file.url)
                if answer.status_code == 200 and checksum_of(answer.content) == file.checksum:
                    continue
                # Perhaps it was withdrawn since it was listed.
                live = {each.key for each in self.list(Kind.MODEL)}
                assert record.key not in live, f"{record.key} is live without {file.filename}"

    def list(self, kind: Kind) -> list[Record]:
        return self.inner.list(kind)

    def watch(self, kind: Kind) -> Iterator[Change | Listed]:
        return self.inner.watch(kind)

    def close(self) -> None:
        self.inner.close()
        self.http.close()


def _raise_next(errors: list[BaseException | None] | None) -> None:
    if errors and (error := errors.pop(0)) is not None:
        raise error


@dataclass
class Stage:
    """A worker between a registry behind a proxy and a store, and what it did in which order."""

    server: Server
    proxy: Proxy
    store: Store
    worker: Worker
    model: Path
    log: list[str]
    problems: list[tuple[Owner, RegistryError]]
    name: str

    @property
    def slug(self) -> str:
        return slugify(self.name)

    @property
    def owner(self) -> Owner:
        return self.worker.owner

    def attach(self, lora: str | None = None) -> Any:
        return self.worker.attach(
            self.model, name=self.name, lora=None if lora is None else LoraInfo(lora)
        )

    @property
    def live(self) -> list[str]:
        """The models whose cards are live, by suffix."""
        return [record.key.owner.suffix for record in self.store.list(Kind.MODEL)]

    @property
    def held(self) -> dict[str, int]:
        """How many files the owners of this worker hold, by suffix."""
        found = self.server.client.get("/v1/owners", params={"limit": 1000}).json()["owners"]
        mine = [each for each in found if each["owner"]["namespace"] == self.owner.namespace]
        return {
            each["owner"]["lora_slug"] or "_base": each["refs"] for each in mine if each["refs"]
        }

    def end(self) -> tuple[list[str], dict[str, int], dict[str, ModelState]]:
        """What there is now: live cards, held files, and what the worker thinks of it."""
        return self.live, self.held, self.worker.states


NOTHING: tuple[list[str], dict[str, int], dict[str, ModelState]] = ([], {}, {})
ATTACHED = (["_base"], {"_base": 3}, {"_base": ModelState.ATTACHED})


def make_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "merges.txt"):
        (folder / name).write_text(f'{{"model": "{folder}", "file": "{name}"}}')
    return folder


StageMaker = Callable[..., Stage]


@pytest.fixture
def make_stage(service: Server, tmp_path: Path) -> Iterator[StageMaker]:
    with ExitStack() as stack:

        def make(server: Server = service, **options: Any) -> Stage:
            number = next(_numbers)
            log: list[str] = []
            problems: list[tuple[Owner, RegistryError]] = []
            proxy = stack.enter_context(Proxy(server.url))
            store = Store(tmp_path / "kv", log)
            stack.callback(store.close)
            options.setdefault("owner", Owner(f"test-{number}", "backend", "generate", number))
            options.setdefault("lease_ttl_s", LEASE_S)
            worker = Worker(
                proxy.url,
                discovery=store,
                public_url=server.url,
                retries=QUICK,
                on_problem=lambda owner, error: problems.append((owner, error)),
                **options,
            )
            stack.callback(worker.close)
            model = make_model(tmp_path / f"model-{number}")
            # Keys are global: a name that no other test has.
            return Stage(server, proxy, store, worker, model, log, problems, f"Org/T-{number}")

        yield make


@pytest.fixture
def stage(make_stage: StageMaker) -> Stage:
    return make_stage()


# Attaching and detaching


def test_files_are_there_before_the_card_and_the_card_goes_before_the_files(stage: Stage) -> None:
    def note(what: str) -> Callable[[], None]:
        return lambda: stage.log.append(what)

    stage.proxy.rule(Rule("POST", REGISTER, after=note("registered")))
    stage.proxy.rule(Rule("DELETE", OWNERS, before=note("release")))
    stage.attach()
    assert stage.end() == ATTACHED
    receipt = stage.worker.detach()
    assert len(receipt.removed) == 3
    assert stage.end() == NOTHING
    # The first answer says which content is missing.
    assert stage.log == ["registered", "registered", "publish _base", "withdraw _base", "release"]


def test_the_card_says_where_every_file_is_and_what_it_holds(stage: Stage) -> None:
    (stage.model / "config.json").write_text('{"max_position_embeddings": 4096}')
    card = stage.worker.attach(
        stage.model, name=stage.name, card_fields={"kv_cache_block_size": 64}
    )
    for file in card.files:
        assert file.url.endswith(f"/{stage.slug}/_base/{file.filename}")
        content = (stage.model / file.filename).read_bytes()
        assert (file.checksum, file.size) == (checksum_of(content), len(content))
        assert stage.store.http.get(file.url).content == content
    assert card.content["context_length"] == 4096
    assert card.content["kv_cache_block_size"] == 64
    assert (card.name, card.content["slug"]) == (stage.name, stage.slug)
    [record] = stage.store.list(Kind.MODEL)
    assert (record.key.owner, record.card) == (stage.owner, card)


def test_loras_come_and_go_while_the_base_model_stays(stage: Stage) -> None:
    stage.attach()
    card = stage.attach("My.Adapter")
    assert (card.name, card.content["lora"]) == ("My.Adapter", {"name": "My.Adapter"})
    stage.attach("other")
    assert sorted(stage.live) == ["_base", "my_adapter", "other"]
    assert stage.held == {"_base": 3, "my_adapter": 3, "other": 3}
    assert len(stage.worker.detach(lora="My.Adapter").removed) == 3
    assert sorted(stage.live) == ["_base", "other"]
    stage.worker.detach_all()
    assert stage.end() == NOTHING
    assert stage.log[-2:] == ["withdraw other", "withdraw _base"]


def test_the_instance_is_published_with_the_first_model_and_withdrawn_with_the_last(
    make_stage: StageMaker,
) -> None:
    stage = make_stage(address="10.0.0.1:7001")
    stage.attach()
    stage.attach("lora")
    [record] = stage.store.list(Kind.INSTANCE)
    owner = stage.owner
    assert record.content["transport"] == {
        "tcp": f"10.0.0.1:7001/{owner.instance_id:x}/{owner.namespace}/backend/generate"
    }
    stage.worker.detach()
    assert len(stage.store.list(Kind.INSTANCE)) == 1
    stage.worker.detach(lora="lora")
    assert stage.store.list(Kind.INSTANCE) == []


def test_a_worker_without_discovery_registers_and_releases(service: Server, tmp_path: Path) -> None:
    owner = Owner("without-discovery", "backend", "generate", 1)
    model = make_model(tmp_path / "model")
    with (
        RegistryClient(service.url) as client,
        Worker(service.url, owner, lease_ttl_s=LEASE_S) as worker,
    ):
        worker.attach(model, name="without-discovery")
        assert len(client.owner(owner).entries) == 3
        worker.detach()
        assert client.owner(owner).entries == ()


def test_what_is_attached_is_not_attached_again_and_detaching_nothing_is_fine(
    stage: Stage,
) -> None:
    stage.attach()
    with pytest.raises(Invalid, match="is attached already"):
        stage.attach()
    assert stage.end() == ATTACHED
    stage.worker.detach()
    assert stage.worker.detach().released == 0
    assert stage.worker.detach(lora="never").released == 0
    stage.attach()
    assert stage.end() == ATTACHED


def test_a_worker_is_no_lora_and_its_lease_has_bounds(service: Server) -> None:
    lora = Owner("dynamo", "backend", "generate", 1, "lora")
    with pytest.raises(Invalid, match="is no LoRA"):
        Worker(service.url, lora)
    with pytest.raises(Invalid, match=r"The lease is 0\.5 s"):
        Worker(service.url, Owner("dynamo", "backend", "generate", 1), lease_ttl_s=0.5)


def test_the_end_of_the_block_detaches_everything(stage: Stage) -> None:
    with stage.worker:
        stage.attach()
        stage.attach("lora")
    assert stage.end() == NOTHING


def test_an_error_in_the_block_is_not_hidden_by_one_at_its_end(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.store.fail("withdraw", times=9)

    def serve() -> None:
        with stage.worker:
            stage.attach()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        serve()
    assert "not everything was detached" in caplog.text
    assert stage.held == {"_base": 3}


def test_one_model_that_cannot_be_detached_does_not_keep_the_others(stage: Stage) -> None:
    stage.attach()
    stage.attach("lora")
    stage.store.fail("withdraw")
    with pytest.raises(DiscoveryUnavailable), stage.worker:
        pass
    assert stage.held == {"lora": 3}


# Attaching that fails


@dataclass(frozen=True)
class Case:
    """How something fails, what comes of it, and what there is afterwards."""

    arrange: Callable[[Stage], object]
    error: type[BaseException] | None
    end: tuple[list[str], dict[str, int], dict[str, ModelState]]


def both(*steps: Callable[[Stage], object]) -> Callable[[Stage], object]:
    return lambda stage: [step(stage) for step in steps]


def store_fails(what: str, *, after: bool = False, times: int = 1) -> Callable[[Stage], object]:
    return lambda stage: stage.store.fail(what, after=after, times=times)


def proxied(method: str, prefix: str, **rule: Any) -> Callable[[Stage], object]:
    return lambda stage: stage.proxy.rule(Rule(method, prefix, **rule))


def another(stage: Stage) -> Owner:
    return Owner(f"not-{stage.owner.namespace}", "backend", "generate", 1)


def another_holds_other_content(stage: Stage) -> None:
    key = ArtifactKey(stage.slug, "_base", "config.json")
    answer = stage.server.register_copies(another(stage), {key: b"other"}, lease_ttl_s=20)
    assert answer.status_code == 200


def interrupted(stage: Stage) -> None:
    stage.store.late["publish"] = [KeyboardInterrupt()]


def no_files(stage: Stage) -> None:
    for path in list(stage.model.iterdir()):
        path.rename(path.with_suffix(".bin"))


def mend(stage: Stage) -> None:
    for path in list(stage.model.glob("*.bin")):
        path.rename(path.with_suffix(".json"))


KEPT = {"_base": 3}
ATTACHING: dict[str, Case] = {
    "publishing fails": Case(store_fails("publish"), DiscoveryUnavailable, NOTHING),
    "publishing fails after it took effect": Case(
        store_fails("publish", after=True), DiscoveryUnavailable, NOTHING
    ),
    "publishing and withdrawing fail": Case(
        both(store_fails("publish"), store_fails("withdraw")),
        DiscoveryUnavailable,
        ([], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "publishing fails after it took effect, and so does withdrawing": Case(
        both(store_fails("publish", after=True), store_fails("withdraw")),
        DiscoveryUnavailable,
        (["_base"], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "publishing fails, and withdrawing after it took effect": Case(
        both(store_fails("publish", after=True), store_fails("withdraw", after=True)),
        DiscoveryUnavailable,
        ([], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "publishing fails while the registry cannot be reached": Case(
        both(store_fails("publish"), proxied("DELETE", OWNERS, loses_request=True)),
        DiscoveryUnavailable,
        ([], KEPT, {"_base": ModelState.RELEASING}),
    ),
    "publishing is interrupted": Case(interrupted, KeyboardInterrupt, NOTHING),
    "publishing is interrupted, and withdrawing fails": Case(
        both(interrupted, store_fails("withdraw")),
        KeyboardInterrupt,
        (["_base"], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "there is nothing to register": Case(no_files, FileUnreadable, NOTHING),
    "an upload gets no answer": Case(
        proxied("PUT", "/v1/blobs/", loses_request=True), ServiceUnreachable, NOTHING
    ),
    "the registry is busy": Case(proxied("POST", REGISTER, answer=busy()), Busy, NOTHING),
    "the registry is busy for a moment": Case(
        proxied("POST", REGISTER, answer=busy(), times=1), None, ATTACHED
    ),
    "the registry cannot be reached": Case(
        proxied("POST", REGISTER, loses_request=True), ServiceUnreachable, NOTHING
    ),
    "one answer to registering is lost": Case(
        proxied("POST", REGISTER, loses_answer=True, skip=1, times=1), None, ATTACHED
    ),
    "every answer to registering is lost": Case(
        proxied("POST", REGISTER, loses_answer=True, skip=1), ServiceUnreachable, NOTHING
    ),
}


@pytest.mark.parametrize("case", ATTACHING.values(), ids=ATTACHING)
def test_an_attach_that_fails_leaves_nothing_or_says_what_and_can_be_repeated(
    stage: Stage, case: Case
) -> None:
    case.arrange(stage)
    if case.error is None:
        stage.attach()
    else:
        with pytest.raises(case.error):
            stage.attach()
    assert stage.end() == case.end
    stage.store.check()

    for obstacles in (stage.store.plan, stage.store.late, stage.proxy.rules):
        obstacles.clear()
    mend(stage)
    if case.error is not None:
        stage.attach()
    assert stage.end() == ATTACHED
    stage.worker.detach()
    assert stage.end() == NOTHING


def take_over(stage: Stage) -> None:
    """The registry loses a worker's files, and another owner takes one of the keys."""
    gate = stage.proxy.rule(Rule("POST", REGISTER, loses_request=True))
    stage.server.unregister(stage.owner)
    another_holds_other_content(stage)
    stage.proxy.rules.remove(gate)


def give_back(stage: Stage) -> None:
    stage.server.unregister(another(stage))


def test_a_refused_attach_leaves_what_others_hold(stage: Stage) -> None:
    another_holds_other_content(stage)
    with pytest.raises(Conflict):
        stage.attach()
    assert stage.end() == NOTHING
    assert stage.log == []
    assert stage.server.unregister(another(stage)).json()["released"] == 1
    # The audit reports a refusal until its owner has succeeded or given up.
    stage.worker.detach()


def test_content_whose_registration_was_lost_goes_with_its_lease(stage: Stage) -> None:
    stage.proxy.rule(Rule("POST", REGISTER, loses_answer=True, skip=1))
    stage.proxy.rule(Rule("DELETE", OWNERS, loses_request=True))
    with pytest.raises(ServiceUnreachable) as raised:
        stage.attach()
    assert any("when its lease is over" in note for note in raised.value.__notes__)
    assert stage.held == KEPT
    # The worker does not renew it: the grace ends it.
    wait_for(lambda: stage.held == {})


def test_while_publishing_takes_long_the_lease_is_renewed(stage: Stage) -> None:
    # The registry ends an owner after lease and grace; the sweeper must not get that far.
    renewals = Rule("POST", OWNERS)
    stage.proxy.rule(renewals)
    stage.store.before["publish"] = lambda: wait_for(lambda: stage.proxy.count("POST", OWNERS) >= 3)
    stage.attach()
    assert stage.end() == ATTACHED


def test_files_that_are_refused_while_the_card_is_published_take_it_back(stage: Stage) -> None:
    def lose_the_files() -> None:
        take_over(stage)
        wait_for(lambda: bool(stage.problems))

    stage.store.checking = False
    stage.store.before["publish"] = lose_the_files
    with pytest.raises(Conflict):
        stage.attach()
    give_back(stage)
    assert stage.end() == NOTHING


# Detaching that fails


DETACHING: dict[str, Case] = {
    "withdrawing fails": Case(
        store_fails("withdraw"),
        DiscoveryUnavailable,
        (["_base"], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "withdrawing fails after it took effect": Case(
        store_fails("withdraw", after=True),
        DiscoveryUnavailable,
        ([], KEPT, {"_base": ModelState.WITHDRAWING}),
    ),
    "the registry cannot be reached": Case(
        proxied("DELETE", OWNERS, loses_request=True),
        ServiceUnreachable,
        ([], KEPT, {"_base": ModelState.RELEASING}),
    ),
    "the registry is busy": Case(
        proxied("DELETE", OWNERS, answer=busy()),
        Busy,
        ([], KEPT, {"_base": ModelState.RELEASING}),
    ),
    "the registry is busy for a moment": Case(
        proxied("DELETE", OWNERS, answer=busy(), times=1), None, NOTHING
    ),
    "one answer is lost": Case(
        proxied("DELETE", OWNERS, loses_answer=True, times=1), None, NOTHING
    ),
    "every answer is lost": Case(
        proxied("DELETE", OWNERS, loses_answer=True),
        ServiceUnreachable,
        ([], {}, {"_base": ModelState.RELEASING}),
    ),
}


@pytest.mark.parametrize("case", DETACHING.values(), ids=DETACHING)
def test_a_detach_that_fails_keeps_the_files_of_a_live_card_and_can_be_repeated(
    stage: Stage, case: Case
) -> None:
    stage.attach()
    case.arrange(stage)
    if case.error is None:
        stage.worker.detach()
    else:
        with pytest.raises(case.error):
            stage.worker.detach()
    assert stage.end() == case.end
    stage.store.check()
    stage.proxy.rules.clear()
    stage.worker.detach()
    assert stage.end() == NOTHING


def test_a_model_that_could_not_be_withdrawn_is_renewed_until_it_is(stage: Stage) -> None:
    stage.attach()
    stage.store.fail("withdraw", times=1)
    with pytest.raises(DiscoveryUnavailable):
        stage.worker.detach()
    renewals = stage.proxy.count("POST", OWNERS)
    wait_for(lambda: stage.proxy.count("POST", OWNERS) >= renewals + 6)
    assert stage.held == KEPT
    stage.store.check()
    stage.worker.detach()
    assert stage.end() == NOTHING


def test_while_withdrawing_takes_long_the_files_stay_and_the_lease_is_renewed(stage: Stage) -> None:
    stage.attach()

    def wait() -> None:
        renewals = stage.proxy.count("POST", OWNERS)
        wait_for(lambda: stage.proxy.count("POST", OWNERS) >= renewals + 3)
        assert stage.held == KEPT

    stage.store.before["withdraw"] = wait
    stage.worker.detach()
    assert stage.end() == NOTHING


def test_a_model_that_could_not_be_released_is_not_renewed_and_goes_with_its_lease(
    stage: Stage,
) -> None:
    stage.attach()
    stage.proxy.rule(Rule("DELETE", OWNERS, loses_request=True))
    with pytest.raises(ServiceUnreachable):
        stage.worker.detach()
    wait_for(lambda: stage.held == {})
    assert stage.proxy.count("POST", REGISTER) == 2


def test_between_the_card_and_the_files_a_drain_leaves_time_to_fetch(stage: Stage) -> None:
    card = stage.attach()
    fetched: list[int] = []

    def fetch() -> None:
        assert stage.live == []
        fetched.extend(stage.store.http.get(file.url).status_code for file in card.files)

    stage.proxy.rule(Rule("POST", f"{OWNERS}{stage.owner}/drain", after=fetch))
    stage.worker.detach(drain_s=0.1)
    assert fetched == [200] * 3
    assert stage.end() == NOTHING


def test_a_drain_that_cannot_be_announced_is_one_all_the_same(stage: Stage) -> None:
    stage.attach()
    stage.proxy.rule(Rule("POST", f"{OWNERS}{stage.owner}/drain", loses_request=True))
    stage.worker.detach(drain_s=0.1)
    assert stage.end() == NOTHING


# Keeping what is attached


def renewed_at(stage: Stage, owner: Owner) -> str:
    return str(stage.server.client.get(f"{OWNERS}{owner}").json()["renewed_at"])


def test_the_leases_of_all_models_are_renewed(stage: Stage) -> None:
    stage.attach()
    stage.attach("lora")
    owners = [stage.owner, replace(stage.owner, lora_slug="lora")]
    first = [renewed_at(stage, owner) for owner in owners]
    wait_for(lambda: all(renewed_at(stage, o) > at for o, at in zip(owners, first, strict=True)))


def test_a_lost_owner_is_attached_again(stage: Stage) -> None:
    card = stage.attach()
    stage.store.checking = False
    stage.server.unregister(stage.owner)
    wait_for(lambda: stage.held == KEPT)
    stage.store.checking = True
    stage.store.check()
    assert [record.card for record in stage.store.list(Kind.MODEL)] == [card]
    assert stage.problems == []
    stage.worker.detach()
    assert stage.end() == NOTHING


def test_an_owner_that_was_lost_to_a_detach_of_its_own_is_not_attached_again(
    stage: Stage,
) -> None:
    stage.attach()
    detached = threading.Event()
    renewal = stage.proxy.rule(
        Rule("POST", f"{OWNERS}{stage.owner}/renew", after=lambda: detached.wait(30), times=1)
    )
    # The owner is gone when it is renewed, but the worker hears of that after its detach only.
    stage.store.checking = False
    stage.server.unregister(stage.owner)
    wait_for(lambda: renewal.times == 0)
    stage.worker.detach()
    registrations = stage.proxy.count("POST", REGISTER)
    detached.set()
    stage.worker.close()
    assert stage.proxy.count("POST", REGISTER) == registrations
    assert stage.end() == NOTHING


def test_entries_that_an_administrator_removed_are_registered_again(stage: Stage) -> None:
    stage.attach()
    stage.store.checking = False
    assert stage.server.client.delete(f"/v1/artifacts/{stage.slug}/_base").status_code == 200
    wait_for(lambda: stage.held == KEPT)
    stage.store.checking = True
    stage.store.check()


def test_while_the_registry_is_away_the_card_stays_and_afterwards_it_is_renewed(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.attach()
    stage.attach("lora")
    stage.proxy.rule(Rule("POST", "/v1/", loses_request=True))
    asked = len(stage.proxy.asked)
    wait_for(lambda: len(stage.proxy.asked) > asked + 5)
    assert set(stage.worker.states.values()) == {ModelState.ATTACHED}
    assert sorted(stage.live) == ["_base", "lora"]
    # One that fails keeps no other from being asked for.
    alone = {path.split("/")[-2] for _, path in stage.proxy.asked[asked:] if "/owners/" in path}
    assert alone == {"_base", "lora"}
    stage.proxy.rules.clear()
    last = renewed_at(stage, stage.owner)
    wait_for(lambda: renewed_at(stage, stage.owner) > last)
    assert "may lapse" in caplog.text
    stage.store.check()


def test_a_registry_that_comes_back_empty_gets_everything_again(
    serve: Callable[..., Server], make_stage: StageMaker, tmp_path: Path
) -> None:
    lost = serve()
    stage = make_stage(lost)
    stage.store.checking = False
    stage.attach()
    stage.attach("lora")
    lost.kill()
    with Server(tmp_path / "new.db", port=lost.address[1]) as stage.server:
        wait_for(lambda: stage.held == {"_base": 3, "lora": 3})
        stage.store.checking = True
        stage.store.check()
        stage.worker.detach_all()
        assert stage.end() == NOTHING


def test_what_the_registry_lost_and_takes_no_more_is_withdrawn_until_it_takes_it_again(
    stage: Stage,
) -> None:
    stage.attach()
    stage.attach("lora")
    stage.store.checking = False
    take_over(stage)
    wait_for(lambda: stage.live == ["lora"])
    assert stage.worker.states["_base"] is ModelState.REFUSED
    assert [(owner, type(error)) for owner, error in stage.problems] == [(stage.owner, Conflict)]

    give_back(stage)
    wait_for(lambda: stage.worker.states["_base"] is ModelState.ATTACHED)
    assert stage.live == ["_base", "lora"]
    stage.store.checking = True
    stage.store.check()
    assert len(stage.problems) == 1


def test_a_refused_model_is_withdrawn_as_soon_as_discovery_can(stage: Stage) -> None:
    stage.attach()
    stage.store.checking = False
    stage.store.fail("withdraw", times=2)
    take_over(stage)
    wait_for(lambda: stage.live == [])
    assert stage.log.count("withdraw _base") >= 3
    give_back(stage)
    stage.worker.detach()
    assert stage.end() == NOTHING


def test_a_refused_model_can_be_detached_and_attached(stage: Stage) -> None:
    stage.attach()
    stage.store.checking = False
    take_over(stage)
    wait_for(lambda: stage.live == [])
    stage.store.checking = True
    with pytest.raises(Conflict):
        stage.attach()
    give_back(stage)
    stage.worker.detach()
    assert stage.end() == NOTHING
    stage.attach()
    assert stage.end() == ATTACHED


# Revisions (S17)


def slugs_in_the_card(stage: Stage) -> set[str]:
    """The slugs under which the live card of the base model names files."""
    cards = [each.card for each in stage.store.list(Kind.MODEL)]
    return {file.url.split("/")[-3] for card in cards for file in card.files}


def revision_of(stage: Stage) -> str:
    files = [(each.name, checksum_of(each.read_bytes())) for each in stage.model.iterdir()]
    return revision_slug(stage.slug, files)


def without_paths(content: object) -> object:
    """A card without where its files are."""
    if isinstance(content, Mapping):
        return {name: without_paths(each) for name, each in content.items() if name != "path"}
    return [without_paths(each) for each in content] if isinstance(content, list) else content


def test_the_card_of_a_revision_points_there_and_is_otherwise_the_same(
    make_stage: StageMaker,
) -> None:
    stage = make_stage(on_conflict="revision")
    card = stage.attach()
    assert slugs_in_the_card(stage) == {stage.slug}
    stage.worker.detach()
    another_holds_other_content(stage)
    revision = stage.attach()
    assert slugs_in_the_card(stage) == {revision_of(stage)}
    assert stage.end() == ATTACHED
    assert revision.content != card.content
    assert without_paths(revision.content) == without_paths(card.content)
    first = renewed_at(stage, stage.owner)
    wait_for(lambda: renewed_at(stage, stage.owner) > first)
    assert len(stage.worker.detach().removed) == 3
    assert stage.end() == NOTHING
    give_back(stage)


def test_a_registry_that_comes_back_empty_gets_a_revision_again_where_the_card_points(
    serve: Callable[..., Server], make_stage: StageMaker, tmp_path: Path
) -> None:
    """Though the base slug is free by then, for those whose cards point to it."""
    lost = serve()
    stage = make_stage(lost, on_conflict="revision")
    another_holds_other_content(stage)
    stage.attach()
    stage.store.checking = False
    lost.kill()
    with Server(tmp_path / "new.db", port=lost.address[1]) as stage.server:
        wait_for(lambda: stage.held == KEPT)
        another_holds_other_content(stage)
        stage.store.checking = True
        stage.store.check()
        assert slugs_in_the_card(stage) == {revision_of(stage)}
        assert stage.log.count("publish _base") == 1
        stage.worker.detach()
        give_back(stage)


def test_what_was_lost_and_has_become_a_revision_gets_a_card_that_points_there(
    make_stage: StageMaker,
) -> None:
    stage = make_stage(on_conflict="revision")
    stage.attach()
    stage.store.checking = False
    stage.store.fail("publish", times=2)
    take_over(stage)
    wait_for(lambda: slugs_in_the_card(stage) == {revision_of(stage)})
    stage.store.checking = True
    stage.store.check()
    assert stage.worker.states == {"_base": ModelState.ATTACHED}
    assert stage.problems == []
    stage.worker.detach()
    assert stage.end() == NOTHING
    give_back(stage)


def test_an_owner_that_holds_more_than_its_model_is_not_registered_at_each_renewal(
    stage: Stage,
) -> None:
    """What it held before it came with other files stays (S3), and is found to be right once."""
    more = ArtifactKey(stage.slug, "_base", "more.json")
    assert stage.server.register_copies(stage.owner, {more: b"more"}).status_code == 200
    stage.attach()
    wait_for(lambda: stage.proxy.count("POST", REGISTER) == 3)
    renewed = stage.proxy.count("POST", OWNERS)
    wait_for(lambda: stage.proxy.count("POST", OWNERS) > renewed + 2)
    assert stage.proxy.count("POST", REGISTER) == 3
    stage.server.client.delete(f"/v1/artifacts/{stage.slug}/_base")
    stage.store.checking = False
    wait_for(lambda: stage.held == KEPT)
    stage.worker.detach()


def test_an_on_conflict_that_is_none_makes_no_worker(service: Server) -> None:
    with pytest.raises(Invalid, match="refuse or revision"):
        Worker(service.url, Owner("n", "c", "e", 1), on_conflict="overwrite")


def test_a_superseded_worker_withdraws_its_cards_says_so_and_stays_away(
    make_stage: StageMaker,
) -> None:
    old = make_stage(worker_name="w-0")
    old.attach()
    old.attach("lora")
    old.store.checking = False
    newer = replace(old.owner, instance_id=old.owner.instance_id + 1_000_000)
    new = make_stage(worker_name="w-0", owner=newer)
    new.store.checking = False
    new.attach()
    wait_for(lambda: old.worker.superseded is not None and old.worker.states == {})
    assert [type(error) for _, error in old.problems] == [Superseded]
    live = [record.key.owner for record in new.store.list(Kind.MODEL)]
    assert live == [newer]
    new.store.checking = True
    new.store.check()
    with pytest.raises(Superseded):
        old.attach()
    old.worker.detach_all()
    assert new.worker.states == {"_base": ModelState.ATTACHED}
    assert [record.key.owner for record in new.store.list(Kind.MODEL)] == [newer]


def test_a_worker_that_finds_itself_superseded_when_it_attaches_leaves_nothing(
    make_stage: StageMaker,
) -> None:
    old = make_stage(worker_name="w-1")
    old.attach()
    old.store.checking = False
    newer = replace(old.owner, instance_id=old.owner.instance_id + 1_000_000)
    new = make_stage(worker_name="w-1", owner=newer)
    old.proxy.rule(Rule("POST", f"{OWNERS}{old.owner}/renew", loses_request=True))
    new.store.checking = False
    new.attach()
    with pytest.raises(Superseded):
        old.attach("lora")
    assert old.worker.superseded is not None
    wait_for(lambda: old.worker.states == {})
    assert [record.key.owner for record in new.store.list(Kind.MODEL)] == [newer]


# Workers that are killed


KILLED_AT = [
    "PUT before",
    "PUT after",
    "POST before",
    "POST after",
    "publish before",
    "publish after",
    "withdraw before",
    "withdraw after",
    "DELETE before",
    "DELETE after",
]
CHILD = """
import os, signal, sys
from pathlib import Path
from registry.client import Worker
from registry.discovery import Kind
from registry.discovery.file import FileDiscovery
from registry.core.records import Owner

url, public_url, model, store, namespace, step = sys.argv[1:]

class Deadly(FileDiscovery):
    def publish(self, record):
        self.die("publish before")
        super().publish(record)
        self.die("publish after")

    def withdraw(self, key):
        self.die("withdraw before")
        super().withdraw(key)
        self.die("withdraw after")

    def die(self, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

owner = Owner(namespace, "backend", "generate", os.getpid())
store = Deadly(Path(store), ttl_s=2.0)
with Worker(url, owner, discovery=store, lease_ttl_s=1, public_url=public_url) as worker:
    worker.attach(model, name=namespace)
"""


def test_a_worker_that_is_killed_at_any_step_never_leaves_a_card_without_files(
    service: Server, tmp_path: Path
) -> None:
    store = Store(tmp_path / "kv", [])
    with ExitStack() as stack:
        stack.callback(store.close)
        children = [_killed_at(stack, step, service, tmp_path) for step in KILLED_AT]
        while any(child.poll() is None for child in children):
            store.check()
        store.check()
    assert [child.returncode for child in children] == [-signal.SIGKILL] * len(children)
    # Records lapse, then leases; what is left then is looked at when the module is over.
    wait_for(lambda: store.list(Kind.MODEL) == [])


def _killed_at(
    stack: ExitStack, step: str, service: Server, folder: Path
) -> subprocess.Popen[bytes]:
    proxy = stack.enter_context(Proxy(service.url))
    name = f"killed-{step.replace(' ', '-')}".lower()
    # Content of its own, so that all of it is uploaded.
    model = make_model(folder / name)
    arguments = [proxy.url, service.url, str(model), str(folder / "kv"), name, step]
    started: list[subprocess.Popen[bytes]] = []
    method, moment = step.split()
    if method.isupper():
        prefix = {"PUT": "/v1/blobs/", "POST": REGISTER, "DELETE": OWNERS}[method]
        kill = lambda: started[0].kill()  # noqa: E731
        when: dict[str, Any] = {moment: kill}
        # The first offer only says what is to be uploaded.
        proxy.rule(Rule(method, prefix, skip=int(method == "POST"), **when))
    started.append(subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD, *arguments]))
    stack.callback(started[0].wait)
    return started[0]


def test_a_registry_that_dies_between_its_commit_and_its_answer_leaves_no_card(
    serve: Callable[..., Server], make_stage: StageMaker
) -> None:
    flags: dict[str, Any] = {"lease_grace_s": 1, "sweep_interval_s": 1}
    server = serve(**flags)
    stage = make_stage(server)
    # The first offer is answered with what is missing; the second one is committed.
    stage.proxy.rule(Rule("POST", REGISTER, after=server.kill, loses_answer=True, skip=1, times=1))
    with pytest.raises(ServiceUnreachable):
        stage.attach()
    assert stage.live == []
    with Server(server.database, port=server.address[1], **flags) as stage.server:
        # It was committed, and its lease ends it.
        wait_for(lambda: stage.held == {})
        wait_for(lambda: stage.server.client.get("/v1/audit").json()["worst"] in (None, "note"))


def test_a_registry_that_dies_between_the_commit_of_a_release_and_its_answer_is_told_again(
    serve: Callable[..., Server], make_stage: StageMaker
) -> None:
    server = serve()
    stage = make_stage(server, lease_ttl_s=3600)  # No renewal comes between.
    stage.attach()
    stage.proxy.rule(Rule("DELETE", OWNERS, after=server.kill, loses_answer=True, times=1))
    with pytest.raises(ServiceUnreachable):
        stage.worker.detach()
    assert stage.live == []
    with Server(server.database, port=server.address[1]) as stage.server:
        assert stage.worker.detach().released == 0
        assert stage.end() == NOTHING


# On the command line


def held_by_command(
    url: str, model: Path, store: Path, *options: str, program: str = "-m registry"
) -> subprocess.Popen[str]:
    command = [sys.executable, *program.split(), "attach", str(model), "--hold"]
    command += ["--endpoint", "command/backend/generate", "--lease-ttl-s", "1", "--url", url]
    command += ["--discovery", f"file:{store}", "--public-url", url, *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def entries_of(server: Server, slug: str) -> int:
    return len(server.client.get("/v1/artifacts", params={"slug": slug}).json()["artifacts"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_holding_with_a_detach(
    service: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    model, store = make_model(tmp_path / "model"), tmp_path / "kv"
    name = f"signal-{number}"
    with held_by_command(service.url, model, store, "--name", name) as process:
        wait_for(lambda: len(FileDiscovery(store).list(Kind.MODEL)) == 1)
        assert entries_of(service, name) == 3
        assert process.stdout is not None
        output = ""
        while "\nowner " not in output:
            output += process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
        output += rest
    assert (process.returncode, errors.count("\n")) == (code, 1), errors
    assert f"detached, as {number.name} came" in errors
    assert "3 files" in output
    assert "owner command/backend/generate/" in output
    assert FileDiscovery(store).list(Kind.MODEL) == []
    assert entries_of(service, name) == 0


def test_a_signal_during_the_attach_undoes_it(service: Server, tmp_path: Path) -> None:
    model, store = make_model(tmp_path / "model"), tmp_path / "kv"
    with Proxy(service.url) as proxy:
        signalled = threading.Event()
        proxy.rule(Rule("POST", REGISTER, after=lambda: signalled.wait(30), skip=1))
        with held_by_command(proxy.url, model, store, "--name", "early") as process:
            wait_for(lambda: entries_of(service, "early") == 3)
            process.terminate()
            wait_for(lambda: proxy.count("DELETE", OWNERS) == 1)
            signalled.set()
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.count("\n")) == (0, 1), errors
    assert "detached, as SIGTERM came" in errors
    assert not store.exists() or FileDiscovery(store).list(Kind.MODEL) == []
    assert entries_of(service, "early") == 0


def test_a_detach_that_hangs_ends_in_time_and_is_left_to_the_lease(
    service: Server, tmp_path: Path
) -> None:
    model, store = make_model(tmp_path / "model"), tmp_path / "kv"
    program = tmp_path / "program.py"
    program.write_text(
        "import registry.cli.hold as holding\nholding.DETACH_MAX_S = 0.5\n"
        "from registry.cli import main\nmain()\n"
    )
    with Proxy(service.url) as proxy:
        over = threading.Event()
        proxy.rule(Rule("DELETE", OWNERS, before=lambda: over.wait(60), loses_request=True))
        process = held_by_command(proxy.url, model, store, "--name", "hangs", program=str(program))
        with process:
            wait_for(lambda: len(FileDiscovery(store).list(Kind.MODEL)) == 1)
            process.terminate()
            _, errors = process.communicate(timeout=30)
        over.set()
    assert process.returncode == 2
    assert "could not detach within 0.5 s" in errors
    assert FileDiscovery(store).list(Kind.MODEL) == []


def test_a_newer_instance_ends_holding_with_an_error(service: Server, tmp_path: Path) -> None:
    model, store = make_model(tmp_path / "model"), tmp_path / "kv"
    options = ("--worker-name", "pod-0", "--name", "newer")
    with held_by_command(service.url, model, store, *options) as old:
        wait_for(lambda: len(FileDiscovery(store).list(Kind.MODEL)) == 1)
        [first] = FileDiscovery(store).list(Kind.MODEL)
        with held_by_command(service.url, model, store, *options) as new:
            _, errors = old.communicate(timeout=30)
            assert old.returncode == 1
            assert "newer instance" in errors
            wait_for(
                lambda: first.key not in [r.key for r in FileDiscovery(store).list(Kind.MODEL)]
            )
            assert entries_of(service, "newer") == 3
            new.terminate()
            new.communicate(timeout=30)
    assert entries_of(service, "newer") == 0


@pytest.mark.parametrize(
    "options", [("--discovery", "file:/tmp"), ("--lease-ttl-s", "5"), ("--address", "h:1")]
)
def test_options_of_holding_need_it(
    options: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["metadata-registry", "attach", ".", "--name", "x", "--endpoint", "n/c/e", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "need" in capsys.readouterr().err


def test_problems_that_several_threads_deliver_are_each_told_of_once() -> None:
    told: list[int] = []
    reporter = ProblemReporter(lambda owner, _error: told.append(owner.instance_id))
    owners = [Owner("n", "c", "e", number) for number in range(500)]
    reporter._waiting.extend((owner, Superseded()) for owner in owners)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(reporter.deliver) for _ in range(64)]:
            done.result()
    wait_for(lambda: len(told) == len(owners))
    assert sorted(told) == list(range(500))
