"""Whatever happens to one model, to a store, to a callback or to this process: the leases of the
others are renewed, nothing ends the thread that does it but `close`, and `close` returns."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from registry.client import RegistryClient, Worker, publishing
from registry.client.lifecycle import ModelState
from registry.client.renewals import TOGETHER_MAX, RenewalLoop
from registry.client.retries import RetryPolicy
from registry.core import background as background_module
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.discovery import Change, Kind, Record, RecordKey
from registry.discovery.cards import Card
from registry.errors import DiscoveryUnavailable, RegistryError
from tests.exchanges import running
from tests.peers import elapsed
from tests.proxies import Proxy, Rule
from tests.support import Server, wait_for
from tests.test_worker import make_model

LEASE_S = 1.0
CLOSE_MAX_S = 30.0
"""A bound for a loaded machine; without one of its own, `close` would never return."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that waits long: what is seen here is who is renewed, not who has lapsed."""
    with running(tmp_path_factory.mktemp("service"), lease_grace_s=3600) as server:
        yield server


class Store:
    """Discovery that keeps records in memory. What `before` has for a call is done first."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.before: dict[str, Callable[[], object]] = {}

    def publish(self, record: Record) -> None:
        self.before.get("publish", lambda: None)()
        self.live.add(str(record.key))

    def withdraw(self, key: RecordKey) -> None:
        self.before.get("withdraw", lambda: None)()
        self.live.discard(str(key))

    def list(self, kind: Kind) -> list[Record]:
        return []

    def find(self, key: RecordKey) -> Record | None:
        return None

    def watch(self, kind: Kind) -> Iterator[Change]:
        return iter(())

    def close(self) -> None:
        pass


class Stage:
    """A worker with a base model and a LoRA, behind a proxy."""

    def __init__(self, server: Server, proxy: Proxy, worker: Worker, store: Store) -> None:
        self.server, self.proxy, self.worker, self.store = server, proxy, worker, store
        self.owner = worker.owner
        self.lora = Owner("n", "c", "e", worker.owner.instance_id, "lora")
        self.told: list[tuple[Owner, RegistryError]] = []

    def renewed_at(self, owner: Owner) -> str:
        answer = self.server.client.get(f"/v1/owners/{owner}").json()
        return str(answer["renewed_at"])

    def wait_for_renewals(self, owner: Owner, count: int = 3) -> None:
        """Wait until a lease was renewed a few more times."""
        for _ in range(count):
            last = self.renewed_at(owner)
            wait_for(lambda last=last: self.renewed_at(owner) > last)  # type: ignore[misc]

    def refuse_the_lora(self) -> None:
        """Another owner takes the LoRA's place with other content, before it can come back."""
        away = Rule("POST", "/v1/registrations", loses_request=True)
        self.proxy.rule(away)
        with RegistryClient(self.server.url) as client:
            client.unregister_for_owner(self.lora)
        key = {"slug": self.slug, "suffix": "lora", "filename": "config.json"}
        content = f"other {self.owner}".encode()
        assert self.server.upload(content).status_code in (200, 201)
        line = {**key, "checksum": checksum_of(content), "size": len(content)}
        answer = self.server.register(Owner("other", "c", "e", self.owner.instance_id), [line])
        assert answer.status_code in (200, 201), answer.content
        self.proxy.rules.remove(away)

    @property
    def slug(self) -> str:
        return f"m-{self.owner.instance_id}"


_numbers = iter(range(1, 1000))


