"""Discovery by etcd: a real one, which is killed, frozen, compacted and restored meanwhile."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trustme

from registry.core.records import Owner
from registry.discovery import (
    Change,
    Discovery,
    Kind,
    Listed,
    Record,
    Scannable,
    instance_record,
    model_record,
    open_discovery,
)
from registry.discovery.cards import make_card
from registry.discovery.etcd import EtcdDiscovery, follower, gateway, publications
from registry.discovery.etcd.listing import EtcdListing
from registry.discovery.etcd.messages import EtcdHeader
from registry.discovery.etcd.settings import read_settings
from registry.discovery.file import FileDiscovery
from registry.discovery.record_io import RECORD_MAX_BYTES
from registry.errors import DiscoveryUnavailable, Invalid, SettingsError
from tests.etcds import Etcd, Watcher, base64_of
from tests.peers import Peer
from tests.ports import free_port
from tests.support import wait_for

OWNER = Owner("dynamo", "backend", "generate", 0xABC)
LORA = Owner("dynamo", "backend", "generate", 0xABC, "my_adapter")
OTHER = Owner("dynamo", "backend", "generate", 0xDEF)
CARD = make_card("Org/Tiny", [])
MODEL, ADAPTER, MODEL_2 = (model_record(each, CARD) for each in (OWNER, LORA, OTHER))
CHANGED = model_record(OWNER, make_card("Org/Tiny", [], fields={"context_length": 7}))

Opener = Callable[[], Discovery]
EtcdOpener = Callable[..., EtcdDiscovery]
_numbers = count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd for those that do it no harm; each uses a prefix of its own."""
    data = tmp_path_factory.mktemp("etcd") / "data"
    with Etcd(data, max_request_bytes=40_000_000) as etcd:
        yield etcd


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "data") as etcd:
        yield etcd


@pytest.fixture
def prefix() -> str:
    return f"test-{next(_numbers)}/"


