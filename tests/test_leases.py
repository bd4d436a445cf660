"""Leases (S9): who renews in time stays, who does not is suspect; what is over is over."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from registry.client.async_client import AsyncRegistryClient
from registry.client.client import RegistryClient
from registry.core.records import Drained, Lease, Owner, Registration, Renewed
from registry.core.times import parse_time
from registry.errors import Invalid, LeaseGone, RegistryError, Superseded
from registry.store.group_commit import BATCH_ITEMS, Writer
from registry.store.opening import open_database
from registry.store.ops import leases, register
from registry.store.owner_columns import identity
from registry.store.sqlite.engine import Database
from registry.store.tables import owners
from registry.wire.requests import DRAIN_DEFAULT_S
from tests.fleet import (
    DAY,
    GRACE,
    HOUR,
    LEASE,
    SECOND,
    START,
    World,
    count_statements,
    run_cli,
    worker,
)
from tests.places import SQLitePlace, on_both
from tests.support import Server, owner_body

pytestmark = on_both


def lease_of(outcome: object) -> Lease | None:
    assert isinstance(outcome, Renewed), outcome
    return outcome.lease


# What renewing does


def test_renewing_moves_the_end_of_the_lease_and_counts_what_is_held(world: World) -> None:
    mine = worker(1)
    registered = world.attach(mine)
    assert registered.lease == Lease(LEASE, START + LEASE)
    world.clock.now += 20 * SECOND
    (renewed,) = world.renew(mine)
    assert renewed == Renewed(mine, Lease(LEASE, START + 20 * SECOND + LEASE), refs=1)
    assert world.sql("SELECT lease_expires_at, renewed_at FROM owners") == [
        (START + 20 * SECOND + LEASE, START + 20 * SECOND)
    ]
    world.assert_healthy()


def test_an_owner_without_a_lease_is_only_noted_as_seen(world: World) -> None:
    mine = worker(1)
    world.attach(mine, lease=None)
    world.clock.now += DAY
    assert world.renew(mine) == [Renewed(mine, None, refs=1)]
    assert world.sql("SELECT lease_expires_at, renewed_at FROM owners") == [(None, START + DAY)]
    assert world.sweep().ended == ()
    world.assert_healthy()


def test_registering_renews_the_lease_and_may_change_it(world: World) -> None:
    mine = worker(1)
    world.attach(mine)
    for lease in (LEASE, 2 * LEASE, None, LEASE):
        world.clock.now += SECOND
        registered = world.attach(mine, lease=lease)
        expected = None if lease is None else Lease(lease, world.clock.now + lease)
        assert registered.lease == expected
        assert lease_of(world.renew(mine)[0]) == expected
    world.assert_healthy()


def test_a_lapsed_owner_is_served_and_may_renew_until_it_is_ended(world: World) -> None:
    """It is suspect, no more (S9)."""
    mine = worker(1)
    world.attach(mine)
    world.sweep()
    world.sweeping_for(LEASE + GRACE - 1)
    assert world.sql("SELECT state FROM holders") == [("active",)]
    (renewed,) = world.renew(mine)
    assert lease_of(renewed) == Lease(LEASE, world.clock.now + LEASE)
    world.sweeping_for(LEASE + GRACE - 1)
    assert world.states() == {mine: "active"}
    world.assert_healthy()


TIMES = {
    "lease_expires_at": "'1'",
    "lease_ttl_ms": "'1'",
    "registered_at": "'1'",
    "renewed_at": "'1'",
    "drain_deadline_at": "'2'",
    "ended_at": "'3'",
}
"""Every time of an owner, and the instance of whose row the test below changes it."""


def test_every_time_of_an_owner_is_tried() -> None:
    found = {each.name for each in owners.c if each.name.endswith(("_at", "_ms"))}
    assert found == TIMES.keys()


@pytest.mark.parametrize("outage", [False, True])
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
@pytest.mark.parametrize("column", TIMES)
def test_a_time_that_somebody_wrote_by_hand_stops_no_sweep(
    world: World, column: str, value: int, outage: bool
) -> None:
    _, ended, other = world.attach_many([worker(1), worker(3), worker(4)])
    (draining,) = world.attach_many([worker(2)], lease=None)
    world.drain(draining)
    world.unregister(ended)
    world.sweep()
    with world.place.sql() as connection:
        connection.execute(
            f"UPDATE owners SET {column} = {value} WHERE instance_id = {TIMES[column]}"
        )
    if outage:
        world.clock.now += HOUR
    world.sweeping_for(2 * (LEASE + GRACE) + 20 * SECOND)
    assert world.states()[other] == "expired"
    world.prune()


def test_an_owner_that_was_ended_or_never_was_gets_lease_gone_and_may_attach_again(
    world: World,
) -> None:
    expired, detached, unknown = worker(1), worker(2), worker(3)
    world.attach(expired)
    world.attach(detached)
    world.unregister(detached)
    world.sweep()
    world.sweeping_for(LEASE + GRACE)
    assert world.states() == {expired: "expired", detached: "detached"}
    for outcome in world.renew(expired, detached, unknown):
        assert type(outcome) is LeaseGone
        assert "Register its artifacts again" in outcome.detail
    for owner in (expired, detached, unknown):
        assert type(world.drain(owner)) is LeaseGone
    for owner in (expired, detached, unknown):
        world.attach(owner)
        assert lease_of(world.renew(owner)[0])
    assert world.live() == {expired, detached, unknown}
    world.assert_healthy()


def test_renewals_of_one_list_are_judged_each_for_itself(world: World) -> None:
    mine, gone = worker(1), worker(2)
    world.attach(mine)
    first, lost, second = world.renew(mine, gone, mine)
    assert lease_of(first) == lease_of(second) == Lease(LEASE, START + LEASE)
    assert isinstance(lost, LeaseGone)
    world.assert_healthy()


def test_an_id_that_is_somebody_elses_by_now_renews_nobody_in_its_place(world: World) -> None:
    """A transaction that is rolled back gives its ids back."""
    lost, other = worker(1), worker(2)
    with suppress(InterruptedError), world.database.write() as conn:
        register.register(conn, conn.now, [Registration(lost, (), LEASE)])
        (renewed,) = world.renewing.renew(conn, conn.now, [identity(lost)])
        raise InterruptedError
    assert isinstance(renewed, leases.Renewal)
    world.attach(other)
    assert world.sql("SELECT id FROM owners") == [(renewed.owner_id,)]
    world.clock.now += SECOND
    assert [type(each) for each in world.renew(lost)] == [LeaseGone]
    assert world.sql("SELECT renewed_at FROM owners") == [(START,)]
    first, second = world.renew(other, lost)
    assert isinstance(first, Renewed)
    assert type(second) is LeaseGone
    world.assert_healthy()


def test_whoever_is_registered_anew_after_its_tombstone_is_renewed(world: World) -> None:
    mine = worker(1)
    world.attach(mine)
    assert lease_of(world.renew(mine)[0])
    world.unregister(mine)
    world.clock.now += 8 * DAY
    world.prune()
    assert world.states() == {}
    assert type(world.renew(mine)[0]) is LeaseGone
    world.attach(mine)
    for _ in range(2):
        assert lease_of(world.renew(mine)[0]) == Lease(LEASE, world.clock.now + LEASE)
    world.assert_healthy()


def test_more_owners_than_are_remembered_are_all_renewed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "KNOWN_MAX", 3)
    fleet = world.attach_many(map(worker, range(1, 9)))
    for count in (2, 3, 8, 8, 1):
        world.clock.now += SECOND
        for renewed in world.renew(*fleet[:count]):
            assert lease_of(renewed) == Lease(LEASE, world.clock.now + LEASE)
    world.assert_healthy()


def test_a_renewal_answers_what_the_worker_holds_when_an_administrator_took_it_away(
    world: World,
) -> None:
    """The worker compares the count with its own, and registers again."""
    mine = worker(1)
    world.attach(mine)
    world.remove("own-1-base")
    (renewed,) = world.renew(mine)
    assert isinstance(renewed, Renewed)
    assert renewed.refs == 0
    world.assert_healthy()


# Cheap


def test_renewals_of_10_000_owners_share_commits_and_write_no_journal(world: World) -> None:
    """Some statements for each batch, however many owners are in it; no journal rows."""
    fleet = [worker(number) for number in range(10_000)]
    with world.database.write() as conn:
        for start in range(0, len(fleet), 1000):
            items = [Registration(owner, (), LEASE) for owner in fleet[start : start + 1000]]
            register.register(conn, conn.now, items)
    before = world.sql("SELECT COUNT(*), MAX(id) FROM events")
    world.clock.now += 20 * SECOND
    traced = Traced(world.url, clock=world.clock) if isinstance(world.place, SQLitePlace) else None
    database = traced or open_database(world.url, clock=world.clock)
    writer = Writer(database, queue_max=len(fleet))

    renewing = leases.RenewOperation()

    async def renew_all() -> Sequence[leases.Renewal]:
        renewals = [
            asyncio.ensure_future(writer.submit(renewing.renew, identity(each))) for each in fleet
        ]
        await asyncio.sleep(0)  # All wait in the queue before the writer takes the first.
        writer.start()
        return await asyncio.gather(*renewals)

    outcomes = asyncio.run(renew_all())
    writer.close()
    database.close()
    assert len(outcomes) == len({each.owner_id for each in outcomes}) == len(fleet)
    assert world.sql("SELECT DISTINCT renewed_at, lease_expires_at FROM owners") == [
        (world.clock.now, world.clock.now + LEASE)
    ]
    assert world.sql("SELECT COUNT(*), MAX(id) FROM events") == before
    assert writer.stats.batches == math.ceil(len(fleet) / BATCH_ITEMS)
    if traced is not None:
        written = [text for text in traced.statements if not text.startswith("PRAGMA")]
        assert len(written) == 4 * writer.stats.batches  # BEGIN, find, update, COMMIT.
    world.assert_healthy()


class Traced(Database):
    """Notes every statement of its write connections."""

    statements: list[str]

    def connect(self, mode: str, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = super().connect(mode, *arguments, **options)
        if mode == "rw":
            self.statements = count_statements(connection)
        return connection


# Over HTTP, in Python and on the command line


def test_renewing_over_http_answers_the_lease_or_410(shared_server: Server) -> None:
    mine = worker(2**64 - 1, "tuned")
    assert shared_server.register(mine, [], lease_ttl_s=30).status_code == 200
    answer = shared_server.client.post(f"/v1/owners/{mine}/renew")
    assert answer.status_code == 200
    body = answer.json()
    assert body["owner"]["instance_id"] == str(2**64 - 1)
    assert (body["lease"]["ttl_s"], body["refs"]) == (30, 0)
    assert_gone(shared_server.client.post(f"/v1/owners/{worker(5)}/renew"), "lease_gone")
    assert shared_server.unregister(mine).status_code == 200
    assert_gone(shared_server.client.post(f"/v1/owners/{mine}/renew"), "lease_gone")
    assert shared_server.client.post("/v1/owners/not-an-owner/renew").status_code == 404
    assert shared_server.client.post("/v1/owners/a/b/c/01/_base/renew").status_code == 422


def assert_gone(answer: httpx2.Response, code: str) -> None:
    assert answer.status_code == 410
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code


def test_a_lease_is_a_minute_unless_said_otherwise_and_within_its_limits(
    shared_server: Server,
) -> None:
    for fields, expected in (({}, 60), ({"lease_ttl_s": 1.5}, 1.5), ({"lease_ttl_s": None}, None)):
        lease = shared_server.register(worker(1), [], **fields).json()["lease"]
        assert (lease and lease["ttl_s"]) == expected
    for wrong in (0, 0.5, -1, 7 * 24 * 3600 + 1, "60", True):
        answer = shared_server.register(worker(1), [], lease_ttl_s=wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_the_client_renews_and_drains(shared_server: Server) -> None:
    mine = worker(7)
    with RegistryClient(shared_server.url) as client:
        client.register(mine, [], lease_ttl_s=30)
        renewed = client.renew(mine)
        assert (renewed.owner, renewed.refs) == (mine, 0)
        assert renewed.lease is not None
        assert renewed.lease.ttl_ms == 30 * SECOND
        drained = client.drain(mine, deadline_s=20)
        assert drained.owner == mine
        listed = client.owner(mine).record
        assert (listed.state, listed.drain_deadline_at) == ("draining", drained.deadline_at)
        assert client.renew(mine).lease is not None
        for wrong in (0.0, 0.5, 1e9):
            with pytest.raises(Invalid):
                client.drain(mine, deadline_s=wrong)
        client.unregister_for_owner(mine)
        for gone in (client.renew, client.drain):
            with pytest.raises(LeaseGone):
                gone(mine)


def test_the_client_tells_a_replaced_worker_from_one_whose_lease_is_gone(
    shared_server: Server,
) -> None:
    with RegistryClient(shared_server.url) as client:
        for number in (11, 12):
            client.register(worker(number), [], lease_ttl_s=30, worker_name="rank-0")
        calls: list[Callable[[Owner], Renewed | Drained]] = [client.renew, client.drain]
        for call in calls:
            with pytest.raises(Superseded):
                call(worker(11))


def test_the_command_line_renews_and_drains(shared_server: Server) -> None:
    mine = worker(8)
    assert shared_server.register(mine, [], lease_ttl_s=30).status_code == 200

    code, out, err = run_cli("renew", mine, "--url", shared_server.url)
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["owner", "lease ends", "files"]
    code, out, _ = run_cli("renew", mine, "--url", shared_server.url, "--json")
    answer = json.loads(out)
    assert (code, answer["lease"]["ttl_s"], answer["refs"]) == (0, 30, 0)

    code, out, err = run_cli("drain", mine, "--deadline-s", 20, "--url", shared_server.url)
    assert (code, err) == (0, "")
    until = shared_server.client.get(f"/v1/owners/{mine}").json()["drain_deadline_at"]
    assert out == f"owner          {mine}\ndrained until  {until}\n"
    code, out, _ = run_cli("drain", mine, "--url", shared_server.url, "--json")
    answer = json.loads(out)
    assert (code, answer["state"]) == (0, "draining")
    renewed_at = shared_server.client.get(f"/v1/owners/{mine}").json()["renewed_at"]
    later = parse_time(answer["drain_deadline_at"]) - parse_time(renewed_at)
    assert later >= DRAIN_DEFAULT_S * SECOND

    assert shared_server.register(mine, [], lease_ttl_s=None).status_code == 200
    code, out, _ = run_cli("renew", mine, "--url", shared_server.url)
    assert (code, "never: it has none" in out) == (0, True)


@pytest.mark.parametrize("command", ["renew", "drain"])
def test_the_command_line_says_what_it_cannot_do(shared_server: Server, command: str) -> None:
    """1: the registry said no. 2: it could not be asked."""
    code, out, err = run_cli(command, worker(9), "--url", shared_server.url)
    assert (code, out) == (1, "")
    assert err.startswith("error: The owner was ended or never registered.")
    for arguments in ([], ["no-owner"], [worker(1), "--url", "http://127.0.0.1:1"]):
        code, out, err = run_cli(command, *arguments)
        assert (code, out) == (2, "")
        assert err
    code, _, err = run_cli("drain", worker(1), "--deadline-s", "0", "--url", shared_server.url)
    assert (code, "it must be 1 s to" in err) == (2, True)


def test_a_replaced_worker_is_told_so_on_the_command_line(shared_server: Server) -> None:
    for number in (21, 22):
        shared_server.register(worker(number), [], worker_name="rank-1")
    code, _, err = run_cli("renew", worker(21), "--url", shared_server.url)
    assert (code, "newer instance" in err) == (1, True)


# Many in one call


def test_many_renewals_over_http_are_judged_each_for_itself_in_their_order(
    shared_server: Server,
) -> None:
    mine, tuned, gone = worker(31), worker(31, "tuned"), worker(32)
    for each in (mine, tuned):
        shared_server.register(each, [], lease_ttl_s=30)
    wanted = [owner_body(each) for each in (tuned, gone, mine)]
    answer = shared_server.client.post("/v1/renewals", json={"owners": wanted})
    assert answer.status_code == 200
    first, lost, last = answer.json()["renewals"]
    assert [each["owner"]["instance_id"] for each in (first, lost, last)] == ["31", "32", "31"]
    assert (first["lease"]["ttl_s"], first["refs"], first["unserveable"]) == (30, 0, 0)
    assert set(lost) == {"owner", "error"}
    assert lost["error"]["code"] == "lease_gone"
    assert "error" not in last


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"owners": []}, 200),
        ({"owners": [owner_body(worker(1))] * 1001}, 422),
        ({"owners": [{"namespace": "a"}]}, 422),
        ({"owners": None}, 422),
        ({}, 422),
        ({"owners": [], "more": 1}, 422),
        ([], 422),
    ],
    ids=str,
)
def test_what_is_no_list_of_at_most_1000_owners_is_refused(
    shared_server: Server, body: object, status: int
) -> None:
    answer = shared_server.client.post("/v1/renewals", json=body)
    assert answer.status_code == status
    assert status == 422 or answer.json() == {"renewals": []}


def test_the_client_renews_many_a_thousand_by_a_call(shared_server: Server) -> None:
    fleet = [Owner("own", "backend", "generate", number) for number in range(1, 1203)]
    with RegistryClient(shared_server.url) as client:
        for owner in fleet[::600]:
            client.register(owner, [], lease_ttl_s=30)
        outcomes = client.renew_many([str(fleet[0]), *fleet[1:]])
    assert len(outcomes) == len(fleet)
    for number, outcome in enumerate(outcomes):
        if number % 600:
            assert isinstance(outcome, LeaseGone)
        else:
            assert isinstance(outcome, Renewed)
            assert outcome.owner == fleet[number]


def test_an_asyncio_client_renews_many(shared_server: Server) -> None:
    async def scenario() -> list[Renewed | RegistryError]:
        async with AsyncRegistryClient(shared_server.url) as client:
            await client.register(worker(41), [], lease_ttl_s=30)
            return await client.renew_many([worker(41), worker(42)])

    renewed, gone = asyncio.run(scenario())
    assert isinstance(renewed, Renewed)
    assert isinstance(gone, LeaseGone)


def test_many_renewals_are_one_commit_and_none_in_the_journal(world: World) -> None:
    fleet = [worker(number) for number in range(1, 50)]
    for each in fleet:
        world.attach(each)
    before = world.sql("SELECT COUNT(*) FROM events")
    with world.database.write() as conn:
        [outcomes] = leases.RenewOperation().renew_many(
            conn, conn.now, [list(map(identity, fleet))]
        )
    assert not any(isinstance(each, RegistryError) for each in outcomes)
    assert world.sql("SELECT COUNT(*) FROM events") == before
    world.assert_healthy()