@pytest.fixture
def make_stage(
    service: Server, tmp_path: Path
) -> Iterator[Callable[[Callable[[Owner, RegistryError], None] | None], Stage]]:
    ended = threading.Event()
    stages: list[Stage] = []

    def make(on_problem: Callable[[Owner, RegistryError], None] | None = None) -> Stage:
        number = next(_numbers)
        proxy = Proxy(service.url)
        store = Store()

        def note(owner: Owner, error: RegistryError) -> None:
            stage.told.append((owner, error))
            if on_problem is not None:
                on_problem(owner, error)

        worker = Worker(
            proxy.url,
            Owner("n", "c", "e", number),
            discovery=store,
            public_url=service.url,
            lease_ttl_s=LEASE_S,
            retries=RetryPolicy(attempts=1),
            timeout_s=2,
            on_problem=note,
        )
        stage = Stage(service, proxy, worker, store)
        stages.append(stage)
        model = make_model(tmp_path / f"model-{number}")
        worker.attach(model, name=stage.slug)
        worker.attach(model, name=stage.slug, lora="lora")
        return stage

    yield make
    ended.set()
    for stage in stages:
        assert stage.worker._renewals.thread is not None
        assert elapsed(stage.worker.close) < CLOSE_MAX_S
        stage.proxy.__exit__(None, None, None)
        service.unregister(stage.owner)
        service.unregister(stage.lora)
        service.unregister(Owner("other", "c", "e", stage.owner.instance_id))


Make = Callable[..., Stage]
TOGETHER = "/v1/renewals"


def older(status: int = 404, code: str | None = "not_found") -> tuple[int, dict[str, str], bytes]:
    """What a registry answers, or something before it, that knows no call for all models."""
    problem = {"type": "t", "title": "t", "status": status, "detail": "what?", "code": code}
    return status, {}, b"<h1>what?</h1>" if code is None else json.dumps(problem).encode()


