"""Two revisions of a model side by side (S17), over HTTP and in the store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.client import RegistryClient
from registry.core.checks import SLUG_MAX, check_slug
from registry.core.hashing import checksum_of
from registry.core.model_revisions import revision_slug
from registry.core.records import Owner
from tests.commands import run_here
from tests.exchanges import journal, key_of, new_slug, problem_of, rows_of, running, worker
from tests.places import Places, on_both
from tests.support import Server, checksum, copied, in_place

pytestmark = on_both

OLD = {"config.json": b"old", "tokenizer.json": b"same"}
NEW = {"config.json": b"new", "tokenizer.json": b"same"}

Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def shared(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("revisions")
    with places.at(folder) as place, running(place, artifact_root=folder) as server:
        yield server


@pytest.fixture
def slug() -> str:
    return new_slug()


def offer(server: Server, owner: Owner, slug: str, files: Files, **options: Any) -> httpx2.Response:
    """Register copies of files; unless told otherwise as a revision if need be."""
    for content in files.values():
        server.upload(content)
    options = {"on_conflict": "revision", **options}
    lines = [copied(key_of(slug, name), content) for name, content in files.items()]
    return server.register(owner, lines, **options)


def slug_of(answer: httpx2.Response) -> str:
    """The one slug under which a manifest is."""
    assert answer.status_code == 200, answer.text
    (slug,) = {each["slug"] for each in answer.json()["artifacts"]}
    return str(slug)


def outcomes(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["outcome"] for each in answer.json()["artifacts"]]


def revision_of(slug: str, files: Files) -> str:
    return revision_slug(slug, [(name, checksum(content)) for name, content in files.items()])


def served(server: Server, slug: str) -> dict[str, bytes]:
    """What is there of a model with these two files."""
    answers = {name: server.fetch(key_of(slug, name)) for name in OLD}
    return {name: each.content for name, each in answers.items() if each.status_code == 200}


def base_slugs(server: Server, slug: str) -> dict[str, str | None]:
    """What the entries of a model and of its revisions say they are revisions of."""
    with server.place.sql() as connection:
        rows = connection.execute(
            "SELECT DISTINCT slug, base_slug FROM entries WHERE slug = ? OR base_slug = ?",
            [slug, slug],
        )
        found = rows.fetchall()
    assert len(dict(found)) == len(found), "a model is a revision or not with all of its files"
    return dict(found)


def shown_beside(server: Server, slug: str) -> dict[str, str | None]:
    """The revisions that `explain` names beside a model, with what `models` says of them."""
    with RegistryClient(server.url) as client:
        models = {each.slug: each.base_slug for each in client.models()}
        return {each.slug: models[each.slug] for each in client.explain(key_of(slug)).revisions}


# The slug


def test_the_slug_of_a_revision_is_made_of_the_sorted_lines_of_its_files() -> None:
    """S17 as it is written down: `filename NUL checksum LF`, sorted; eight digits of BLAKE3."""
    a, b = checksum(b"a"), checksum(b"b")
    digest = checksum_of(f"a.json\0{a}\nb.json\0{b}\n".encode())[7:15]
    for files in ([("a.json", a), ("b.json", b)], [("b.json", b), ("a.json", a)]):
        assert revision_slug("model", files) == f"model-{digest}"
    assert revision_slug("model", [("a.json", b), ("b.json", a)]) != f"model-{digest}"


@given(st.from_regex("[a-z0-9][a-z0-9_-]{0,254}", fullmatch=True))
def test_the_slug_of_a_revision_is_a_slug_however_long_the_base_is(base: str) -> None:
    slug = revision_slug(base, [("größe.json", checksum(b""))])
    check_slug("slug", slug)
    assert base.startswith(slug[:-9])
    assert len(slug) == min(len(base) + 9, SLUG_MAX)


# Registering


def test_what_would_be_a_conflict_is_registered_whole_beside_it(shared: Server, slug: str) -> None:
    """S17: the file that is the same goes along, and both are served."""
    revision = revision_of(slug, NEW)
    assert slug_of(offer(shared, worker(slug, 1), slug, OLD)) == slug
    answer = offer(shared, worker(slug, 2), slug, NEW)
    assert slug_of(answer) == revision
    assert outcomes(answer) == ["created", "created"]
    assert [each["url"] for each in answer.json()["artifacts"]] == [
        f"/v1/metadata/{revision}/_base/{name}" for name in NEW
    ]
    assert served(shared, slug) == OLD
    assert served(shared, revision) == NEW
    assert base_slugs(shared, slug) == {slug: None, revision: slug}


def test_the_journal_says_why_a_revision_is_one(shared: Server, slug: str) -> None:
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    why = f"revision of {slug}: {slug}/_base/config.json is held by {slug}/backend/generate/1/_base"
    events = journal(shared.place, "created", "registered", slug=revision_of(slug, NEW))
    assert [(each["kind"], each["reason"]) for each in events] == [
        ("created", why),
        ("registered", why),
    ] * 2
    assert journal(shared.place, "refused", slug=slug) == []


def test_others_with_the_same_files_share_the_revision(shared: Server, slug: str) -> None:
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    answer = offer(shared, worker(slug, 3), slug, dict(reversed(NEW.items())))
    assert slug_of(answer) == revision_of(slug, NEW)
    assert outcomes(answer) == ["shared", "shared"]


def test_three_revisions_are_there_side_by_side_and_each_goes_with_its_last_holder(
    shared: Server, slug: str
) -> None:
    newest = {**NEW, "config.json": b"newest"}
    for number, files in enumerate([OLD, NEW, newest, NEW]):
        offer(shared, worker(slug, number), slug, files)
    slugs = [slug, revision_of(slug, NEW), revision_of(slug, newest)]
    assert [served(shared, each) for each in slugs] == [OLD, NEW, newest]
    shared.unregister(worker(slug, 0))
    assert [served(shared, each) for each in slugs] == [{}, NEW, newest]
    shared.unregister(worker(slug, 1))
    assert [served(shared, each) for each in slugs] == [{}, NEW, newest]
    shared.unregister(worker(slug, 3))
    assert [served(shared, each) for each in slugs] == [{}, {}, newest]


def test_what_is_no_conflict_is_no_revision(shared: Server, slug: str) -> None:
    """The base slug is free, holds the same, or is held by nobody else (S3)."""
    first, second = worker(slug, 1), worker(slug, 2)
    assert outcomes(offer(shared, first, slug, OLD)) == ["created", "created"]
    assert outcomes(offer(shared, second, slug, OLD)) == ["shared", "shared"]
    shared.unregister(second)
    answer = offer(shared, first, slug, NEW)
    assert (slug_of(answer), outcomes(answer)) == (slug, ["replaced", "unchanged"])
    assert base_slugs(shared, slug) == {slug: None}


def test_an_older_instance_that_is_superseded_is_no_conflict(shared: Server, slug: str) -> None:
    """S11 comes before S17: a worker that restarts with other files replaces them."""
    offer(shared, worker(slug, 1), slug, OLD, worker_name="w")
    answer = offer(shared, worker(slug, 2), slug, NEW, worker_name="w")
    assert (slug_of(answer), outcomes(answer)) == (slug, ["replaced", "shared"])


def test_a_worker_that_restarts_finds_the_revision_of_its_older_instance(
    shared: Server, slug: str
) -> None:
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW, worker_name="w")
    answer = offer(shared, worker(slug, 3), slug, NEW, worker_name="w")
    assert (slug_of(answer), outcomes(answer)) == (revision_of(slug, NEW), ["shared", "shared"])


def test_an_owner_finds_its_own_revision_again_whoever_left_the_base_slug(
    shared: Server, slug: str
) -> None:
    """S17: nothing changes but the lease."""
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    for _ in range(2):
        before = changes(shared)
        answer = offer(shared, worker(slug, 2), slug, NEW)
        assert slug_of(answer) == revision_of(slug, NEW)
        assert outcomes(answer) == ["unchanged", "unchanged"]
        assert changes(shared) == before
        shared.unregister(worker(slug, 1))
    # Who comes now finds the base slug free.
    assert slug_of(offer(shared, worker(slug, 3), slug, NEW)) == slug


def changes(shared: Server) -> list[dict[str, Any]]:
    """The journal without the uploads, which a manifest that is offered again makes again."""
    return [each for each in journal(shared.place) if each["kind"] != "uploaded"]


def test_what_was_lost_is_registered_as_a_revision_again_though_nothing_is_in_the_way(
    shared: Server, slug: str
) -> None:
    """So that cards that point there are right again; and the base slug stays free for others."""
    answer = offer(shared, worker(slug, 2), slug, NEW, on_conflict="refuse", as_revision=True)
    assert slug_of(answer) == revision_of(slug, NEW)
    assert slug_of(offer(shared, worker(slug, 1), slug, OLD, on_conflict="refuse")) == slug
    assert base_slugs(shared, slug) == {slug: None, revision_of(slug, NEW): slug}
    events = journal(shared.place, "registered", slug=revision_of(slug, NEW))
    assert {each["reason"] for each in events} == {f"revision of {slug}"}


def test_an_owner_of_the_base_slug_with_other_bytes_holds_both_until_it_leaves(
    shared: Server, slug: str
) -> None:
    """S3: registering adds, and drops nothing that a live card may point at (S8)."""
    both = [worker(slug, 1), worker(slug, 2)]
    for owner in both:
        offer(shared, owner, slug, OLD)
    assert slug_of(offer(shared, both[0], slug, NEW)) == revision_of(slug, NEW)
    assert shared.unregister(both[0]).json()["released"] == 4
    assert served(shared, revision_of(slug, NEW)) == {}
    assert served(shared, slug) == OLD


def test_files_in_place_may_be_a_revision(shared: Server, slug: str) -> None:
    """The checksums are those of what was hashed, though none was given."""
    path = shared.place.folder / (f"{slug}.json")
    path.write_bytes(b"in place")
    offer(shared, worker(slug, 1), slug, OLD)
    answer = shared.register(
        worker(slug, 2), [in_place(key_of(slug), path)], on_conflict="revision"
    )
    revision = revision_of(slug, {"config.json": b"in place"})
    assert slug_of(answer) == revision
    assert shared.fetch(key_of(revision)).content == b"in place"


def test_a_lora_and_its_base_model_become_revisions_each_by_itself(
    shared: Server, slug: str
) -> None:
    answers = []
    for number, content in ((1, b"old"), (2, b"new")):
        lora = worker(slug, number, lora_slug="tuned")
        shared.upload(content)
        offer(shared, worker(slug, number), slug, OLD)
        lines = [copied(key_of(slug, suffix="tuned"), content)]
        answers.append(shared.register(lora, lines, on_conflict="revision"))
    revision = revision_of(slug, {"config.json": b"new"})
    assert [slug_of(each) for each in answers] == [slug, revision]
    assert shared.fetch(key_of(revision, suffix="tuned")).content == b"new"
    assert shared.fetch(key_of(slug, suffix="tuned")).content == b"old"


# Becoming a revision, and ceasing to be one


@pytest.mark.parametrize(
    ("there", "number", "expected"),
    [
        (NEW, 3, ["shared", "shared"]),
        (NEW, 2, ["unchanged", "unchanged"]),
        (OLD, 4, ["replaced", "shared"]),
    ],
    ids=["others'", "its own", "superseded"],
)
def test_what_was_there_under_its_slug_becomes_a_revision_with_who_comes_as_one(
    shared: Server, slug: str, there: Files, number: int, expected: list[str]
) -> None:
    """S17: however it came there. Once known, it is written no more, and who registers the same
    under that slug changes nothing."""
    revision = revision_of(slug, NEW)
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), revision, there, worker_name="w")
    assert shown_beside(shared, slug) == {}
    options = {"worker_name": "w"} if number == 4 else {}
    answer = offer(shared, worker(slug, number), slug, NEW, **options)
    assert (slug_of(answer), outcomes(answer)) == (revision, expected)
    assert base_slugs(shared, slug) == {slug: None, revision: slug}
    assert shown_beside(shared, slug) == {revision: slug}
    offer(shared, worker(slug, 5), revision, NEW, on_conflict="refuse")
    assert shown_beside(shared, slug) == {revision: slug}


@pytest.mark.parametrize("options", [{"on_conflict": "revision"}, {"as_revision": True}])
def test_who_registers_its_revision_again_says_anew_that_it_is_one(
    shared: Server, slug: str, options: dict[str, Any]
) -> None:
    """A schema of before, and a program of before, know of no revisions."""
    revision = revision_of(slug, NEW)
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    with shared.place.sql() as connection:
        connection.execute("UPDATE entries SET base_slug = NULL WHERE slug = ?", [revision])
    answer = offer(shared, worker(slug, 2), slug, NEW, **options)
    assert (slug_of(answer), outcomes(answer)) == (revision, ["unchanged", "unchanged"])
    assert shown_beside(shared, slug) == {revision: slug}


@pytest.mark.parametrize("files", [OLD, {"config.json": b"old"}], ids=["all", "one"])
def test_a_revision_with_a_file_replaced_under_its_own_slug_is_none_any_more(
    shared: Server, slug: str, files: Files
) -> None:
    """S17: its slug is named after what it does not hold any more. What is there under another
    suffix is another model; and with its files back it is a revision again."""
    revision, lora = revision_of(slug, NEW), worker(slug, 2, lora_slug="tuned")
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    lines = [copied(key_of(slug, name, suffix="tuned"), content) for name, content in NEW.items()]
    assert slug_of(shared.register(lora, lines, as_revision=True)) == revision
    answer = offer(shared, worker(slug, 2), revision, files, on_conflict="refuse")
    assert outcomes(answer)[0] == "replaced"
    assert shown_beside(shared, slug) == {}
    with RegistryClient(shared.url) as client:
        assert client.explain(key_of(revision)).revisions == ()
        assert {
            (each.suffix, each.base_slug) for each in client.models() if each.slug == revision
        } == {("_base", None), ("tuned", slug)}
    answer = offer(shared, worker(slug, 2), slug, NEW)
    assert (slug_of(answer), outcomes(answer)) == (revision, ["replaced", "unchanged"])
    assert base_slugs(shared, slug) == {slug: None, revision: slug}


def test_so_is_one_with_a_file_replaced_that_came_later(shared: Server, slug: str) -> None:
    revision = revision_of(slug, NEW)
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), slug, NEW)
    offer(shared, worker(slug, 3), revision, {"later.json": b"1"}, on_conflict="refuse")
    assert base_slugs(shared, slug)[revision] == slug
    answer = offer(shared, worker(slug, 3), revision, {"later.json": b"2"}, on_conflict="refuse")
    assert outcomes(answer) == ["replaced"]
    assert shown_beside(shared, slug) == {}


def test_a_slug_that_is_as_long_as_may_be_is_no_revision_of_itself(
    shared: Server, slug: str
) -> None:
    """Of a revision's slug of full length, the same files are a revision by the same slug."""
    revision = revision_of(slug.ljust(SLUG_MAX, "b"), NEW)
    assert revision_of(revision, NEW) == revision
    for expected in ("created", "unchanged"):
        answer = offer(shared, worker(slug, 1), revision, NEW, as_revision=True)
        assert (slug_of(answer), outcomes(answer)) == (revision, [expected] * 2)
    assert base_slugs(shared, revision) == {revision: None}
    answer = offer(shared, worker(slug, 2), revision, OLD)
    assert slug_of(answer) == revision_of(revision, OLD) != revision