@pytest.fixture
def open_etcd() -> Iterator[EtcdOpener]:
    """Opens stores of an etcd. Records live for a second."""
    opened: list[EtcdDiscovery] = []

    def open_one(url: str, *, ttl_s: float = 1.0, patience_s: float = 60.0) -> EtcdDiscovery:
        settings = read_settings(url, {})
        opened.append(EtcdDiscovery(settings, ttl_s=ttl_s, patience_s=patience_s))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def store(shared: Etcd, prefix: str, open_etcd: EtcdOpener) -> EtcdDiscovery:
    return open_etcd(f"{shared.url}/{prefix}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silences and attempts end early, so that nobody has to wait for them."""
    monkeypatch.setattr(follower, "SILENCE_MAX_S", 0.5)
    monkeypatch.setattr(follower, "CREATED_MAX_S", 1.0)
    monkeypatch.setattr(gateway, "ATTEMPT_MAX_S", 1.0)
    monkeypatch.setattr(gateway, "CALL_MAX_S", 2.0)


# What every store does


@pytest.fixture(params=["file", "etcd"])
def opener(
    request: pytest.FixtureRequest, tmp_path: Path, prefix: str, open_etcd: EtcdOpener
) -> Iterator[Opener]:
    """Opens the same place as often as wanted, in a directory and in an etcd."""
    if request.param == "etcd":
        url = request.getfixturevalue("shared").url
        yield lambda: open_etcd(f"{url}/{prefix}")
        return
    opened: list[FileDiscovery] = []

    def open_one() -> FileDiscovery:
        opened.append(FileDiscovery(tmp_path / "kv", ttl_s=1.0))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_a_record_is_found_until_it_is_withdrawn(opener: Opener) -> None:
    store, other = opener(), opener()
    instance = instance_record(OWNER, "h:1")
    for each in (ADAPTER, MODEL, instance):
        store.publish(each)
    assert other.list(Kind.MODEL) == [MODEL, ADAPTER]
    assert other.list(Kind.INSTANCE) == [instance]
    assert other.find(MODEL.key) == MODEL
    store.publish(CHANGED)
    assert other.list(Kind.MODEL) == [CHANGED, ADAPTER]
    store.withdraw(MODEL.key)
    store.withdraw(MODEL.key)
    assert other.find(MODEL.key) is None
    assert other.list(Kind.MODEL) == [ADAPTER]


def test_a_scan_gives_what_a_list_gives_and_a_store_says_how_long_the_dead_stay_live(
    opener: Opener,
) -> None:
    store = opener()
    for each in (ADAPTER, MODEL, MODEL_2):
        store.publish(each)
    assert isinstance(store, Scannable)
    assert list(store.scan(Kind.MODEL)) == store.list(Kind.MODEL) == [MODEL, ADAPTER, MODEL_2]
    assert store.liveness_s == 1.0


def test_a_record_that_another_published_is_withdrawn(opener: Opener) -> None:
    gone, other = opener(), opener()
    gone.publish(MODEL)
    gone.close()
    other.withdraw(MODEL.key)
    assert other.list(Kind.MODEL) == []


def test_a_record_is_live_while_its_publisher_is_open(opener: Opener) -> None:
    publisher, reader = opener(), opener()
    publisher.publish(MODEL)
    # By the time that one that is not kept has lapsed, the other would have as well.
    gone = opener()
    gone.publish(MODEL_2)
    gone.close()
    wait_for(lambda: reader.list(Kind.MODEL) == [MODEL])
    publisher.close()
    wait_for(lambda: reader.list(Kind.MODEL) == [])
    with pytest.raises(DiscoveryUnavailable, match="was closed"):
        publisher.publish(MODEL)


def test_a_watch_tells_what_is_live_and_then_every_change(opener: Opener) -> None:
    publisher, reader = opener(), opener()
    publisher.publish(MODEL)
    changes = reader.watch(Kind.MODEL)
    assert [next(changes), next(changes)] == [Change(MODEL.key, MODEL), Listed()]
    publisher.publish(ADAPTER)
    publisher.publish(instance_record(OWNER, "h:1"))
    assert next(changes) == Change(ADAPTER.key, ADAPTER)
    publisher.publish(CHANGED)
    assert next(changes) == Change(MODEL.key, CHANGED)
    publisher.withdraw(MODEL.key)
    assert next(changes) == Change(MODEL.key, None)
    publisher.close()
    assert next(changes) == Change(ADAPTER.key, None)
    reader.close()
    assert list(changes) == []


def test_closing_a_store_ends_a_watch_that_waits(opener: Opener) -> None:
    publisher, store = opener(), opener()
    publisher.publish(MODEL)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    store.close()
    wait_for(lambda: watcher.has_ended, 5)
    assert watcher.error is None
    assert watcher.live == {MODEL.key: MODEL}


def test_a_card_that_nobody_would_read_is_not_published(opener: Opener) -> None:
    card = make_card("Org/Tiny", [], fields={"user_data": "x" * RECORD_MAX_BYTES})
    with pytest.raises(Invalid, match="a record has at most"):
        opener().publish(model_record(OWNER, card))


# Keys and leases


def lease_of(etcd: Etcd, prefix: str) -> int:
    [lease] = {int(each.get("lease", 0)) for each in etcd.stored(prefix)}
    return lease


def test_records_stand_where_dynamo_looks_under_one_lease(own: Etcd, open_etcd: EtcdOpener) -> None:
    store = open_etcd(own.url)
    store.publish(MODEL)
    store.publish(ADAPTER)
    store.publish(instance_record(OWNER, "h:1"))
    assert [each["key"] for each in own.stored("v1/")] == [
        base64_of("v1/instances/dynamo/backend/generate/abc"),
        base64_of("v1/mdc/dynamo/backend/generate/abc"),
        base64_of("v1/mdc/dynamo/backend/generate/abc/my_adapter"),
    ]
    assert lease_of(own, "v1/")


def test_a_record_of_a_killed_publisher_lapses(
    shared: Etcd, prefix: str, store: EtcdDiscovery
) -> None:
    program = (
        "import sys, time\nfrom registry.discovery import *\n"
        "from registry.discovery.etcd import *\nfrom registry.discovery.etcd.settings import *\n"
        "from registry.discovery.cards import make_card\nfrom registry.core.records import Owner\n"
        "store = EtcdDiscovery(read_settings(sys.argv[1]), ttl_s=1.0)\n"
        "store.publish(model_record(Owner('n', 'c', 'e', 1), make_card('Org/Tiny', [])))\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", program, f"{shared.url}/{prefix}"]
    with subprocess.Popen(command) as process:
        wait_for(lambda: len(store.list(Kind.MODEL)) == 1)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: store.list(Kind.MODEL) == [])


