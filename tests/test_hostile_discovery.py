"""A discovery directory in which others write whatever they like: only records are believed, and
nothing else is opened, followed or waited for."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from registry.client.wanted_files import files_of
from registry.core.hashing import checksum_of
from registry.core.records import Owner
from registry.discovery import Kind, RecordKey, keeper, model_record, open_discovery
from registry.discovery.cards import Card, CardFile, make_card
from registry.discovery.file import TTL_S, FileDiscovery
from registry.discovery.file import listing as file_listing
from registry.discovery.keeper import Keeper
from registry.discovery.record_io import NAMED_MAX, RECORD_MAX_BYTES
from registry.errors import DiscoveryUnavailable, Invalid, SettingsError
from tests.support import wait_for

GOOD = Owner("n", "c", "e", 0xABC)
CARD = make_card("Org/Tiny", [])
FOLDER = "kv/v1/mdc"
NAME = "n%2Fc%2Fe%2F1"
"""Where a record of another owner could be."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileDiscovery]:
    """A directory with one good record."""
    opened = FileDiscovery(tmp_path / "kv")
    opened.publish(model_record(GOOD, CARD))
    yield opened
    opened.close()


def owners(store: FileDiscovery) -> list[Owner]:
    return [record.key.owner for record in store.list(Kind.MODEL)]


# Names and times


NOT_CANONICAL = {
    "a leading zero": "n%2Fc%2Fe%2F01",
    "a prefix": "n%2Fc%2Fe%2F0x1",
    "a sign": "n%2Fc%2Fe%2F%2B1",
    "a minus": "n%2Fc%2Fe%2F%2D1",
    "a space before": "n%2Fc%2Fe%2F%201",
    "a space behind": "n%2Fc%2Fe%2F1%20",
    "a line behind": "n%2Fc%2Fe%2F1%0A",
    "an underscore": "n%2Fc%2Fe%2F1%5F000",
    "digits of another script": "n%2Fc%2Fe%2F%D9%A1",
    "capital hex": "n%2Fc%2Fe%2FABC",
    "nothing": "n%2Fc%2Fe%2F",
    "more than 64 bits": "n%2Fc%2Fe%2F10000000000000000",
    "escapes in lowercase": "n%2fc%2fe%2f1",
    "an escape too many": "%6E%2Fc%2Fe%2F1",
    "an escape too few": "n%2Fc%2Fe.f%2F1",
    "escapes twice": "n%252Fc%252Fe%252F1",
    "no UTF-8 in an escape": "n%2Fc%2Fe%2F%FF",
    "a LoRA that is no slug": "n%2Fc%2Fe%2F1%2F%5Fbase",
}