# Refused


def test_without_being_asked_for_a_conflict_is_a_conflict(shared: Server, slug: str) -> None:
    """S2, with the default and with `refuse`; the message says that there is another way."""
    offer(shared, worker(slug, 1), slug, OLD)
    for options in ({}, {"on_conflict": "refuse"}):
        before = rows_of(shared.place)["entries"]
        shared.upload(b"new")
        answer = shared.register(worker(slug, 2), [copied(key_of(slug), b"new")], **options)
        assert problem_of(answer, 409, "conflict")["conflicts"][0]["slug"] == slug
        assert "on_conflict" in answer.json()["detail"]
        assert rows_of(shared.place)["entries"] == before
    shared.unregister(worker(slug, 2))


@pytest.mark.parametrize("options", [{"on_conflict": "revision"}, {"as_revision": True}])
def test_a_manifest_of_two_slugs_can_be_no_revision(
    options: dict[str, Any], shared: Server, slug: str
) -> None:
    lines = [copied(key_of(each), b"old") for each in (slug, f"{slug}-b")]
    shared.upload(b"old")
    answer = shared.register(worker(slug), lines, **options)
    assert answer.status_code == 422
    assert f"{slug} and {slug}-b" in problem_of(answer, 422, "invalid")["detail"]


def test_an_on_conflict_that_is_none_is_refused(shared: Server, slug: str) -> None:
    answer = shared.register(worker(slug), [], on_conflict="overwrite")
    assert answer.status_code == 422


