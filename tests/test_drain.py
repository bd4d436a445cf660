"""Drain: a detach that is announced. The owner is served until it goes, or until its deadline."""

from __future__ import annotations

import pytest

from registry.core.records import Drained, Lease, OwnerState, Renewed
from registry.core.times import parse_time
from registry.errors import LeaseGone
from tests.fleet import DAY, GRACE, HOUR, INTERVAL, LEASE, MINUTE, SECOND, World, key, worker
from tests.places import on_both
from tests.support import Server

pytestmark = on_both

MINE, OTHER = worker(1), worker(2)
FILES = {key("config.json"): b"{}"}


@pytest.fixture
def drained(world: World) -> World:
    """One owner drains for five minutes; another shares its file."""
    world.attach(MINE, FILES)
    world.attach(OTHER, FILES, lease=None)
    world.sweep()
    outcome = world.drain(MINE, 5 * MINUTE)
    assert outcome == Drained(MINE, world.clock.now + 5 * MINUTE)
    return world


def test_it_is_served_and_renewed_until_the_deadline_and_then_detached(drained: World) -> None:
    """Exactly as if it had unregistered; the journal says that the deadline did it."""
    drained.sweeping_for(5 * MINUTE - 1, renewing=[MINE])
    assert drained.sql("SELECT state FROM holders ORDER BY instance_id") == [
        ("draining",),
        ("active",),
    ]
    drained.clock.now += 1
    (ended,) = drained.sweep().ended
    assert (ended.owner, ended.state, ended.reason) == (
        MINE,
        OwnerState.DETACHED,
        "drain deadline",
    )
    assert drained.kinds("drained", "detached") == [
        ("drained", "within 300 s"),
        ("detached", "drain deadline"),
    ]
    assert drained.sql("SELECT instance_id FROM holders") == [("2",)]
    assert drained.sql(
        "SELECT state, end_reason, drain_deadline_at, lease_ttl_ms FROM owners WHERE id = 1"
    ) == [("detached", "drain deadline", None, None)]
    assert isinstance(drained.renew(MINE)[0], LeaseGone)
    drained.assert_healthy()


def test_registering_again_cancels_it(drained: World) -> None:
    drained.clock.now += MINUTE
    registered_at = drained.sql("SELECT registered_at FROM owners WHERE id = 1")
    drained.attach(MINE, FILES)
    assert drained.states()[MINE] == "active"
    assert drained.sql("SELECT drain_deadline_at FROM owners WHERE id = 1") == [(None,)]
    assert drained.sql("SELECT registered_at FROM owners WHERE id = 1") == registered_at
    assert drained.kinds("attached")[-1] == ("attached", "drain cancelled")
    drained.sweeping_for(10 * MINUTE, renewing=[MINE])
    assert drained.states()[MINE] == "active"
    drained.assert_healthy()


def test_renewing_does_not_cancel_it(drained: World) -> None:
    """A worker's heartbeat goes on while it finishes its requests."""
    drained.clock.now += MINUTE
    (renewed,) = drained.renew(MINE)
    assert isinstance(renewed, Renewed)
    assert renewed.lease == Lease(LEASE, drained.clock.now + LEASE)
    assert drained.states()[MINE] == "draining"
    drained.sweep()
    drained.assert_healthy()


def test_announcing_again_sets_another_deadline(drained: World) -> None:
    for deadline in (HOUR, SECOND):
        drained.drain(MINE, deadline)
        rows = drained.sql("SELECT drain_deadline_at FROM owners WHERE id = 1")
        assert rows == [(drained.clock.now + deadline,)]
    drained.sweeping_for(SECOND)
    assert drained.live() == {OTHER}
    drained.assert_healthy()


def test_unregistering_is_what_it_is_for(drained: World) -> None:
    receipt = drained.unregister(MINE)
    assert (receipt.released, receipt.kept[0].holders) == (1, 1)
    drained.sweep()
    assert drained.kinds("detached") == [("detached", "unregistered")]
    drained.assert_healthy()


def test_a_drained_worker_that_dies_ends_with_its_lease_and_the_grace(drained: World) -> None:
    """The deadline may be days away; nobody waits for it in vain."""
    drained.drain(MINE, 7 * DAY)
    drained.sweeping_for(LEASE + GRACE - 1)
    assert drained.states()[MINE] == "draining"
    drained.clock.now += 1
    drained.sweep()
    assert drained.states()[MINE] == "expired"
    drained.assert_healthy()


def test_who_has_no_lease_ends_at_the_deadline(drained: World) -> None:
    drained.drain(OTHER, MINUTE)
    drained.sweeping_for(MINUTE, renewing=[MINE])
    assert drained.live() == {MINE}
    drained.assert_healthy()


def test_a_base_model_and_its_loras_drain_each_for_itself(drained: World) -> None:
    lora = worker(1, "tuned")
    drained.attach(lora)
    drained.sweeping_for(5 * MINUTE, renewing=[MINE, lora])
    assert drained.live() == {OTHER, lora}
    drained.assert_healthy()


def test_the_audit_reports_one_that_is_stuck_until_the_next_sweep(drained: World) -> None:
    drained.renew(MINE)
    drained.sweeping_for(5 * MINUTE, renewing=[MINE], every=INTERVAL)
    drained.attach(MINE, FILES)
    drained.drain(MINE, SECOND)
    drained.clock.now += 2 * SECOND
    assert drained.findings() == {"immortal_owner": 1, "stuck_drain": 1}
    drained.sweep()
    drained.assert_healthy()


def test_drain_over_http(shared_server: Server) -> None:
    mine = worker(101)
    url = f"/v1/owners/{mine}/drain"
    assert shared_server.register(mine, []).status_code == 200
    until = ""
    for body, expected in ((None, 300), ({}, 300), ({"deadline_s": 1.5}, 1.5)):
        answer = shared_server.client.post(url, json=body)
        assert answer.status_code == 200
        assert answer.json()["state"] == "draining"
        event = shared_server.client.get(
            "/v1/events", params={"owner": str(mine), "kind": "drained", "order": "newest"}
        ).json()["events"][0]
        until, at = answer.json()["drain_deadline_at"], event["at"]
        assert parse_time(until) - parse_time(at) == expected * SECOND
        assert event["reason"] == f"within {expected:g} s"
    shown = shared_server.client.get(f"/v1/owners/{mine}").json()
    assert (shown["state"], shown["drain_deadline_at"]) == ("draining", until)
    assert shared_server.client.get(f"/v1/owners/{mine}").status_code == 200


@pytest.mark.parametrize(
    "body", ['{"deadline_s": 0}', '{"deadline_s": 1e9}', '{"deadline_s": "5"}', '{"more": 1}', "["]
)
def test_a_drain_that_is_not_well_formed_is_refused(shared_server: Server, body: str) -> None:
    mine = worker(102)
    assert shared_server.register(mine, []).status_code == 200
    answer = shared_server.client.post(
        f"/v1/owners/{mine}/drain", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert shared_server.client.get(f"/v1/owners/{mine}").json()["state"] == "active"


def test_drain_of_an_unknown_owner_is_410(shared_server: Server) -> None:
    answer = shared_server.client.post(f"/v1/owners/{worker(103)}/drain")
    assert (answer.status_code, answer.json()["code"]) == (410, "lease_gone")