@pytest.mark.parametrize("name", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_a_key_has_one_name_and_what_is_written_otherwise_is_none(
    store: FileDiscovery, tmp_path: Path, name: str
) -> None:
    (tmp_path / FOLDER / name).write_text("{}")
    assert owners(store) == [GOOD]
    (tmp_path / FOLDER / NAME).write_text("{}")
    assert owners(store) == [Owner("n", "c", "e", 1), GOOD]


def test_an_instance_has_no_lora(store: FileDiscovery) -> None:
    assert RecordKey.parse(Kind.MODEL, "n/c/e/1/x").owner.lora_slug == "x"
    with pytest.raises(Invalid):
        RecordKey.parse(Kind.INSTANCE, "n/c/e/1/x")


@pytest.mark.parametrize(
    ("ahead_s", "is_live"),
    [
        *((-2 * TTL_S, False), (-TTL_S / 2, True), (TTL_S / 2, True), (2 * TTL_S, False)),
        *((3600, False), (1e9, False), (8e9, False), (-5e9, False)),
    ],
)
def test_a_time_ahead_does_not_keep_a_record_live_for_ever(
    store: FileDiscovery, tmp_path: Path, ahead_s: float, is_live: bool
) -> None:
    path = tmp_path / FOLDER / NAME
    path.write_text("{}")
    then = time.time() + ahead_s
    os.utime(path, (then, then))
    assert (Owner("n", "c", "e", 1) in owners(store)) is is_live
    assert (store.find(RecordKey(Kind.MODEL, Owner("n", "c", "e", 1))) is not None) is is_live


# What stands there


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def device(path: Path, victim: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs root")


def a_socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        listener.bind(path.name)
        os.chdir(here)


def unreadable(path: Path, victim: Path) -> None:
    path.write_text("{}")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")


def huge(path: Path, victim: Path) -> None:
    with path.open("wb") as opened:
        opened.truncate(1 << 40)


def content(text: bytes) -> Callable[[Path, Path], None]:
    def put(path: Path, victim: Path) -> None:
        path.write_bytes(text)

    return put


IDENTITY = {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 1}


def said(**fields: object) -> Callable[[Path, Path], None]:
    return content(json.dumps({**IDENTITY, "card_json": {}, **fields}).encode())


ODD: dict[str, Callable[[Path, Path], None]] = {
    "a FIFO": fifo,
    "a device that never ends": device,
    "a socket": a_socket,
    "a directory": lambda path, victim: path.mkdir(),
    "a link to a file": lambda path, victim: path.symlink_to(victim),
    "a link to nothing": lambda path, victim: path.symlink_to("nowhere"),
    "a link to itself": lambda path, victim: path.symlink_to(path.name),
    "a link to a directory": lambda path, victim: path.symlink_to(path.parent),
    "a link to a device": lambda path, victim: path.symlink_to("/dev/zero"),
    "a file of a tebibyte": huge,
    "an unreadable file": unreadable,
    "a file that is a little too large": content(b" " * RECORD_MAX_BYTES + b"{}"),
    "nothing in it": content(b""),
    "a part of a record": content(b'{"card_json": {'),
    "something behind": content(b"{} {}"),
    "a list": content(b"[]"),
    "a number": content(b"7"),
    "null": content(b"null"),
    "UTF-16": content("{}".encode("utf-16")),
    "no UTF-8": content(b'{"a": "\xff"}'),
    "a lone surrogate": content(b'{"a": "\\ud800 "}'),
    "no number": content(b'{"a": NaN}'),
    "too large a number": content(b'{"a": 1e999}'),
    "a number of many digits": content(b'{"a": ' + b"9" * 100_000 + b"}"),
    "lists 500 deep": content(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}"),
    "objects 500 deep": content(b'{"a": ' * 500 + b"1" + b"}" * 500),
    "many members": content(b"{%s}" % b",".join(b'"%x":1' % n for n in range(350_000))),
    "a million elements": content(b'{"a": [%s]}' % b",".join([b"1"] * 1_000_000)),
    "lists a million deep": content(b'{"a": ' + b"[" * 1_000_000),
    "another namespace": said(namespace="other"),
    "another instance": said(instance_id=2),
    "an instance of another type": said(instance_id="1"),
    "a true instance": said(instance_id=True),
    "a LoRA where there is none": said(model_suffix="lora"),
    "names of wrong types": said(component={"a": []}),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_what_is_no_record_is_left_out_named_once_and_not_followed(
    store: FileDiscovery,
    tmp_path: Path,
    make: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("{}")
    os.utime(victim, (1, 1))
    make(tmp_path / FOLDER / NAME, victim)
    assert owners(store) == owners(store) == [GOOD]
    assert store.find(RecordKey(Kind.MODEL, Owner("n", "c", "e", 1))) is None
    assert getattr(next(store.watch(Kind.MODEL)), "key", None) == RecordKey(Kind.MODEL, GOOD)
    assert victim.stat().st_atime == victim.stat().st_mtime == 1
    assert caplog.text.count("is left out") == caplog.text.count(NAME) == 1


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_a_record_is_published_and_withdrawn_whatever_stands_in_its_place(
    store: FileDiscovery, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    victim, path = tmp_path / "victim", tmp_path / FOLDER / NAME
    victim.write_text("{}")
    os.utime(victim, (1, 1))
    make(path, victim)
    record = model_record(Owner("n", "c", "e", 1), CARD)
    if path.is_dir() and not path.is_symlink():
        with pytest.raises(DiscoveryUnavailable, match="cannot be published"):
            store.publish(record)
        return
    store.publish(record)
    assert store.find(record.key) == record
    store.withdraw(record.key)
    assert not os.path.lexists(path)
    assert victim.stat().st_mtime == 1


def test_a_record_that_was_replaced_by_a_link_is_written_again_and_the_link_is_not_touched(
    tmp_path: Path,
) -> None:
    store, victim = FileDiscovery(tmp_path / "kv", ttl_s=1.0), tmp_path / "victim"
    victim.write_text("{}")
    os.utime(victim, (1, 1))
    store.publish(model_record(GOOD, CARD))
    path = next((tmp_path / FOLDER).iterdir())
    path.unlink()
    path.symlink_to(victim)
    wait_for(lambda: owners(store) == [GOOD])
    assert not path.is_symlink()
    assert victim.stat().st_mtime == 1
    store.close()


@pytest.mark.parametrize("way", ["kv", "kv/v1", FOLDER])
@pytest.mark.parametrize(
    "make", [fifo, content(b""), ODD["a link to itself"]], ids=["FIFO", "file", "link to itself"]
)
def test_a_directory_that_is_none_is_an_error(
    tmp_path: Path, way: str, make: Callable[[Path, Path], None]
) -> None:
    (tmp_path / way).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / way, tmp_path)
    store = FileDiscovery(tmp_path / "kv")
    with pytest.raises(DiscoveryUnavailable):
        store.publish(model_record(GOOD, CARD))
    with pytest.raises(DiscoveryUnavailable, match="cannot be listed"):
        store.list(Kind.MODEL)
    store.close()


# Too much


@pytest.mark.parametrize(
    ("bound", "value", "says"),
    [
        ("LISTING_MAX_NAMES", 20, "more than 20 files"),
        ("LISTING_MAX_BYTES", 1 << 20, "more than 1 MiB of records"),
        ("LISTING_MAX_S", 0.0, "more than can be read in 0 s"),
    ],
)
def test_more_than_a_listing_takes_is_an_error_and_not_an_empty_list(
    store: FileDiscovery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    value: float,
    says: str,
) -> None:
    for number in range(20):
        (tmp_path / FOLDER / f"n%2Fc%2Fe%2F{number + 10}").write_bytes(b" " * 100_000)
    assert owners(store) == [GOOD]
    monkeypatch.setattr(file_listing, bound, value)
    with pytest.raises(DiscoveryUnavailable, match=says):
        store.list(Kind.MODEL)


def test_of_many_odd_names_few_are_logged(
    store: FileDiscovery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        (tmp_path / FOLDER / f"n%2Fc%2Fe%2F0{number}").touch()
    assert owners(store) == [GOOD]
    assert caplog.text.count("is left out") == NAMED_MAX


def test_a_record_that_nobody_would_read_is_not_published(store: FileDiscovery) -> None:
    card = make_card("Org/Tiny", [], fields={"user_data": "x" * RECORD_MAX_BYTES})
    with pytest.raises(Invalid, match="a record has at most"):
        store.publish(model_record(GOOD, card))
    assert owners(store) == [GOOD]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_a_shortage_of_this_machine_does_not_look_like_a_model_that_is_gone(
    store: FileDiscovery, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(file_listing, "open_regular", fail)
        with pytest.raises(DiscoveryUnavailable, match=os.strerror(code)):
            store.list(Kind.MODEL)
    assert owners(store) == [GOOD]


# A file system that hangs


def test_a_file_system_that_hangs_holds_up_no_caller_and_its_work_is_done_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "ANSWER_MAX_S", 0.2)
    hung = threading.Event()
    done: list[str] = []

    def hang() -> None:
        hung.wait()
        done.append("first")

    works = Keeper("It", lambda: True, 0.01)
    with pytest.raises(DiscoveryUnavailable, match=r"not answer within 0.2 s; .* may be done yet"):
        works.do(hang)
    with pytest.raises(DiscoveryUnavailable, match="what was asked was not done"):
        works.do(partial(done.append, "second"))
    works.close()
    assert done == []
    hung.set()
    works.do(partial(done.append, "third"))
    assert done == ["first", "third"]


def test_between_jobs_without_end_the_regular_work_is_done() -> None:
    times: list[float] = []

    def note() -> bool:
        times.append(time.monotonic())
        return True

    works = Keeper("It", note, 0.01)
    while len(times) < 5:
        works.do(lambda: None)
    works.close()
    seen = len(times)
    works.do(lambda: None)
    assert len(times) == seen


def test_a_child_of_the_process_that_opened_a_store_is_told_so(store: FileDiscovery) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.list(Kind.MODEL)
        except DiscoveryUnavailable as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert f"opened by process {os.getpid()}".encode() in os.read(read, 1000)
    os.close(read)
    os.close(write)
    assert owners(store) == [GOOD]


# Cards


FILE: dict[str, Any] = {"path": "http://h/config.json", "checksum": checksum_of(b""), "size": 1}
WRONG_FIELDS: dict[str, dict[str, object]] = {
    "a checksum that is a path": {"checksum": "blake3:/etc/passwd"},
    "a checksum that climbs": {"checksum": "blake3:.."},
    "a long checksum": {"checksum": "blake3:" + "a" * 300},
    "a checksum in capitals": {"checksum": "blake3:" + "A" * 64},
    "a checksum and a line": {"checksum": checksum_of(b"") + "\n"},
    "another checksum": {"checksum": "sha256:" + "a" * 64},
    "no checksum": {"checksum": None},
    "a negative size": {"size": -1},
    "an enormous size": {"size": 2**63},
    "a size of many digits": {"size": 10**4000},
    "a fraction": {"size": 1.0},
    "a size that is true": {"size": True},
    "no size": {"size": None},
    "a host that is none": {"path": "http://[::1/config.json"},
    "a URL without a name": {"path": "http://h/"},
    "an empty URL": {"path": ""},
    "a URL that is a list": {"path": ["http://h/a"]},
    "a name that climbs": {"path": "http://h/%2E%2E"},
    "a name with a slash": {"path": "http://h/a%2Fb"},
    "a name with a backslash": {"path": "http://h/a%5Cb"},
    "a name with a NUL": {"path": "http://h/a%00"},
    "a name that is no UTF-8": {"path": "http://h/%FF"},
    "a name that is too long": {"path": "http://h/" + "a" * 256},
    "a URL that is too long": {"path": "http://h/" + "a/" * 9000 + "a"},
    "a control character": {"path": "http://h/\x1b[31m/a"},
    "a lone surrogate": {"path": "http://h/\ud800/a"},
}


@pytest.mark.parametrize("fields", WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_a_file_of_a_card_is_checked_at_the_door(fields: dict[str, object]) -> None:
    assert len(Card({"extra_files": [FILE]}).files) == 1
    card = Card({"display_name": {"not": "a name"}, "extra_files": [FILE | fields]})
    with pytest.raises(Invalid):
        _ = card.files
    with pytest.raises(Invalid):
        files_of(card)


def test_a_card_nested_deeply_is_looked_through() -> None:
    nested: object = FILE
    for _ in range(100_000):
        nested = [nested]
    assert [each.filename for each in Card({"a": nested}).files] == ["config.json"]
    assert Card({"display_name": 7}).name == ""


def test_a_file_of_a_card_knows_its_name() -> None:
    assert CardFile("http://h/v1/a%20b.json?x#y", checksum_of(b""), 0).filename == "a b.json"


# URLs


@pytest.mark.parametrize(
    "url", ["file://[::1/kv", "file:/a%00b", "file:/a?mode=ro", "file:/a#b", "file:/%FF", "file:?"]
)
def test_a_url_that_is_none_or_of_which_a_part_would_be_dropped_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="file:/DIRECTORY"):
        open_discovery(url)