def test_a_slug_of_a_revision_that_others_hold_with_other_content_is_a_conflict(
    shared: Server, slug: str
) -> None:
    """Nothing is overwritten, whoever made the name first."""
    revision = revision_of(slug, NEW)
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), revision, OLD)
    answer = offer(shared, worker(slug, 3), slug, NEW)
    assert [each["slug"] for each in problem_of(answer, 409, "conflict")["conflicts"]] == [revision]
    assert served(shared, revision) == OLD
    shared.unregister(worker(slug, 3))


def test_content_that_is_missing_is_asked_for_and_nothing_is_written(
    shared: Server, slug: str
) -> None:
    offer(shared, worker(slug, 1), slug, OLD)
    before = rows_of(shared.place)["entries"]
    lines = [copied(key_of(slug), slug.encode())]
    answer = shared.register(worker(slug, 2), lines, on_conflict="revision")
    assert problem_of(answer, 424, "content_missing")["missing"] == [checksum(slug.encode())]
    assert rows_of(shared.place)["entries"] == before


def test_a_revision_settles_what_was_refused_before(shared: Server, slug: str) -> None:
    """The audit takes a refusal for resolved when the same owner gets its revision, also when it
    held that all along; and a refusal after it is news."""
    offer(shared, worker(slug, 1), slug, OLD)
    for _ in range(2):
        offer(shared, worker(slug, 2), slug, NEW, on_conflict="refuse")
        assert unresolved(shared, slug) == [f"{slug}/_base/config.json"]
        offer(shared, worker(slug, 2), slug, NEW)
        assert unresolved(shared, slug) == []
    assert len(journal(shared.place, "refused", slug=slug)) == 2


