"""Several service processes on one database in PostgreSQL are one registry (S7, S9, S11, S16)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from tests.linearizable import OPEN, Call, is_linearizable
from tests.postgres import Cluster
from tests.replicas import CONTENT, Callers, assert_sound_at, set_fixed, start
from tests.support import Server, copied, owner_body

REPLICAS = 3
OWNERS = int(os.environ.get("FLEET_OWNERS", "60"))
MODELS = OWNERS // 4
SECONDS = 8.0
KILLS = int(os.environ.get("FLEET_KILLS", "3"))
DOOMED_TTL_S = 1.0
DOOMED_EVERY = 10
"""One attachment in so many is of a worker that dies at once."""


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with cluster.database() as made:
        yield made
        assert_sound_at(made)


# One registry


class Fleet:
    """Workers that share models, and what each of their calls was told, by model."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.calls: dict[int, list[Call]] = defaultdict(list)
        self.events: list[int] = []
        self._instances = iter(range(1, 1_000_000))
        self._is_ending = False

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=30) as self._client:
            reading = asyncio.create_task(self._follow())
            until = time.monotonic() + SECONDS
            await asyncio.gather(*(self._work(number, until) for number in range(OWNERS)))
            self._is_ending = True
            await reading

    async def _call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        answer = await self._client.request(method, random.choice(self.urls) + path, **request)
        assert answer.status_code in (200, 404, 410), answer.text
        return answer

    async def _note(self, model: int, kind: str, instance: int, worker: str) -> bool:
        """Make a call; whether it was told yes."""
        owner = Owner("ns", "backend", "generate", instance)
        key = ArtifactKey(f"model-{model}", "_base", "config.json")
        began = time.monotonic()
        if kind == "get":
            answer = await self._call("GET", f"/v1/metadata/{key}")
        elif kind == "renew":
            answer = await self._call("POST", f"/v1/owners/{owner}/renew")
        elif kind == "detach":
            answer = await self._call("DELETE", f"/v1/owners/{owner}")
        else:
            ttl_s = DOOMED_TTL_S if kind == "doomed" else 600
            body = {"owner": owner_body(owner), "lease_ttl_s": ttl_s, "worker_name": worker}
            artifacts = [copied(key, CONTENT)]
            answer = await self._call(
                "POST", "/v1/registrations", json={**body, "artifacts": artifacts}
            )
        told = answer.status_code == 200
        kind = "attach" if kind == "doomed" else kind
        call = Call(began, time.monotonic(), kind, instance, worker, told)
        self.calls[model].append(call)
        return told

    async def _work(self, number: int, until: float) -> None:
        """The instances of one worker, one after another, and sometimes two: a newer one that
        takes the place of an older one, which goes on for a while."""
        rng = random.Random()
        model, worker, instances = number % MODELS, f"worker-{number}", list[int]()
        while time.monotonic() < until:
            await asyncio.sleep(rng.random() * 0.1)
            kind = rng.choice(["attach", "attach", "detach", "renew", "get", "get", "get"])
            if kind == "attach" or not instances:
                instances.append(next(self._instances))
                if rng.randrange(DOOMED_EVERY) == 0:
                    began = time.monotonic()
                    instance = instances.pop()
                    await self._note(model, "doomed", instance, f"doomed-{instance}")
                    lapse = Call(
                        began + DOOMED_TTL_S, OPEN, "detach", instance, f"doomed-{instance}"
                    )
                    self.calls[model].append(lapse)
                    continue
                kind = "attach"
            instance = rng.choice(instances[-2:])
            await self._note(
                rng.randrange(MODELS) if kind == "get" else model, kind, instance, worker
            )

    async def _follow(self) -> None:
        """Read the journal with a cursor, until the end and once more."""
        while True:
            was_ending = self._is_ending
            after = self.events[-1] if self.events else 0
            answer = await self._call("GET", "/v1/events", params={"after": after, "limit": 1000})
            found = [int(each["id"]) for each in answer.json()["events"]]
            self.events += found
            if was_ending and not found:
                return
            await asyncio.sleep(0.02)


def test_the_history_of_replicas_is_one_that_a_single_registry_could_have_had(url: str) -> None:
    flags = {"lease_grace_s": 1, "sweep_interval_s": 0.3, "brake_min_owners": 1_000_000}
    with ExitStack() as stack:
        services = [stack.enter_context(start(url, **flags)) for _ in range(REPLICAS)]
        set_fixed(services[0])
        fleet = Fleet([each.url for each in services])
        asyncio.run(fleet.run())
        wrong = [model for model, calls in fleet.calls.items() if not is_linearizable(calls)]
        assert wrong == []
        assert sum(len(calls) for calls in fleet.calls.values()) > OWNERS
        all_events: list[int] = []
        while found := events_after(services[1], all_events[-1] if all_events else 0):
            all_events += found
        assert fleet.events == sorted(fleet.events)
        assert fleet.events == all_events[: len(fleet.events)]
        print(sum(map(len, fleet.calls.values())), "calls,", len(fleet.events), "events")


def events_after(service: Server, after: int) -> list[int]:
    answer = service.client.get("/v1/events", params={"after": after, "limit": 1000})
    return [int(each["id"]) for each in answer.json()["events"]]


def test_a_history_that_no_single_registry_could_have_had_is_found() -> None:
    attached = Call(0, 1, "attach", 1, "a", True)
    detached = Call(2, 3, "detach", 1, "a", True)
    assert is_linearizable([attached, detached, Call(2, 3, "get", told=True)])
    assert not is_linearizable([attached, detached, Call(4, 5, "get", told=True)])
    assert not is_linearizable([attached, Call(2, 3, "get", told=False)])
    newer = Call(2, 3, "attach", 2, "a", True)
    assert not is_linearizable([attached, newer, Call(4, 5, "renew", 1, "a", True)])
    lapse = Call(2, OPEN, "detach", 1, "a")
    seen = [Call(3, 4, "get", told=False), Call(5, 6, "get", told=True)]
    assert is_linearizable([attached, lapse, seen[0]])
    assert not is_linearizable([attached, lapse, *seen])


# kill -9 of a replica


@pytest.mark.timeout(600)
def test_after_kill_9_of_a_replica_nothing_acknowledged_is_lost_and_others_go_on(url: str) -> None:
    with ExitStack() as stack:
        services = [stack.enter_context(start(url)) for _ in range(REPLICAS)]
        set_fixed(services[0])
        with Callers(
            [each.url for each in services], writers=64, loses_connections=True
        ) as callers:
            for number in range(KILLS):
                callers.wait_for_more(random.randint(20, 200))
                victim = number % REPLICAS
                services[victim].kill()
                callers.wait_for_more(50)
                services[victim] = stack.enter_context(start(url))
                callers.urls[victim] = services[victim].url
            callers.wait_for_more(50)
        callers.check(url)
        print(
            f"{KILLS} kills: 0 lost of {len(callers.acknowledged)} acknowledged; "
            f"{callers.lost} connections broke"
        )
