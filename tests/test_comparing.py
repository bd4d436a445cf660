"""The comparison with discovery itself: looks and times come in as values."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.core.identity import Identity
from registry.core.public_urls import PublicUrls, public_urls_of
from registry.core.records import Owner
from registry.discovery import Record, RecordKey
from registry.errors import SettingsError
from registry.service.advertised_cards import (
    CARD_FILES_MAX,
    AdvertisedCard,
    CardFiles,
    CardTarget,
    DiscoveryLook,
    read_cards,
)
from registry.service.discovery_audit import LINGER_S, Looked, Suspicions, compare, owner_text
from registry.store.owner_columns import identity
from registry.store.reads.advertised import ActiveOwner, FileKey, HeldFile, RegistryLook
from tests.compared import card_record
from tests.support import checksum

NOW = 1_700_000_000_000
BASE = "http://127.0.0.1:8090"
PUBLIC = PublicUrls([BASE])
RIGHT, WRONG = checksum(b"right"), checksum(b"wrong")
LIVENESS_S = 10.0
WORKERS = 3


def name_of(number: int) -> Identity:
    return identity(Owner("n", "c", "e", number))


def file_of(number: int) -> FileKey:
    return FileKey("", "", "", "tiny", "_base", str(number))


def card_of(number: int) -> AdvertisedCard:
    here = (CardTarget(file_of(number), RIGHT, ""),)
    return AdvertisedCard(name_of(number), f"m{number}", "", CardFiles(here, None, ()))


@dataclass
class Fleet:
    """Workers that attach and detach in the right order (S8), one step after the other: register,
    publish, withdraw, unregister. `steps` counts them."""

    steps: list[int] = field(default_factory=lambda: [0] * WORKERS)

    def move(self, steps: list[int]) -> None:
        for number, count in enumerate(steps):
            self.steps[number] += count

    def registration(self, number: int) -> int | None:
        """Which registration of the worker is there."""
        return self.steps[number] // 4 if self.steps[number] % 4 else None

    def has_card(self, number: int) -> bool:
        return self.steps[number] % 4 == 2

    def registry(self, keys: list[FileKey], *stuck: int) -> RegistryLook:
        there = {n: self.registration(n) for n in range(WORKERS)} | dict.fromkeys(stuck, 0)
        owners = {name_of(n): ActiveOwner(at, None) for n, at in there.items() if at is not None}
        held = {file_of(n) for n, at in there.items() if at is not None}
        files = {key: HeldFile(RIGHT, True) if key in held else None for key in keys}
        return RegistryLook(NOW, owners, files)

    def discovery(self, *stuck: int) -> DiscoveryLook:
        live = [*filter(self.has_card, range(WORKERS)), *stuck]
        return DiscoveryLook(frozenset(map(name_of, live)), tuple(map(card_of, live)))


STEP = st.lists(st.integers(0, 1), min_size=WORKERS, max_size=WORKERS)
STEPS = st.lists(st.integers(0, 9), min_size=WORKERS, max_size=WORKERS)
COMPARISONS = st.lists(st.tuples(STEP, STEP, STEPS), min_size=2, max_size=6)
"""What workers do between the three looks of a comparison, and until the next one."""


@given(COMPARISONS)
def test_only_what_stays_wrong_is_found_and_only_after_the_liveness_time(
    comparisons: list[tuple[list[int], list[int], list[int]]],
) -> None:
    """One card without files and one owner without a card are stuck among workers that are not."""
    unserved, unadvertised = 100, 101
    fleet, suspicions, keys = Fleet(), Suspicions(), list[FileKey]()
    bare: list[dict[int, int | None]] = []
    for number, (first, second, later) in enumerate(comparisons):
        before = fleet.registry(keys, unadvertised)
        fleet.move(first)
        discovery = fleet.discovery(unserved)
        bare.append({n: fleet.registration(n) for n in range(WORKERS) if not fleet.has_card(n)})
        fleet.move(second)
        keys = discovery.keys
        after = fleet.registry(keys, unadvertised)
        # The second comparison comes too early, the others do not.
        at_s = 0.0 if number == 0 else LIVENESS_S / 2 + number * LIVENESS_S - LIVENESS_S
        suspects = compare(before, discovery, after, liveness_s=LIVENESS_S)
        found = suspicions.note(suspects, Looked(at_s, at_s, NOW))
        owners = {(each.kind, each.owner) for each in found}
        stuck = {
            ("advertised_not_served", owner_text(name_of(unserved))),
            ("served_not_advertised", owner_text(name_of(unadvertised))),
        }
        assert owners & stuck == (stuck if number >= 2 else set())
        for kind, owner in owners - stuck:
            # A worker that does a step between each two looks serves whatever its card names.
            assert kind == "served_not_advertised"
            (who,) = [n for n in range(WORKERS) if owner_text(name_of(n)) == owner]
            seen = [each.get(who, -1) for each in bare[-2:]]
            assert seen[0] == seen[1], "it had a card meanwhile, or was another registration"
        fleet.move(later)


def find(before: RegistryLook, discovery: DiscoveryLook, after: RegistryLook) -> list[str]:
    return [each.key.kind for each in compare(before, discovery, after, liveness_s=LIVENESS_S)]


def look(
    *owners: int, held: HeldFile | None = None, asked: bool = True, worker_name: str | None = None
) -> RegistryLook:
    active = {name_of(number): ActiveOwner(0, worker_name) for number in owners}
    return RegistryLook(NOW, active, {file_of(1): held} if asked else {})


def test_what_was_served_before_or_is_after_is_no_outage() -> None:
    card = DiscoveryLook(frozenset({name_of(1)}), (card_of(1),))
    served, unserveable = HeldFile(RIGHT, True), HeldFile(RIGHT, False)
    other = HeldFile(WRONG, True)
    for wrong in (None, unserveable, other):
        assert find(look(held=wrong), card, look(held=wrong)) == ["advertised_not_served"]
        assert find(look(held=wrong), card, look(held=served)) == []
        assert find(look(held=served), card, look(held=wrong)) == []
        # Nobody knew that this file would be asked for: the next comparison decides.
        assert find(look(asked=False), card, look(held=wrong)) == ["advertised_not_served"]


def test_a_mirrored_owner_may_outlive_its_card_for_as_long_as_mirrors_keep_it() -> None:
    others = DiscoveryLook(frozenset({name_of(2)}), ())
    for name, after_s in ((None, LIVENESS_S), ("mirror-0-1", LINGER_S), ("w", LIVENESS_S)):
        one = look(1, worker_name=name)
        [suspect] = compare(one, others, one, liveness_s=LIVENESS_S)
        assert (suspect.key.kind, suspect.after_s) == ("served_not_advertised", after_s)


def test_a_worker_set_is_one_suspect_whoever_of_it_comes_and_goes() -> None:
    def cards(*numbers: int) -> DiscoveryLook:
        """Odd ones have other files."""
        records = [
            card_record(Owner("n", "c", "e", n), "M", [(f"{BASE}/{n}/a", b"12"[n % 2 : n % 2 + 1])])
            for n in numbers
        ]
        return read_cards(records, PUBLIC)

    empty = RegistryLook(NOW, {}, {})
    suspicions = Suspicions({"incompatible_cards"})
    for at_s, numbers in ((0.0, (0, 2, 3)), (10.0, (5, 7, 4)), (20.0, (4, 6))):
        suspects = compare(empty, cards(*numbers), empty, liveness_s=LIVENESS_S)
        found = suspicions.note(suspects, Looked(at_s, at_s, NOW))
        assert len(found) == (at_s == 10.0)


def test_the_first_comparison_is_decided_when_all_of_it_was_looked_at_again() -> None:
    suspicions = Suspicions()
    assert suspicions.is_decided
    others = DiscoveryLook(frozenset({name_of(2)}), ())
    one = look(1)
    suspects = compare(one, others, one, liveness_s=LIVENESS_S)
    assert suspicions.note(suspects, Looked(0.0, 1.0, NOW)) == []
    assert (suspicions.is_decided, suspicions.wait_s) == (False, LIVENESS_S)
    assert suspicions.note(suspects, Looked(10.5, 10.6, NOW)) == []
    assert (suspicions.is_decided, round(suspicions.wait_s, 3)) == (False, 0.5)
    [finding] = suspicions.note(suspects, Looked(11.0, 11.1, NOW))
    assert suspicions.is_decided
    assert finding.since == "2023-11-14T22:13:20.000Z"
    # What comes later is not waited for by anybody.
    suspicions.note(
        compare(look(1, 3), others, look(1, 3), liveness_s=LIVENESS_S), Looked(12, 12, 0)
    )
    assert suspicions.is_decided


def test_what_fits_meanwhile_is_suspected_anew() -> None:
    suspicions, others, one = Suspicions(), DiscoveryLook(frozenset({name_of(2)}), ()), look(1)
    suspects = compare(one, others, one, liveness_s=LIVENESS_S)
    suspicions.note(suspects, Looked(0.0, 0.0, NOW))
    suspicions.note([], Looked(10.0, 10.0, NOW))
    assert suspicions.note(suspects, Looked(20.0, 20.0, NOW)) == []
    assert len(suspicions.note(suspects, Looked(30.0, 30.0, NOW))) == 1


# Cards


def record(content: object) -> Record:
    key = RecordKey.parse(card_record(Owner("n", "c", "e", 1), "M", []).key.kind, "n/c/e/1")
    return Record(key, {"card_json": content})


def test_of_a_card_that_is_not_well_formed_the_rest_is_read() -> None:
    good = {"path": f"{BASE}/v1/metadata/a/_base/b", "checksum": RIGHT}
    bad = [
        {"path": 7, "checksum": RIGHT},
        {"path": "x" * 9000, "checksum": RIGHT},
        {"path": f"{BASE}/v1/metadata/a/_base/c", "checksum": "md5:1"},
        {"path": "", "checksum": RIGHT},
    ]
    [card] = read_cards([record({"display_name": [], "files": [*bad, good]})], PUBLIC).cards
    [target] = card.files.here
    assert target.key == FileKey("", "", "", "a", "_base", "b")
    assert (card.name, card.files.elsewhere, card.files.contents) == ("", None, None)
    many = read_cards([record([good] * (CARD_FILES_MAX + 1)), record(None)], PUBLIC)
    assert (len(many.listed), many.cards, many.unreadable) == (1, (), 2)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["path", "checksum", "a"]), inner)
        ),
    )
)
def test_whatever_stands_in_a_card_is_read_without_an_error(content: object) -> None:
    looked = read_cards([record(content)], PUBLIC)
    assert len(looked.cards) + looked.unreadable == 1
    after = RegistryLook(NOW, {}, dict.fromkeys(looked.keys))
    compare(RegistryLook(NOW, {}, {}), looked, after, liveness_s=LIVENESS_S)


# Which URLs lead here


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (f"{BASE}/v1/metadata/a/_base/b", "a/_base/b"),
        (f"{BASE}/v1/metadata/a/_base/b#origin=x", "a/_base/b"),
        ("HTTP://LocalHost:8090/v1/metadata/a", "a"),
        ("http://[::1]:8090/v1/metadata/a", "a"),
        ("http://below.example/x/v1/metadata/a", "a"),
        ("http://below.example:80/x/v1/metadata/a?b", "a"),
        ("http://below.example/v1/metadata/a", None),
        ("https://127.0.0.1:8090/v1/metadata/a", None),
        ("http://127.0.0.1/v1/metadata/a", None),
        (f"{BASE}/v1/blobs/a", None),
        ("/v1/metadata/a", None),
        ("http://[::1", None),
        ("http://127.0.0.1:99999999/v1/metadata/a", None),
        (BASE + "/v1/metadata/" + "a" * 9000, None),
    ],
)
def test_a_url_leads_here_by_its_origin_and_its_path(url: str, path: str | None) -> None:
    assert PublicUrls([BASE, "http://below.example/x/"]).find_path(url) == path


@pytest.mark.parametrize(
    "url", ["", "registry:8090", "ftp://a", "http://", "http://u@a", "http://a?b", "http://a:b"]
)
def test_what_is_no_url_of_a_registry_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="public_urls"):
        PublicUrls([url])


def test_an_address_of_a_service_is_its_url_unless_it_is_every_address() -> None:
    assert public_urls_of("http", ("a", "10.0.0.1"), 1) == ("http://a:1", "http://10.0.0.1:1")
    assert public_urls_of("https", ("::1", "::1"), 1) == ("https://[::1]:1",)
    assert public_urls_of("http", ("0.0.0.0", "::"), 1) == ()
