"""Registering and unregistering over HTTP: sharing, conflicts, receipts (S1-S7)."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from registry.core.records import ArtifactKey, Owner
from tests.exchanges import (
    Line,
    journal,
    key_of,
    new_slug,
    problem_of,
    request,
    rows_of,
    running,
    worker,
)
from tests.places import Places, on_both
from tests.support import Server, checksum, copied, in_place, owner_body, wait_for

pytestmark = on_both

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch


@pytest.fixture(scope="module")
def shared(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("registering")
    with places.at(folder) as place, running(place, artifact_root=folder) as server:
        yield server


@pytest.fixture
def slug() -> str:
    return new_slug()


def outcomes(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [artifact["outcome"] for artifact in answer.json()["artifacts"]]


def holder_count(server: Server, key: ArtifactKey) -> int:
    answer = server.client.get(f"/v1/artifacts/{key}")
    return len(answer.json()["holders"]) if answer.status_code == 200 else 0


def held(server: Server, owner: Owner) -> dict[str, str]:
    """The checksums of what an owner holds, by file name."""
    entries = server.client.get(f"/v1/owners/{owner}").json()["entries"]
    return {entry["filename"]: entry["checksum"] for entry in entries}


# S1-S4


def test_a_new_key_is_created_with_all_that_the_answer_promises(shared: Server, slug: str) -> None:
    key, owner = key_of(slug), worker(slug)
    answer = shared.register_copies(owner, {key: b"content"}).json()
    lease = answer["lease"]
    assert (lease["ttl_s"], bool(RFC_3339(lease["expires_at"]))) == (60, True)
    assert answer["owner"] == owner_body(owner)
    assert answer["artifacts"] == [
        {
            "slug": slug,
            "suffix": "_base",
            "filename": "config.json",
            "checksum": checksum(b"content"),
            "size": 7,
            "url": f"/v1/metadata/{slug}/_base/config.json",
            "outcome": "created",
        }
    ]
    assert shared.fetch(key).content == b"content"


def test_the_same_content_of_another_owner_is_shared(shared: Server, slug: str) -> None:
    key = key_of(slug)
    assert outcomes(shared.register_copies(worker(slug, 1), {key: b"same"})) == ["created"]
    assert outcomes(shared.register_copies(worker(slug, 2), {key: b"same"})) == ["shared"]
    assert holder_count(shared, key) == 2
    with shared.place.sql() as connection:
        query = "SELECT count(*), sum(generation) FROM entries WHERE slug = ?"
        assert connection.execute(query, [slug]).fetchone() == (1, 1)


def test_the_same_content_of_the_same_owner_is_unchanged_and_renews_its_lease(
    shared: Server, slug: str
) -> None:
    key, owner = key_of(slug), worker(slug)
    first = shared.register_copies(owner, {key: b"same"}, lease_ttl_s=60)
    events = journal(shared.place, slug=slug)
    again = shared.register_copies(owner, {key: b"same"}, lease_ttl_s=3600)
    assert outcomes(again) == ["unchanged"]
    assert again.json()["lease"]["ttl_s"] == 3600
    assert again.json()["lease"]["expires_at"] > first.json()["lease"]["expires_at"]
    assert journal(shared.place, slug=slug) == events


def test_other_content_of_the_sole_holder_replaces(shared: Server, slug: str) -> None:
    key, owner = key_of(slug), worker(slug)
    shared.register_copies(owner, {key: b"before"})
    assert outcomes(shared.register_copies(owner, {key: b"after, and longer"})) == ["replaced"]
    assert shared.fetch(key).content == b"after, and longer"
    entry = shared.client.get(f"/v1/artifacts/{key}").json()["entry"]
    assert (entry["generation"], entry["size"]) == (2, 17)
    [event] = journal(shared.place, "replaced", slug=slug)
    assert event["previous_checksum"] == checksum(b"before")
    assert event["checksum"] == checksum(b"after, and longer")


def test_other_content_of_one_of_two_holders_is_a_conflict(shared: Server, slug: str) -> None:
    key = key_of(slug)
    first, second = worker(slug, 1), worker(slug, 2)
    shared.register_copies(first, {key: b"shared"})
    shared.register_copies(second, {key: b"shared"})
    problem = problem_of(shared.register_copies(first, {key: b"other"}), 409, "conflict")
    [conflict] = problem["conflicts"]
    assert [holder["instance_id"] for holder in conflict["holders"]] == ["2"]
    assert shared.fetch(key).content == b"shared"
    shared.unregister(second)
    assert outcomes(shared.register_copies(first, {key: b"other"})) == ["replaced"]
    assert shared.fetch(key).content == b"other"


def test_a_conflict_in_one_of_five_files_changes_nothing_at_all(shared: Server, slug: str) -> None:
    holder, late = worker(slug, 2**64 - 1, "decode", "lora-a"), worker(slug, 7)
    key = key_of(slug, "file-3.json")
    registered = shared.register_copies(holder, {key: b"of the holder"}, lease_ttl_s=90)
    kept = key_of(slug, "earlier.json")
    shared.register_copies(late, {kept: b"earlier"}, lease_ttl_s=None)
    manifest = {key_of(slug, f"file-{number}.json"): b"new %d" % number for number in range(5)}
    for content in manifest.values():
        shared.upload(content)
    lines = [copied(each, content) for each, content in manifest.items()]
    before = rows_of(shared.place)

    problem = problem_of(shared.register(late, lines, lease_ttl_s=5), 409, "conflict")

    [conflict] = problem["conflicts"]
    since = conflict["holders"][0].pop("since")
    assert RFC_3339(since)
    assert conflict == {
        "slug": slug,
        "suffix": "_base",
        "filename": "file-3.json",
        "registered": checksum(b"of the holder"),
        "offered": checksum(b"new 3"),
        "holders": [
            {
                **owner_body(holder),
                "state": "active",
                "lease_expires_at": registered.json()["lease"]["expires_at"],
                "source": "copied",
            }
        ],
    }
    after = rows_of(shared.place)
    [refused] = journal(shared.place, "refused", namespace=slug)
    assert (refused["instance_id"], refused["filename"]) == ("7", "file-3.json")
    assert refused["checksum"] == checksum(b"new 3")
    assert refused["previous_checksum"] == checksum(b"of the holder")
    unchanged = {name for name in before if before[name] == after[name]}
    assert before.keys() - unchanged <= {"events", "ids"}
    assert len(after["events"]) == len(before["events"]) + 1
    assert held(shared, late) == {"earlier.json": checksum(b"earlier")}
    assert shared.fetch(kept).content == b"earlier"
    assert shared.fetch(key).content == b"of the holder"
    for each in manifest.keys() - {key}:
        assert shared.fetch(each).status_code == 404

    for _ in range(3):
        assert shared.register(late, lines, lease_ttl_s=5).status_code == 409
    assert rows_of(shared.place) == after


def test_another_refusal_is_journalled_again(shared: Server, slug: str) -> None:
    key = key_of(slug)
    shared.register_copies(worker(slug, 1), {key: b"held"})
    for content in (b"first", b"first", b"second", b"second", b"first"):
        shared.register_copies(worker(slug, 2), {key: content})
    refused = journal(shared.place, "refused", slug=slug)
    offered = [checksum(content) for content in (b"first", b"second", b"first")]
    assert [event["checksum"] for event in refused] == offered


def test_a_conflict_names_every_key_and_every_holder(shared: Server, slug: str) -> None:
    keys = [key_of(slug, name) for name in ("a", "b", "c")]
    for number in (1, 2):
        shared.register_copies(worker(slug, number), dict.fromkeys(keys, b"held"))
    answer = shared.register_copies(worker(slug, 3), dict.fromkeys(keys[:2], b"other"))
    conflicts = problem_of(answer, 409, "conflict")["conflicts"]
    found = {c["filename"]: [h["instance_id"] for h in c["holders"]] for c in conflicts}
    assert found == {"a": ["1", "2"], "b": ["1", "2"]}


def test_one_of_two_new_registrations_that_contradict_each_other_wins(
    shared: Server, slug: str
) -> None:
    contents = [b"content %d" % number for number in range(16)]
    for content in contents:
        shared.upload(content)

    def register(number: int) -> int:
        with httpx2.Client(base_url=shared.url, timeout=60) as client:
            body = {
                "owner": owner_body(worker(slug, number)),
                "artifacts": [
                    copied(key_of(slug, f"own-{number}"), contents[number]),
                    copied(key_of(slug), contents[number]),
                ],
            }
            return client.post("/v1/registrations", json=body).status_code

    with ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(register, range(16)))
    assert sorted(statuses) == [200] + [409] * 15
    winner = statuses.index(200)
    assert shared.fetch(key_of(slug)).content == contents[winner]
    listed = shared.client.get("/v1/artifacts", params={"slug": slug}).json()["artifacts"]
    assert {entry["filename"] for entry in listed} == {"config.json", f"own-{winner}"}


def test_a_key_that_is_named_twice_is_refused(shared: Server, slug: str) -> None:
    key = key_of(slug)
    shared.upload(b"one")
    shared.upload(b"two")
    before = rows_of(shared.place)
    for second in (b"one", b"two"):
        lines = [copied(key, b"one"), copied(key_of(slug, "other"), b"one"), copied(key, second)]
        problem = problem_of(shared.register(worker(slug), lines), 422, "invalid")
        assert str(key) in problem["detail"]
    assert rows_of(shared.place) == before


def test_missing_content_is_listed_completely_and_nothing_is_written(
    shared: Server, slug: str
) -> None:
    contents = [f"{slug} {number}".encode() for number in range(5)]
    for content in contents[:2]:
        shared.upload(content)
    lines = [copied(key_of(slug, f"file-{n}"), content) for n, content in enumerate(contents)]
    lines.append(copied(key_of(slug, "twin of the last"), contents[-1]))
    before = rows_of(shared.place)
    problem = problem_of(shared.register(worker(slug), lines), 424, "content_missing")
    assert problem["missing"] == [checksum(content) for content in contents[2:]]
    assert rows_of(shared.place) == before
    for content in contents[2:]:
        shared.upload(content)
    assert outcomes(shared.register(worker(slug), lines)) == ["created"] * 6


def test_content_that_another_key_has_as_a_copy_needs_no_upload(shared: Server, slug: str) -> None:
    content = f"content of {slug}".encode()
    shared.register_copies(worker(slug, 1), {key_of(slug, "a"): content})
    lines = [copied(key_of(slug, "b"), content)]
    assert outcomes(shared.register(worker(slug, 2), lines)) == ["created"]
    assert shared.fetch(key_of(slug, "b")).content == content


def test_content_that_is_only_in_a_file_of_another_owner_must_be_uploaded(
    shared: Server, slug: str
) -> None:
    content = f"content of {slug}".encode()
    path = shared.place.folder / (f"{slug}.json")
    path.write_bytes(content)
    shared.register(worker(slug, 1), [in_place(key_of(slug), path)])
    lines = [copied(key_of(slug), content)]
    problem_of(shared.register(worker(slug, 2), lines), 424, "content_missing")
    shared.upload(content)
    assert outcomes(shared.register(worker(slug, 2), lines)) == ["shared"]


def test_an_upload_says_whether_the_content_was_there(shared: Server, slug: str) -> None:
    content = f"content of {slug}".encode()
    url = f"/v1/blobs/{checksum(content)}"
    assert shared.client.head(url).status_code == 404
    assert shared.upload(content).status_code == 201
    assert shared.client.head(url).status_code == 200
    assert shared.upload(content).status_code == 200
    with shared.place.sql() as connection:
        query = "SELECT content FROM blobs WHERE checksum = ?"
        assert connection.execute(query, [checksum(content)]).fetchall() == [(content,)]


def test_registering_again_adds_and_never_drops(shared: Server, slug: str) -> None:
    owner = worker(slug)
    a, b, c = (key_of(slug, name) for name in "abc")
    shared.register_copies(owner, {a: b"a", b: b"b"})
    assert outcomes(shared.register_copies(owner, {b: b"b", c: b"c"})) == ["unchanged", "created"]
    assert outcomes(shared.register(owner, [])) == []
    assert held(shared, owner) == {name: checksum(name.encode()) for name in "abc"}


def test_a_manifest_of_nothing_attaches_the_owner(shared: Server, slug: str) -> None:
    owner = worker(slug)
    assert outcomes(shared.register(owner, [], lease_ttl_s=None, worker_name="w.1")) == []
    shown = shared.client.get(f"/v1/owners/{owner}").json()
    assert RFC_3339(shown.pop("registered_at"))
    assert RFC_3339(shown.pop("renewed_at"))
    expected: dict[str, object] = {
        "owner": owner_body(owner),
        "state": "active",
        "worker_name": "w.1",
        "lease": None,
        "ended_at": None,
        "end_reason": None,
        "entries": [],
    }
    assert expected.items() <= shown.items()


# S6: who an owner is


def test_prefill_and_decode_of_one_instance_are_two_owners(shared: Server, slug: str) -> None:
    contents = {key_of(slug, name): name.encode() for name in ("config.json", "tokenizer.json")}
    prefill, decode = worker(slug, 7, "prefill"), worker(slug, 7, "decode")
    shared.register_copies(prefill, contents)
    assert outcomes(shared.register_copies(decode, contents)) == ["shared"] * 2
    receipt = shared.unregister(prefill).json()
    assert (receipt["released"], receipt["removed"]) == (2, [])
    assert [kept["holders"] for kept in receipt["kept"]] == [1, 1]
    for key, content in contents.items():
        assert shared.fetch(key).content == content
    assert held(shared, decode) == {k.filename: checksum(c) for k, c in contents.items()}


def test_the_base_model_and_a_lora_of_one_instance_are_two_owners(
    shared: Server, slug: str
) -> None:
    base, lora = worker(slug), worker(slug, lora_slug="adapter")
    base_key, lora_key = key_of(slug), key_of(slug, suffix="adapter")
    shared.register_copies(base, {base_key: b"base"})
    shared.register_copies(lora, {lora_key: b"lora", base_key: b"base"})
    receipt = shared.unregister(lora).json()
    assert receipt["owner"]["lora_slug"] == "adapter"
    assert [removed["suffix"] for removed in receipt["removed"]] == ["adapter"]
    assert [kept["suffix"] for kept in receipt["kept"]] == ["_base"]
    assert shared.fetch(base_key).content == b"base"
    assert shared.fetch(lora_key).status_code == 404
    assert held(shared, base) == {"config.json": checksum(b"base")}


def test_a_lora_cannot_pass_for_the_base_model(shared: Server, slug: str) -> None:
    base = worker(slug)
    shared.register_copies(base, {key_of(slug): b"base"})
    body = {"owner": {**owner_body(base), "lora_slug": "_base"}, "artifacts": []}
    before = rows_of(shared.place)
    problem_of(shared.client.post("/v1/registrations", json=body), 422, "invalid")
    assert rows_of(shared.place) == before


# S1, S7: letting go


def test_a_receipt_tells_what_was_released_removed_and_kept(shared: Server, slug: str) -> None:
    first, second, third = (worker(slug, number) for number in (1, 2, 3))
    own, common = key_of(slug, "own"), key_of(slug, "common")
    shared.register_copies(first, {own: b"own", common: b"common"})
    shared.register_copies(second, {common: b"common"})
    shared.register_copies(third, {common: b"common"})
    answer = shared.unregister(first)
    assert answer.status_code == 200
    assert answer.json() == {
        "owner": owner_body(first),
        "released": 2,
        "removed": [{"slug": slug, "suffix": "_base", "filename": "own"}],
        "kept": [{"slug": slug, "suffix": "_base", "filename": "common", "holders": 2}],
    }
    assert shared.fetch(own).status_code == 404
    assert shared.fetch(common).content == b"common"
    assert shared.unregister(second).json()["kept"][0]["holders"] == 1
    assert shared.unregister(third).json()["removed"][0]["filename"] == "common"
    assert shared.fetch(common).status_code == 404


def test_unregistering_again_or_an_unknown_owner_gives_zeros(shared: Server, slug: str) -> None:
    owner = worker(slug)
    shared.register_copies(owner, {key_of(slug): b"content"})
    assert shared.unregister(owner).json()["released"] == 1
    before = rows_of(shared.place)
    for each in (owner, worker(slug, 99), worker(slug, lora_slug="nobody")):
        answer = shared.unregister(each)
        assert answer.status_code == 200
        zeros = {"released": 0, "removed": [], "kept": []}
        assert answer.json() == {"owner": owner_body(each), **zeros}
    assert rows_of(shared.place) == before


def test_an_owner_without_entries_is_ended_too(shared: Server, slug: str) -> None:
    owner = worker(slug)
    shared.register(owner, [])
    assert shared.unregister(owner).json()["released"] == 0
    assert shared.client.get(f"/v1/owners/{owner}").json()["state"] == "detached"


def test_a_detached_owner_is_remembered_and_may_come_back(shared: Server, slug: str) -> None:
    owner, key = worker(slug), key_of(slug)
    shared.register_copies(owner, {key: b"content"})
    shared.unregister(owner)
    shown = shared.client.get(f"/v1/owners/{owner}").json()
    assert (shown["state"], shown["entries"], shown["lease"]) == ("detached", [], None)
    assert RFC_3339(shown["ended_at"])
    assert shown["end_reason"]
    assert outcomes(shared.register_copies(owner, {key: b"other"})) == ["created"]
    shown = shared.client.get(f"/v1/owners/{owner}").json()
    assert (shown["state"], shown["ended_at"], shown["end_reason"]) == ("active", None, None)


def test_copied_content_goes_with_its_last_holder_once_its_upload_grace_is_over(
    shared: Server, slug: str
) -> None:
    content = f"content of {slug}".encode()
    url = f"/v1/blobs/{checksum(content)}"
    for number in (1, 2):
        shared.register_copies(worker(slug, number), {key_of(slug): content})
    with shared.place.sql() as connection:
        query = "UPDATE blobs SET uploaded_at = 0 WHERE checksum = ?"
        connection.execute(query, [checksum(content)])
    shared.unregister(worker(slug, 1))
    assert shared.client.head(url).status_code == 200
    shared.unregister(worker(slug, 2))
    assert shared.client.head(url).status_code == 404


def test_fresh_uploads_outlive_somebody_elses_removal(shared: Server, slug: str) -> None:
    content = f"content of {slug}".encode()
    shared.register_copies(worker(slug, 1), {key_of(slug): content})
    with shared.place.sql() as connection:
        query = "UPDATE blobs SET uploaded_at = 0 WHERE checksum = ?"
        connection.execute(query, [checksum(content)])
    assert shared.upload(content).status_code == 200
    shared.unregister(worker(slug, 1))
    lines = [copied(key_of(slug), content)]
    assert outcomes(shared.register(worker(slug, 2), lines)) == ["created"]


def test_an_administrator_drops_a_model_whoever_holds_it(shared: Server, slug: str) -> None:
    owners = [worker(slug, number) for number in (1, 2)]
    keys = [key_of(slug, name) for name in ("a", "b")]
    lora = key_of(slug, "a", suffix="adapter")
    for owner in owners:
        shared.register_copies(owner, dict.fromkeys([*keys, lora], b"content"))
    answer = shared.client.delete(f"/v1/artifacts/{slug}/_base")
    assert answer.status_code == 200
    receipt = answer.json()
    assert (receipt["owner"], receipt["released"], receipt["kept"]) == (None, 4, [])
    assert {removed["filename"] for removed in receipt["removed"]} == {"a", "b"}
    for key in keys:
        assert shared.fetch(key).status_code == 404
    assert shared.fetch(lora).content == b"content"
    for owner in owners:
        shown = shared.client.get(f"/v1/owners/{owner}").json()
        assert (shown["state"], len(shown["entries"])) == ("active", 1)
    reasons = {e["reason"] for e in journal(shared.place, "released", "removed", slug=slug)}
    assert reasons == {"administrator"}
    again = shared.client.delete(f"/v1/artifacts/{slug}/_base").json()
    assert again == {"owner": None, "released": 0, "removed": [], "kept": []}


@pytest.mark.parametrize("path", ["UPPER/_base", "a%20b/_base", "a/_other", "_base/_base"])
def test_an_administrator_is_told_when_no_model_can_have_that_name(
    shared: Server, path: str
) -> None:
    problem_of(shared.client.delete(f"/v1/artifacts/{path}"), 422, "invalid")


@pytest.mark.parametrize("call", ["unregister", "remove", "register"])
def test_a_write_runs_to_its_end_though_the_client_hung_up(
    shared: Server, slug: str, call: str
) -> None:
    owner, key, other = worker(slug), key_of(slug), key_of(slug, "other")
    shared.register_copies(owner, {key: b"content"})
    body = b""
    match call:
        case "unregister":
            head = request(f"/v1/owners/{owner}", method="DELETE")
        case "remove":
            head = request(f"/v1/artifacts/{slug}/_base", method="DELETE")
        case _:
            body = registration(owner, [copied(other, b"content")])
            head = request(
                "/v1/registrations",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                method="POST",
            )
    with (
        shared.place.write_locked() as lock
    ):  # So that the client is gone before the write can begin.
        with Line(shared) as line:
            line.send(head + body)
            line.socket.shutdown(socket.SHUT_RDWR)
        assert shared.client.get("/live").status_code == 200
        assert shared.fetch(key).status_code == 200
        lock.execute("ROLLBACK")
    if call == "register":
        wait_for(lambda: shared.fetch(other).status_code == 200)
    else:
        wait_for(lambda: shared.fetch(key).status_code == 404)
        expected = "detached" if call == "unregister" else "active"
        assert shared.client.get(f"/v1/owners/{owner}").json()["state"] == expected


def registration(owner: Owner, lines: list[dict[str, Any]]) -> bytes:
    return httpx2.Request(
        "POST", "http://registry", json={"owner": owner_body(owner), "artifacts": lines}
    ).read()


# Looking


def test_explain_tells_content_holders_and_events(shared: Server, slug: str) -> None:
    key = key_of(slug)
    path = shared.place.folder / (f"{slug}.json")
    path.write_bytes(b"content")
    shared.register_copies(worker(slug, 1), {key: b"content"}, lease_ttl_s=None)
    lease = shared.register(worker(slug, 2), [in_place(key, path)]).json()["lease"]
    explained = shared.client.get(f"/v1/artifacts/{key}").json()
    entry = explained["entry"]
    assert (entry["checksum"], entry["size"], entry["holders"]) == (checksum(b"content"), 7, 2)
    for holder in explained["holders"]:
        assert RFC_3339(holder.pop("since"))
    assert explained["holders"] == [
        {
            "owner": owner_body(worker(slug, 1)),
            "state": "active",
            "lease_expires_at": None,
            "source": "copied",
            "path": None,
            "status": "ok",
        },
        {
            "owner": owner_body(worker(slug, 2)),
            "state": "active",
            "lease_expires_at": lease["expires_at"],
            "source": "in_place",
            "path": str(path),
            "status": "ok",
        },
    ]
    events = explained["events"]
    assert [event["kind"] for event in events] == ["registered", "registered", "created"]
    assert [event["owner"]["instance_id"] for event in events] == ["2", "1", "1"]
    assert all(RFC_3339(event["at"]) for event in events)


def test_explain_still_tells_what_happened_to_a_key_that_is_gone(shared: Server, slug: str) -> None:
    key, owner = key_of(slug), worker(slug)
    problem = problem_of(shared.client.get(f"/v1/artifacts/{key}"), 404, "not_registered")
    assert problem["events"] == []
    for _ in range(8):
        shared.register_copies(owner, {key: b"content"})
        shared.unregister(owner)
    problem = problem_of(shared.client.get(f"/v1/artifacts/{key}"), 404, "not_registered")
    events = problem["events"]
    assert {event["kind"] for event in events[:2]} == {"released", "removed"}
    ids = [event["id"] for event in events]
    assert len(ids) == 20
    assert ids == sorted(ids, reverse=True)


def test_lists_can_be_paged_and_filtered(shared: Server, slug: str) -> None:
    contents = {key_of(slug, f"file-{number}"): b"%d" % (number % 2) for number in range(7)}
    lora = key_of(slug, "file-0", suffix="adapter")
    shared.register_copies(worker(slug), {**contents, lora: b"lora"})

    def pages(limit: int, **filters: str) -> list[str]:
        found, after = [], "0"
        while True:
            params = {"limit": str(limit), "after": after, **filters}
            page = shared.client.get("/v1/artifacts", params=params).json()
            assert len(page["artifacts"]) <= limit
            found += [f"{e['suffix']}/{e['filename']}" for e in page["artifacts"]]
            if page["next"] is None:
                return found
            after = page["next"]

    everything = [f"_base/file-{number}" for number in range(7)] + ["adapter/file-0"]
    for limit in (1, 3, 4, 8, 1000):
        assert pages(limit, slug=slug) == everything
    assert pages(2, slug=slug, suffix="_base") == everything[:7]
    assert pages(2, slug=slug, filename="file-0") == ["_base/file-0", "adapter/file-0"]
    assert pages(2, slug=slug, checksum=checksum(b"1")) == [f"_base/file-{n}" for n in (1, 3, 5)]
    assert pages(2, slug=slug, suffix="adapter", filename="file-1") == []
    assert pages(2, slug="nobody") == []
    assert set(everything) <= set(pages(5))


def test_owners_are_listed_in_the_order_of_their_identity(shared: Server, slug: str) -> None:
    owners = [worker(slug, number, lora_slug=lora) for number in (9, 10) for lora in (None, "a")]
    for owner in owners:
        shared.register(owner, [])
    shared.unregister(owners[0])
    found: list[dict[str, Any]] = []
    params = {"limit": "3"}
    while True:
        page = shared.client.get("/v1/owners", params=params).json()
        assert len(page["owners"]) <= 3
        found += page["owners"]
        if page["next"] is None:
            break
        params["after"] = page["next"]
    bodies = [each["owner"] for each in found]
    assert bodies == sorted(
        bodies,
        key=lambda body: (
            body["namespace"],
            body["component"],
            body["endpoint"],
            body["instance_id"],
            body["lora_slug"] or "",
        ),
    )
    mine = [each for each in found if each["owner"]["namespace"] == slug]
    assert [(each["owner"]["instance_id"], each["owner"]["lora_slug"]) for each in mine] == [
        ("10", None),
        ("10", "a"),
        ("9", None),
        ("9", "a"),
    ]
    assert [each["state"] for each in mine] == ["active", "active", "detached", "active"]


def test_an_owner_that_never_was_is_unknown(shared: Server, slug: str) -> None:
    answer = shared.client.get(f"/v1/owners/{worker(slug)}")
    problem_of(answer, 404, "unknown_owner")


# instance_id

IDS = [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("number", IDS)
@pytest.mark.parametrize("spelled", [int, str])
def test_every_64_bit_instance_id_works_everywhere(
    shared: Server, slug: str, number: int, spelled: type
) -> None:
    owner, key = worker(slug, number), key_of(slug)
    shared.upload(b"content")
    body = {
        "owner": {**owner_body(owner), "instance_id": spelled(number)},
        "artifacts": [copied(key, b"content")],
    }
    answer = shared.client.post("/v1/registrations", json=body)
    assert answer.json()["owner"]["instance_id"] == str(number)
    shown = shared.client.get(f"/v1/owners/{slug}/backend/generate/{number}/_base").json()
    assert (shown["owner"]["instance_id"], len(shown["entries"])) == (str(number), 1)
    explained = shared.client.get(f"/v1/artifacts/{key}").json()
    assert explained["holders"][0]["owner"]["instance_id"] == str(number)
    assert explained["events"][0]["owner"]["instance_id"] == str(number)
    listed = shared.client.get("/v1/owners", params={"limit": "1000"}).json()["owners"]
    assert str(number) in [
        each["owner"]["instance_id"] for each in listed if each["owner"]["namespace"] == slug
    ]
    conflict = shared.register_copies(worker(slug, 5), {key: b"other"}).json()["conflicts"][0]
    assert conflict["holders"][0]["instance_id"] == str(number)
    with shared.place.sql() as connection:
        for view in ("owners", "holders", "events"):
            query = f"SELECT DISTINCT instance_id FROM {view} "
            rows = connection.execute(query + "WHERE namespace = ?", [slug]).fetchall()
            assert (str(number),) in rows
    receipt = shared.client.delete(f"/v1/owners/{slug}/backend/generate/{number}/_base").json()
    assert (receipt["owner"]["instance_id"], receipt["released"]) == (str(number), 1)


def test_neighbouring_large_instance_ids_are_different_owners(shared: Server, slug: str) -> None:
    for number in (2**53, 2**53 + 1, 2**64 - 2, 2**64 - 1):
        shared.register_copies(worker(slug, number), {key_of(slug): b"content"})
    assert holder_count(shared, key_of(slug)) == 4
    assert shared.unregister(worker(slug, 2**53)).json()["kept"][0]["holders"] == 3


WRONG_IDS: list[object] = [
    *(-1, 2**64, 2**65, 10**30, 1.5, 1e-3, True, None, [], {}),
    *("x", "007", "", " 1", "1 ", "+1", "-1", "1.0", "1e3", "0x1", str(2**64), "\u0663", "1\n"),
]


@pytest.mark.parametrize("wrong", WRONG_IDS, ids=repr)
def test_what_is_no_64_bit_number_is_no_instance_id(
    shared: Server, slug: str, wrong: object
) -> None:
    body = {"owner": {**owner_body(worker(slug)), "instance_id": wrong}, "artifacts": []}
    before = rows_of(shared.place)
    problem = problem_of(shared.client.post("/v1/registrations", json=body), 422, "invalid")
    assert "instance_id" in problem["detail"]
    assert rows_of(shared.place) == before


@pytest.mark.parametrize(
    "wrong", ["-1", str(2**64), "1.5", "true", "x", "007", "%201", "1%0A", "%D9%A3", "9" * 400]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_is_no_64_bit_number_is_no_instance_id_in_a_path(
    shared: Server, wrong: str, method: str
) -> None:
    with Line(shared) as line:
        line.ask(f"/v1/owners/a/b/c/{wrong}/_base", method=method)
        problem_of(line.read_answer(), 422, "invalid")