def test_records_whose_lease_ended_are_written_again_and_none_that_was_withdrawn(
    shared: Etcd, prefix: str, store: EtcdDiscovery
) -> None:
    for each in (MODEL, ADAPTER, MODEL_2):
        store.publish(each)
    store.withdraw(MODEL_2.key)
    before = lease_of(shared, prefix)
    shared.ask("lease/revoke", {"ID": str(before)})
    wait_for(lambda: store.list(Kind.MODEL) == [MODEL, ADAPTER])
    assert lease_of(shared, prefix) != before


def test_many_records_whose_lease_ended_are_written_again(
    shared: Etcd, prefix: str, open_etcd: EtcdOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough that a slow machine writes all of them within it.
    store = open_etcd(f"{shared.url}/{prefix}", ttl_s=6.0)
    monkeypatch.setattr(publications, "BATCH_MAX_BYTES", 100_000)
    records = []
    for number in range(120):
        # Some fill a transaction alone, one is larger than that.
        text = "x" * (number % 3 * 20_000 + 150_000 * (number == 60))
        card = make_card("Org/Tiny", [], fields={"user_data": text})
        records.append(model_record(Owner("n", "c", "e", 0x100 + number), card))
        store.publish(records[-1])
    shared.put(f"{prefix}{records[7].key}", b"{}")
    records[7] = Record(records[7].key, {})
    shared.ask("lease/revoke", {"ID": str(lease_of(shared, f"{prefix}{records[0].key}"))})
    wait_for(lambda: store.list(Kind.MODEL) == records)


def test_a_lease_that_ended_unseen_is_replaced_by_the_next_that_is_published(
    shared: Etcd, prefix: str, open_etcd: EtcdOpener
) -> None:
    store = open_etcd(f"{shared.url}/{prefix}", ttl_s=600)
    store.publish(MODEL)
    shared.ask("lease/revoke", {"ID": str(lease_of(shared, prefix))})
    store.publish(ADAPTER)
    assert store.list(Kind.MODEL) == [MODEL, ADAPTER]


def test_a_record_that_went_is_written_again_and_what_another_put_there_stays(
    shared: Etcd, prefix: str, store: EtcdDiscovery
) -> None:
    store.publish(MODEL)
    store.publish(MODEL_2)
    shared.put(f"{prefix}{MODEL.key}", b'{"user_data": "of another"}')
    shared.delete(f"{prefix}{MODEL_2.key}")
    wait_for(lambda: store.find(MODEL_2.key) == MODEL_2)
    assert store.find(MODEL.key) == Record(MODEL.key, {"user_data": "of another"})


def test_a_write_that_comes_late_is_taken_back(
    shared: Etcd, prefix: str, store: EtcdDiscovery
) -> None:
    """As of an etcd that was frozen, after the record was withdrawn."""
    store.publish(MODEL)
    shared.put(f"{prefix}{MODEL_2.key}", b"{}", lease_of(shared, prefix))
    wait_for(lambda: store.list(Kind.MODEL) == [MODEL])


def test_a_record_larger_than_this_etcd_takes_is_refused(own: Etcd, open_etcd: EtcdOpener) -> None:
    store = open_etcd(own.url)
    card = make_card("Org/Tiny", [], fields={"user_data": "x" * 2_000_000})
    with pytest.raises(Invalid, match="max-request-bytes"):
        store.publish(model_record(OWNER, card))
    store.publish(MODEL)
    assert store.list(Kind.MODEL) == [MODEL]


# An etcd that goes and comes


def test_an_etcd_that_is_killed_and_comes_back_loses_nothing(
    own: Etcd, open_etcd: EtcdOpener
) -> None:
    publisher, reader = open_etcd(own.url, ttl_s=3.0), open_etcd(own.url)
    publisher.publish(MODEL)
    watcher = Watcher(reader)
    watcher.wait_until(MODEL)
    own.kill()
    with pytest.raises(DiscoveryUnavailable, match=f"127.0.0.1:{own.port}: .*Check that it runs"):
        reader.list(Kind.MODEL)
    own.start()
    publisher.publish(MODEL_2)
    publisher.withdraw(MODEL.key)
    watcher.wait_until(MODEL_2)
    assert watcher.changes == [
        *(Change(MODEL.key, MODEL), Change(MODEL_2.key, MODEL_2), Change(MODEL.key, None)),
    ]


@pytest.mark.usefixtures("impatient")
def test_a_watch_whose_etcd_stays_away_says_so(own: Etcd, open_etcd: EtcdOpener) -> None:
    watcher = Watcher(open_etcd(own.url, patience_s=0.5))
    own.kill()
    wait_for(lambda: watcher.has_ended)
    assert "cannot be used" in str(watcher.error)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_etcd_is_noticed_and_followed_when_it_goes_on(
    own: Etcd, open_etcd: EtcdOpener, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, reader = open_etcd(own.url, ttl_s=30.0), open_etcd(own.url)
    publisher.publish(MODEL)
    watcher = Watcher(reader)
    watcher.wait_until(MODEL)
    own.freeze()
    try:
        wait_for(lambda: "changes come late" in caplog.text)
        with pytest.raises(DiscoveryUnavailable, match="does not answer in time"):
            publisher.publish(MODEL_2)
    finally:
        own.thaw()
    publisher.withdraw(MODEL.key)
    publisher.publish(ADAPTER)
    publisher.publish(MODEL_2)
    watcher.wait_until(ADAPTER, MODEL_2)


@pytest.mark.usefixtures("impatient")
def test_a_watch_of_a_frozen_etcd_is_closed_in_time(own: Etcd, open_etcd: EtcdOpener) -> None:
    store = open_etcd(own.url)
    store.publish(MODEL)
    watcher = Watcher(store)
    watcher.wait_until(MODEL)
    own.freeze()
    try:
        store.close()
        wait_for(lambda: watcher.has_ended, 10)
    finally:
        own.thaw()
    assert watcher.error is None


def test_what_was_compacted_while_nobody_watched_is_told_as_a_difference(
    own: Etcd, open_etcd: EtcdOpener
) -> None:
    old_port = own.port
    writer = open_etcd(own.url, ttl_s=60)
    writer.publish(MODEL)
    writer.publish(MODEL_2)
    watcher = Watcher(open_etcd(own.url))
    watcher.wait_until(MODEL, MODEL_2)
    own.kill()
    own.move()
    writer = open_etcd(own.url, ttl_s=60)
    writer.withdraw(MODEL_2.key)
    writer.publish(ADAPTER)
    own.compact()
    own.kill()
    own.port = old_port
    own.start()
    watcher.wait_until(MODEL, ADAPTER)
    assert watcher.changes[2:] == [
        Change(MODEL_2.key, None, relisted=True),
        Change(ADAPTER.key, ADAPTER, relisted=True),
    ]
    open_etcd(own.url).withdraw(MODEL.key)
    watcher.wait_until(ADAPTER)


def test_an_etcd_that_was_restored_from_older_data_is_listed_again(
    own: Etcd, open_etcd: EtcdOpener, tmp_path: Path
) -> None:
    publisher, other = open_etcd(own.url, ttl_s=3.0), open_etcd(own.url, ttl_s=60)
    other.publish(MODEL_2)
    own.save(tmp_path / "snapshot")
    publisher.publish(MODEL)
    for _ in range(20):
        other.publish(CHANGED)
    other.withdraw(MODEL_2.key)
    publisher.publish(MODEL)
    watcher = Watcher(open_etcd(own.url))
    watcher.wait_until(MODEL)
    own.restore(tmp_path / "snapshot", tmp_path / "restored")
    # It has the record that was withdrawn, and gets back the one that it had not yet.
    watcher.wait_until(MODEL_2, MODEL)
    publisher.publish(ADAPTER)
    watcher.wait_until(MODEL_2, MODEL, ADAPTER)


def test_a_record_that_a_restored_etcd_has_under_an_old_lease_is_taken_over(
    own: Etcd, open_etcd: EtcdOpener, tmp_path: Path
) -> None:
    """That lease ends, and nobody renews it."""
    store = open_etcd(own.url, ttl_s=3.0)
    store.publish(MODEL)
    first = lease_of(own, "v1/")
    own.save(tmp_path / "snapshot")
    own.ask("lease/revoke", {"ID": str(first)})
    wait_for(lambda: store.list(Kind.MODEL) == [MODEL])
    second = lease_of(own, "v1/")
    own.restore(tmp_path / "snapshot", tmp_path / "restored")
    wait_for(lambda: lease_of(own, "v1/") not in (first, second))
    assert store.list(Kind.MODEL) == [MODEL]


@pytest.mark.usefixtures("impatient")
def test_of_two_endpoints_one_is_enough(shared: Etcd, prefix: str, open_etcd: EtcdOpener) -> None:
    def be_silent(connection: object) -> None:
        silent.ended.wait()

    with Peer(be_silent) as silent:
        for dead in (free_port(), silent.port):
            url = f"etcd://127.0.0.1:{dead},127.0.0.1:{shared.port}/{prefix}{dead}/"
            store = open_etcd(url, ttl_s=60)
            watcher = Watcher(store)
            store.publish(MODEL)
            assert store.list(Kind.MODEL) == [MODEL]
            watcher.wait_until(MODEL)
            store.withdraw(MODEL.key)
            watcher.wait_until()


@pytest.mark.usefixtures("impatient")
def test_a_member_that_has_lost_the_others_is_left_for_one_that_has_a_leader(
    tmp_path: Path, open_etcd: EtcdOpener
) -> None:
    """Its watch stands, and says nothing."""
    ports = [free_port() for _ in range(3)]
    cluster = ",".join(f"m{at}=http://127.0.0.1:{port}" for at, port in enumerate(ports))
    with ExitStack() as stack:
        members = []
        for at, port in enumerate(ports):
            data = tmp_path / f"data{at}"
            each = Etcd(data, name=f"m{at}", peer_port=port, initial_cluster=cluster)
            members.append(stack.enter_context(each))
        for each in members:
            each.wait_until_serving()
        store = open_etcd(f"etcd://{','.join(f'127.0.0.1:{each.port}' for each in members)}")
        lonely = open_etcd(members[0].url, patience_s=0.5)
        store.publish(MODEL)
        watchers = [Watcher(store), Watcher(lonely)]
        for watcher in watchers:
            watcher.wait_until(MODEL)
        # The last one that is left has no leader.
        members[1].kill()
        members[2].kill()
        wait_for(lambda: watchers[1].has_ended)
        assert watchers[1].error is not None
        members[0].kill()
        members[1].start()
        members[2].start()
        members[1].wait_until_serving()
        store.publish(ADAPTER)
        store.publish(MODEL)
        watchers[0].wait_until(MODEL, ADAPTER)


# Users


def test_users_are_asked_who_they_are_again_when_that_was_forgotten(
    tmp_path: Path, open_etcd: EtcdOpener, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    with Etcd(tmp_path / "data", auth_token="simple", auth_token_ttl=1, bcrypt_cost=4) as etcd:
        etcd.ask_for_users("worker", "s3:cret/")
        url = etcd.url.replace("//", "//worker:s3%3Acret%2F@")
        store, reader = open_etcd(url, ttl_s=9), open_etcd(url)
        store.publish(MODEL)
        watcher = Watcher(reader)
        watcher.wait_until(MODEL)
        token = store._gateway._token
        wait_for(Expiry(etcd))
        assert store.list(Kind.MODEL) == [MODEL]
        assert store._gateway._token != token
        store.publish(MODEL_2)
        watcher.wait_until(MODEL, MODEL_2)
        etcd.kill()
        etcd.start()
        store.withdraw(MODEL.key)
        watcher.wait_until(MODEL_2)
        store._gateway._token = "nonsense.1"
        store.publish(ADAPTER)
        watcher.wait_until(MODEL_2, ADAPTER)
        # A token that expires between the last call and the watch: etcd begins the watch, and ends
        # it at once.
        with monkeypatch.context() as patch:
            patch.setattr(EtcdListing, "look", spoil_tokens(3))
            store.withdraw(ADAPTER.key)
            another = Watcher(reader)
            another.wait_until(MODEL_2)
            store.publish(ADAPTER)
            another.wait_until(MODEL_2, ADAPTER)
        check_refusals(etcd, open_etcd)


def spoil_tokens(times: int) -> Callable[[EtcdListing, bytes], EtcdHeader]:
    """As `EtcdListing.look`, after which the token is not taken any more, so many times."""
    look, left = EtcdListing.look, list(range(times))

    def spoil(listing: EtcdListing, prefix: bytes) -> EtcdHeader:
        header = look(listing, prefix)
        if left:
            left.pop()
            listing._gateway._token = "nonsense.1"
        return header

    return spoil


class Expiry:
    """Whether tokens of the time when this was made have expired. Asking with one renews it, so
    each is used once."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._probes = [self._log_in() for _ in range(40)]
        self._next = 0.0

    def _log_in(self) -> str:
        token: str = self._etcd.ask("auth/authenticate", {"name": "root", "password": "root"})[
            "token"
        ]
        return token

    def __call__(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + 0.5
        headers = {"authorization": self._probes.pop()}
        body = {"key": base64_of("v1/x")}
        return self._etcd.client.post("kv/range", json=body, headers=headers).status_code != 200


def check_refusals(etcd: Etcd, open_etcd: EtcdOpener) -> None:
    for user, says in {
        "worker:wrong@": "authentication failed.*Check user and password",
        "nobody:s3cret@": "authentication failed",
        "": "ETCD_AUTH_USERNAME",
    }.items():
        store = open_etcd(etcd.url.replace("//", f"//{user}"))
        for act in (partial(store.list, Kind.MODEL), partial(store.publish, MODEL)):
            with pytest.raises(DiscoveryUnavailable, match=says) as caught:
                act()
            assert "wrong" not in str(caught.value)
            assert "s3cret" not in str(caught.value)
    elsewhere = open_etcd(f"{etcd.url.replace('//', '//worker:s3%3Acret%2F@')}/elsewhere/")
    with pytest.raises(DiscoveryUnavailable, match=r"permission denied.*role"):
        elsewhere.list(Kind.MODEL)


def test_a_user_is_no_obstacle_where_nobody_is_asked(
    shared: Etcd, prefix: str, open_etcd: EtcdOpener
) -> None:
    store = open_etcd(f"{shared.url.replace('//', '//me:secret@')}/{prefix}")
    store.publish(MODEL)
    assert store.list(Kind.MODEL) == [MODEL]


# TLS


class Certificates:
    """Of one authority: an etcd's and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        for name in ("127.0.0.1", "client.example"):
            issued = authority.issue_cert(name)
            issued.private_key_pem.write_to_path(folder / f"{name}.key")
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        self.server, self.server_key = folder / "127.0.0.1.pem", folder / "127.0.0.1.key"
        self.client, self.client_key = folder / "client.example.pem", folder / "client.example.key"
        self.context = ssl.create_default_context(cafile=str(self.ca))
        self.context.load_cert_chain(self.client, self.client_key)


def test_certificates_come_by_the_url_and_by_dynamos_variables(
    tmp_path: Path, open_etcd: EtcdOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    pems = Certificates(tmp_path)
    with Etcd(
        tmp_path / "data",
        trust=pems.context,
        cert_file=pems.server,
        key_file=pems.server_key,
        trusted_ca_file=pems.ca,
        client_cert_auth="true",
    ) as etcd:
        files = f"ca_file={pems.ca}&cert_file={pems.client}&key_file={pems.client_key}"
        by_url = open_etcd(f"{etcd.url}?{files}", ttl_s=60)
        by_url.publish(MODEL)
        watcher = Watcher(by_url)
        watcher.wait_until(MODEL)
        for show in (str, Path.read_text):
            with monkeypatch.context() as patch:
                patch.setenv("ETCD_ENDPOINTS", f"https://127.0.0.1:{etcd.port}")
                patch.setenv("ETCD_AUTH_CA", show(pems.ca))
                patch.setenv("ETCD_AUTH_CLIENT_CERT", show(pems.client))
                patch.setenv("ETCD_AUTH_CLIENT_KEY", show(pems.client_key))
                by_variables = open_discovery("etcd:")
            assert by_variables.list(Kind.MODEL) == [MODEL]
            by_variables.close()
        by_url.close()
        wait_for(lambda: watcher.has_ended, 5)
        assert watcher.error is None
        for url, says in {
            f"{etcd.url}?ca_file={pems.ca}": "cannot be used",
            f"{etcd.url}": "ETCD_AUTH_CA",
            etcd.url.replace("etcds", "etcd"): "etcds://",
        }.items():
            with pytest.raises(DiscoveryUnavailable, match=says):
                open_etcd(url).list(Kind.MODEL)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("ca_file={}/none", "cannot be read: No such file"),
        ("ca_file={}/empty", "authorities for etcd .* cannot be used"),
        ("ca_file={}/ca.pem&cert_file={}/empty&key_file={}/empty", "client certificate .* cannot"),
        ("cert_file={}/ca.pem", "needs its key"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(tmp_path: Path, query: str, says: str) -> None:
    Certificates(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(SettingsError, match=says):
        open_discovery("etcds://127.0.0.1?" + query.format(*[tmp_path] * 3))