def test_what_was_there_settles_a_refusal_once_it_is_a_revision(shared: Server, slug: str) -> None:
    """Else the audit would name the conflict for an hour."""
    offer(shared, worker(slug, 1), slug, OLD)
    offer(shared, worker(slug, 2), revision_of(slug, NEW), NEW)
    offer(shared, worker(slug, 2), slug, NEW, on_conflict="refuse")
    assert unresolved(shared, slug) == [f"{slug}/_base/config.json"]
    offer(shared, worker(slug, 2), slug, NEW)
    assert unresolved(shared, slug) == []


def unresolved(server: Server, slug: str) -> list[str]:
    """The keys of a model that the audit calls unresolved conflicts."""
    with server.place.sql() as connection:
        rows = connection.execute(
            "SELECT entry FROM leaks WHERE class = 'unresolved_conflict' AND entry LIKE ?",
            [f"{slug}/%"],
        )
        return [entry for (entry,) in rows]


# Looking


def test_models_artifacts_and_explain_show_the_revisions_of_a_model(
    shared: Server, slug: str
) -> None:
    newest = {"config.json": b"old", "more.json": b""}
    for number, files in enumerate([OLD, NEW, newest]):
        offer(shared, worker(slug, number), slug, files, as_revision=number == 2)
    revision, other = revision_of(slug, NEW), revision_of(slug, newest)
    expected = {slug: None, revision: slug, other: slug}
    with RegistryClient(shared.url) as client:
        models = {each.slug: each.base_slug for each in client.models() if each.slug in expected}
        assert models == expected
        assert {each.base_slug for each in client.artifacts(slug=revision)} == {slug}
        found = client.explain(key_of(revision))
        assert found.entry is not None
        assert found.entry.base_slug == slug
        assert {each.slug: each.differing for each in found.revisions} == {
            slug: ("config.json",),
            other: ("config.json", "more.json", "tokenizer.json"),
        }
        assert {each.slug for each in client.explain(key_of(slug)).revisions} == {revision, other}
        shared.unregister(worker(slug, 1))
        assert [each.slug for each in client.explain(key_of(slug)).revisions] == [other]


def test_the_command_line_shows_the_revisions_of_a_model(shared: Server, slug: str) -> None:
    for number, files in enumerate([OLD, NEW]):
        offer(shared, worker(slug, number), slug, files)
    revision = revision_of(slug, NEW)

    def shown(*arguments: str) -> str:
        done = run_here(*arguments, "--url", shared.url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for text in (shown("models", "--wide"), shown("ls", "--wide")):
        assert "REVISION OF" in text
        assert re.search(rf"^{revision}/_base.* {slug}$", text, re.M)
        assert re.search(rf"^{slug}/_base.* -$", text, re.M)
    text = shown("explain", f"{revision}/_base/config.json")
    assert re.search(rf"^revision of +{slug}$", text, re.M)
    assert re.search(rf"^beside it +{slug}, with other config.json$", text, re.M)