def absurd(stage: Stage, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    owner = {"namespace": "n", "component": "c", "endpoint": "e", "lora_slug": "lora"}
    owner["instance_id"] = str(stage.owner.instance_id)
    lease = {"ttl_s": 60, "expires_at": "2026-01-01T00:00:00.000Z"}
    body = {"owner": owner, "lease": lease, "refs": 3} | fields
    return 200, {"content-type": "application/json"}, json.dumps(body).encode()


ABSURD: dict[str, dict[str, Any]] = {
    "a huge lease": {"lease": {"ttl_s": 1e308, "expires_at": "2026-01-01T00:00:00.000Z"}},
    "a negative lease": {"lease": {"ttl_s": -5, "expires_at": "2026-01-01T00:00:00.000Z"}},
    "an end without a zone": {"lease": {"ttl_s": 60, "expires_at": "2026-01-01T00:00:00"}},
    "an end before all time": {"lease": {"ttl_s": 60, "expires_at": "0001-01-01T00:00:00Z"}},
    "a number beyond all numbers": {"refs": 10**400},
    "fewer than no files": {"refs": -1},
    "another kind of answer": {"owner": []},
}


@pytest.mark.parametrize("fields", ABSURD.values(), ids=ABSURD)
def test_an_absurd_answer_stops_nothing(make_stage: Make, fields: dict[str, Any]) -> None:
    stage = make_stage()
    stage.proxy.rule(Rule("POST", TOGETHER, answer=older()))
    rule = Rule("POST", f"/v1/owners/{stage.lora}/renew", answer=absurd(stage, **fields))
    stage.proxy.rule(rule)
    assert rule.met.wait(30)
    stage.wait_for_renewals(stage.owner)
    stage.proxy.rules.clear()
    stage.wait_for_renewals(stage.lora, 1)
    assert set(stage.worker.states.values()) == {ModelState.ATTACHED}
    assert len(stage.store.live) == 2


def test_answers_that_drip_cost_the_other_models_nothing(make_stage: Make) -> None:
    stage = make_stage()
    stage.proxy.rule(Rule("POST", TOGETHER, answer=older()))
    rule = Rule("POST", f"/v1/owners/{stage.lora}/renew", drips=True)
    stage.proxy.rule(rule)
    assert rule.met.wait(30)
    stage.wait_for_renewals(stage.owner)
    stage.proxy.rules.clear()
    stage.wait_for_renewals(stage.lora, 1)


@pytest.mark.parametrize("path", [TOGETHER, "/v1/"])
def test_close_returns_while_answers_drip(make_stage: Make, path: str) -> None:
    stage = make_stage()
    rule = Rule("POST", path, drips=True)
    stage.proxy.rule(rule)
    assert rule.met.wait(30)
    assert elapsed(stage.worker.close) < CLOSE_MAX_S
    stage.proxy.rules.clear()


def hang() -> None:
    threading.Event().wait(3600)


def leave() -> NoReturn:
    raise SystemExit(3)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def fail() -> NoReturn:
    raise RuntimeError("a mistake")


@pytest.mark.parametrize("what", [hang, leave, interrupt, fail])
def test_a_callback_stops_nothing(make_stage: Make, what: Callable[[], None]) -> None:
    stage = make_stage(lambda owner, error: what())
    stage.refuse_the_lora()
    wait_for(lambda: len(stage.told) == 1 and len(stage.store.live) == 1)
    stage.wait_for_renewals(stage.owner)
    assert stage.worker.states["lora"] is ModelState.REFUSED


@pytest.mark.parametrize("what", [hang, fail])
def test_a_store_that_does_not_withdraw_stops_nothing(
    make_stage: Make, what: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "LONGEST_S", 0.5)
    stage = make_stage()
    stage.store.before["withdraw"] = what
    stage.refuse_the_lora()
    wait_for(lambda: len(stage.told) == 1)
    stage.wait_for_renewals(stage.owner)
    # What cannot be withdrawn is still live, so that its files stay registered.
    expected: type[Exception] = DiscoveryUnavailable if what is hang else RuntimeError
    with pytest.raises(expected):
        stage.worker.detach()
    assert len(stage.store.live) == 2
    stage.wait_for_renewals(stage.owner, 1)


def test_a_store_that_does_not_publish_is_given_up(
    make_stage: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publishing, "LONGEST_S", 0.5)
    stage = make_stage()
    stage.store.before["publish"] = hang
    with pytest.raises(DiscoveryUnavailable, match="may be live"):
        stage.worker.attach(make_model(tmp_path / "more"), name=stage.slug, lora="more")
    # Whether its card is live is not known: its files stay, and are renewed.
    assert stage.worker.states["more"] is ModelState.WITHDRAWING
    stage.wait_for_renewals(stage.owner, 1)
    stage.wait_for_renewals(Owner("n", "c", "e", stage.owner.instance_id, "more"), 1)
    stage.server.unregister(Owner("n", "c", "e", stage.owner.instance_id, "more"))


class Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise MemoryError


@contextmanager
def logged_by(handler: logging.Handler) -> Iterator[None]:
    log = logging.getLogger("registry")
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def test_a_log_handler_that_raises_stops_nothing(make_stage: Make) -> None:
    stage = make_stage()
    with logged_by(Raising()):
        stage.refuse_the_lora()
        wait_for(lambda: len(stage.told) == 1 and len(stage.store.live) == 1)
        stage.proxy.rule(Rule("POST", "/v1/", loses_request=True, times=4))
        stage.wait_for_renewals(stage.owner)


def test_no_thread_to_be_had_stops_nothing(
    make_stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()

    def begin(*args: Any, **kwargs: Any) -> NoReturn:
        raise background_module.NoThread("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(background_module, "begin", begin)
        stage.refuse_the_lora()
        stage.wait_for_renewals(stage.owner)
        assert stage.told == []
    # With threads to be had again, it is put right.
    wait_for(lambda: len(stage.told) == 1 and len(stage.store.live) == 1)


def test_a_worker_without_a_thread_for_its_leases_registers_nothing(
    service: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner("n", "c", "e", 5000)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Worker(service.url, owner, lease_ttl_s=LEASE_S) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RegistryError, match="cannot be started"):
                worker.attach(make_model(tmp_path / "model"), name="m-5000")
        assert service.client.get(f"/v1/owners/{owner}").status_code == 404
        worker.attach(tmp_path / "model", name="m-5000")
        assert worker._renewals.thread is not None
        assert worker._renewals.thread.is_alive()


class Thing:
    def __init__(self) -> None:
        self.asked_at = 0.0
        self.failures = 0


def test_nothing_ends_the_thread_but_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of every kind at every place where one could come up."""
    errors = iter([MemoryError(), OverflowError(), SystemExit(), KeyboardInterrupt(), OSError()])
    done = threading.Event()
    raised: list[BaseException] = []

    def next_error() -> None:
        error = next(errors, None)
        if error is None:
            done.set()
            return
        raised.append(error)
        raise error

    def models() -> list[Thing]:
        next_error()
        return [Thing()]

    def note(error: BaseException | None) -> None:
        raise MemoryError

    renewals = RenewalLoop(1.0, models, lambda thing, share_s: next_error(), one_by_one, note)
    monkeypatch.setattr("registry.client.renewals.find_pause_s", lambda *a, **k: 0.01)
    renewals.start()
    assert done.wait(30)
    assert len(raised) == 5
    thread = renewals.thread
    assert thread is not None
    assert thread.is_alive()
    renewals.close()
    wait_for(lambda: not thread.is_alive())


def test_models_whose_renewals_fail_are_asked_last() -> None:
    asked: list[int] = []
    things = [Thing() for _ in range(4)]
    sick = {0, 2}

    def renew(thing: Thing, share_s: float) -> None:
        number = things.index(thing)
        asked.append(number)
        if number in sick:
            raise OSError

    renewals = RenewalLoop(60.0, lambda: things, renew, one_by_one, lambda error: None)
    renewals._renew_all()
    asked.clear()
    renewals._renew_all()
    assert asked == [1, 3, 0, 2]


def one_by_one(things: Sequence[Thing], share_s: float) -> None:
    """As with a registry that knows no other way."""


def test_models_are_renewed_together_until_that_fails_and_again_when_each_has_succeeded() -> None:
    """A call that fails for all counts once for each, and who spoils it is found out."""
    things = [Thing() for _ in range(TOGETHER_MAX + 1)]
    spoilt: set[int] = set()
    calls: list[int] = []

    def renew(thing: Thing, share_s: float) -> None:
        calls.append(1)
        if things.index(thing) in spoilt:
            raise OSError

    def renew_many(some: Sequence[Thing], share_s: float) -> list[Exception | None]:
        calls.append(len(some))
        if spoilt & {things.index(each) for each in some}:
            raise OSError
        return [None] * len(some)

    def calls_of_a_beat() -> list[int]:
        calls.clear()
        renewals._renew_all()
        return calls

    renewals = RenewalLoop(60.0, lambda: things, renew, renew_many, lambda error: None)
    assert calls_of_a_beat() == [TOGETHER_MAX, 1]
    del things[3:]
    assert calls_of_a_beat() == [3]
    spoilt.add(1)
    assert calls_of_a_beat() == [3]
    assert [each.failures for each in things] == [1, 1, 1]
    assert calls_of_a_beat() == [1, 1, 1]
    assert [each.failures for each in things] == [0, 2, 0]
    assert calls_of_a_beat() == [2, 1]
    spoilt.clear()
    assert calls_of_a_beat() == [2, 1]
    assert calls_of_a_beat() == [3]


def test_all_models_of_a_worker_are_renewed_by_one_call(make_stage: Make) -> None:
    stage = make_stage()
    stage.wait_for_renewals(stage.lora, 1)
    alone = stage.proxy.count("POST", "/v1/owners/")
    together = stage.proxy.count("POST", TOGETHER)
    stage.wait_for_renewals(stage.owner)
    stage.wait_for_renewals(stage.lora)
    assert stage.proxy.count("POST", "/v1/owners/") == alone
    assert stage.proxy.count("POST", TOGETHER) >= together + 3


@pytest.mark.parametrize("drips", [False, True])
def test_a_call_for_all_models_that_fails_stops_nothing(make_stage: Make, drips: bool) -> None:
    stage = make_stage()
    rule = Rule("POST", TOGETHER, drips=drips)
    if not drips:
        rule.answer = (200, {}, b'{"renewals": []}')
    stage.proxy.rule(rule)
    assert rule.met.wait(30)
    stage.wait_for_renewals(stage.owner)
    stage.wait_for_renewals(stage.lora)
    assert set(stage.worker.states.values()) == {ModelState.ATTACHED}
    stage.proxy.rules.clear()
    alone = stage.proxy.count("POST", "/v1/owners/")
    wait_for(lambda: stage.proxy.count("POST", TOGETHER) > 3)
    assert stage.proxy.count("POST", "/v1/owners/") <= alone + 6


@pytest.mark.parametrize("fields", ABSURD.values(), ids=ABSURD)
def test_an_absurd_answer_for_one_of_all_models_stops_nothing(
    make_stage: Make, fields: dict[str, Any]
) -> None:
    stage = make_stage()
    lines = [json.loads(absurd(stage, **each)[2]) for each in ({}, fields)]
    lines[0]["owner"]["lora_slug"] = None
    body = json.dumps({"renewals": lines}).encode()
    rule = stage.proxy.rule(Rule("POST", TOGETHER, answer=(200, {}, body)))
    assert rule.met.wait(30)
    stage.wait_for_renewals(stage.owner, 1)
    stage.wait_for_renewals(stage.lora, 1)
    assert set(stage.worker.states.values()) == {ModelState.ATTACHED}


def test_what_is_wrong_with_one_of_all_models_is_put_right(make_stage: Make) -> None:
    """Each answer of a call for all counts as it would alone."""
    stage = make_stage()
    stage.server.unregister(stage.lora)
    stage.wait_for_renewals(stage.lora)
    assert stage.server.client.delete(f"/v1/artifacts/{stage.slug}/lora").status_code == 200
    wait_for(lambda: len(stage.server.client.get(f"/v1/owners/{stage.lora}").json()["entries"]) > 2)
    stage.wait_for_renewals(stage.owner)
    assert stage.told == []


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (404, None)]
)
def test_a_registry_that_renews_no_more_than_one_at_a_time_is_asked_so(
    make_stage: Make, status: int, code: str | None
) -> None:
    """Not again for more, before it may have become another."""
    stage = make_stage()
    rule = stage.proxy.rule(Rule("POST", TOGETHER, answer=older(status, code)))
    assert rule.met.wait(30)
    asked = stage.proxy.count("POST", TOGETHER)
    stage.wait_for_renewals(stage.owner)
    stage.wait_for_renewals(stage.lora)
    assert stage.proxy.count("POST", TOGETHER) == asked
    assert all(model.failures == 0 for model in stage.worker._resources.models.all())
    away = stage.proxy.rule(Rule("POST", "/v1/owners/", loses_request=True))
    assert away.met.wait(30)
    stage.proxy.rules.clear()
    wait_for(lambda: stage.proxy.count("POST", TOGETHER) > asked + 2)


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "file_unreadable"), (500, "conflict"), (502, None), (503, None), (404, None)],
)
def test_a_failure_that_says_nothing_of_the_files_withdraws_no_card(
    make_stage: Make, status: int, code: str | None
) -> None:
    stage = make_stage()
    problem = {"type": "t", "title": "t", "status": status, "detail": "why", "code": code}
    body = b"<h1>sorry</h1>" if code is None else json.dumps(problem).encode()
    rule = Rule("POST", "/v1/registrations", answer=(status, {}, body))
    stage.proxy.rule(rule)
    with RegistryClient(stage.server.url) as client:
        client.unregister_for_owner(stage.lora)
    assert rule.met.wait(30)
    stage.wait_for_renewals(stage.owner, 1)
    assert len(stage.store.live) == 2
    assert stage.told == []
    stage.proxy.rules.clear()
    wait_for(lambda: stage.server.client.get(f"/v1/owners/{stage.lora}").json()["refs"] == 3)


def test_what_was_given_up_before_it_was_begun_does_not_happen_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "LONGEST_S", 0.2)
    store = Store()
    publisher = publishing.CardPublisher(store, None)
    go_on = threading.Event()
    store.before["withdraw"] = lambda: go_on.wait(30)
    owner = Owner("n", "c", "e", 1)
    with pytest.raises(DiscoveryUnavailable, match="may still happen"):
        publisher.withdraw(owner, and_instance=False)
    with pytest.raises(DiscoveryUnavailable, match="cannot be published"):
        publisher.publish(owner, Card({}), lambda: True)
    go_on.set()
    monkeypatch.setattr(publishing, "LONGEST_S", 30)
    assert publisher.find_name(owner) is None
    assert store.live == set()
