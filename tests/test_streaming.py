"""Large files: what a slow client gets while its file changes (S12), and how much memory many slow
clients take.

Content above 1 MiB is served from memory where the budget has room for it (`content_cache_bytes`),
and is streamed otherwise. Both ways are tried, of files in place and of copies.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.core.records import ArtifactKey
from tests.exchanges import Line, key_of, new_slug, problem_of, running, worker
from tests.support import Server, checksum, in_place, opened_by, sql, wait_for

MIB = 1 << 20
SLOW_BYTES = 64 << 10
"""The receive buffer of a slow client."""


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


LARGE = content_of(12 * MIB)
"""More than the buffers of a connection hold, so that a slow client is served for long."""
SMALL = content_of(3 * MIB, seed=1)


@dataclass(frozen=True)
class Large:
    """A service with a large file, its key, and its path if it is in place."""

    server: Server
    key: ArtifactKey
    path: Path | None

    @property
    def url(self) -> str:
        return f"/v1/metadata/{self.key}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def roomy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with the memory that it has by default."""
    with running(tmp_path_factory.mktemp("roomy"), artifact_root=root) as server:
        yield server


@pytest.fixture(scope="module")
def tight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that must stream everything large."""
    folder = tmp_path_factory.mktemp("tight")
    with running(folder, artifact_root=root, content_cache_bytes=SLOW_BYTES) as server:
        yield server


@pytest.fixture(params=["memory", "stream"])
def either(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue("roomy" if request.param == "memory" else "tight")
    return server


def held(server: Server, root: Path, source: str, content: bytes) -> Large:
    key = key_of(new_slug(), "tokenizer.json")
    if source == "copied":
        answer = server.register_copies(worker(key.slug), {key: content})
        path = None
    else:
        path = root / f"{key.slug}-{os.getpid()}.json"
        path.write_bytes(content)
        answer = server.register(worker(key.slug), [in_place(key, path)])
    assert answer.status_code == 200, answer.text
    return Large(server, key, path)


# What is sent is right


@pytest.mark.parametrize("source", ["copied", "in place"])
def test_a_large_file_is_served_whole_and_in_parts(either: Server, root: Path, source: str) -> None:
    size = len(SMALL)
    large = held(either, root, source, SMALL)
    answer = either.fetch(large.key)
    assert (answer.status_code, answer.content) == (200, SMALL)
    assert answer.headers["content-length"] == str(size)
    assert either.client.head(large.url).headers["content-length"] == str(size)
    for value, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=-1", size - 1, size),
        (f"bytes={MIB - 1}-{2 * MIB}", MIB - 1, 2 * MIB + 1),
        ("bytes=262143-262144", 262143, 262145),
        ("bytes=1-", 1, size),
        (f"bytes=0-{size - 1}", 0, size),
    ]:
        with Line(either) as line:
            line.ask(large.url, f"Range: {value}")
            line.ask("/live")
            part, live = line.read_answer(), line.read_answer()
        # A part of a file that is younger than 2 s may be answered with the whole.
        expected = (206, SMALL[start:end]) if part.status_code == 206 else (200, SMALL)
        assert (part.status_code, part.content) == expected
        assert live.status_code == 200


@pytest.mark.parametrize("source", ["copied", "in place"])
def test_several_parts_of_a_large_file_come_in_one_answer(
    either: Server, root: Path, source: str
) -> None:
    large = held(either, root, source, SMALL)
    if large.path is not None:
        trust(large)
    with Line(either) as line:
        line.ask(large.url, "Range: bytes=0-1048576,2000000-2000009,-300000")
        line.ask("/live")
        answer, live = line.read_answer(), line.read_answer()
    assert answer.status_code == 206
    for start, end in [(0, MIB + 1), (2_000_000, 2_000_010), (len(SMALL) - 300_000, len(SMALL))]:
        head = f"Content-Range: bytes {start}-{end - 1}/{len(SMALL)}\r\n\r\n".encode()
        assert head + SMALL[start:end] + b"\r\n--" in answer.content
    assert live.status_code == 200


def trust(large: Large) -> None:
    """Read a file until it is so old that the service trusts its identity."""

    def is_trusted() -> bool:
        assert large.server.client.head(large.url).status_code == 200
        with sql(large.server.database) as connection:
            query = (
                "SELECT file_identity IS NOT NULL FROM owner_refs JOIN entries ON id = entry_id "
                "WHERE slug = ?"
            )
            return connection.execute(query, [large.key.slug]).fetchall() == [(1,)]

    wait_for(is_trusted)


# The file changes while a slow client is served


def edited_at_the_end(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([LARGE[-1] ^ 1]))


def edited_at_the_beginning(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(bytes([LARGE[0] ^ 1]))


def edited_with_its_times_put_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as opened:
        opened.seek(len(LARGE) // 2)
        opened.write(content_of(len(LARGE) // 2, seed=2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, len(LARGE) // 2)


def grown(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"more")


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content_of(len(LARGE), seed=3))
    other.rename(path)


def deleted(path: Path) -> None:
    path.unlink()


CHANGES = [
    edited_at_the_end,
    edited_at_the_beginning,
    edited_with_its_times_put_back,
    cut,
    grown,
    replaced,
    deleted,
]
STILL_RIGHT = [edited_at_the_beginning, grown, replaced, deleted]
"""What was sent already is edited, or what is open has the right bytes yet."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("headers", [[], ["Range: bytes=1-"]], ids=["whole", "part"])
def test_a_file_that_changes_while_it_is_sent_never_arrives_whole_and_wrong(
    either: Server, root: Path, change: Callable[[Path], None], headers: list[str]
) -> None:
    large = held(either, root, "in place", LARGE)
    assert large.path is not None
    with Line(either, receive_buffer_bytes=SLOW_BYTES) as line:
        line.ask(large.url, *headers)
        status, head = line.read_head()
        first = line.read(SLOW_BYTES)
        change(large.path)
        rest = line.read(int(head["content-length"]) - len(first))
    expected = LARGE[1:] if status == 206 else LARGE
    received = first + rest
    if is_streaming(either) and change not in STILL_RIGHT:
        assert len(received) < len(expected)
    else:
        assert received == expected
    problem_of(either.fetch(large.key), 503, "unserveable")


def is_streaming(server: Server) -> bool:
    command = server.process.args
    return isinstance(command, list) and "--content-cache-bytes" in command


@pytest.mark.parametrize("change", [edited_at_the_end, cut])
def test_an_aged_file_that_changes_while_a_part_is_sent_never_arrives_whole_and_wrong(
    tight: Server, root: Path, change: Callable[[Path], None]
) -> None:
    large = held(tight, root, "in place", LARGE)
    assert large.path is not None
    trust(large)
    with Line(tight, receive_buffer_bytes=SLOW_BYTES) as line:
        line.ask(large.url, "Range: bytes=1-")
        status, head = line.read_head()
        assert (status, head["content-length"]) == (206, str(len(LARGE) - 1))
        first = line.read(SLOW_BYTES)
        change(large.path)
        assert len(first + line.read_rest()) < len(LARGE) - 1


def test_parts_of_a_file_that_changes_all_the_time_are_right_or_cut_off(
    tight: Server, root: Path
) -> None:
    large = held(tight, root, "in place", SMALL)
    path, middle = large.path, len(SMALL) // 2
    assert path is not None
    stop = threading.Event()

    def flicker() -> None:
        with path.open("r+b", buffering=0) as opened:
            while not stop.is_set():
                for byte in (SMALL[middle] ^ 1, SMALL[middle]):
                    os.pwrite(opened.fileno(), bytes([byte]), middle)

    def read(value: str, expected: bytes) -> None:
        with Line(tight) as line:
            for _ in range(150):
                line.ask(large.url, f"Range: {value}")
                answer = line.read_answer()
                if answer.status_code == 503:
                    continue
                right = SMALL if answer.status_code == 200 else expected
                assert answer.content == right or not answer.complete
                if not answer.complete:
                    return

    with ThreadPoolExecutor(1) as thread:
        writer = thread.submit(flicker)
        try:
            for _ in range(10):
                read(f"bytes={middle - 5}-{middle + 5}", SMALL[middle - 5 : middle + 6])
        finally:
            stop.set()
        writer.result()


@pytest.mark.parametrize("source", ["copied", "in place"])
@pytest.mark.parametrize("how", ["by its owner", "by an administrator"])
def test_content_that_is_unregistered_while_it_is_sent_arrives_right_or_not_whole(
    either: Server, root: Path, source: str, how: str
) -> None:
    large = held(either, root, source, LARGE)
    with Line(either, receive_buffer_bytes=SLOW_BYTES) as line:
        line.ask(large.url)
        status, head = line.read_head()
        assert (status, head["content-length"]) == (200, str(len(LARGE)))
        first = line.read(SLOW_BYTES)
        with sql(either.database) as connection:  # As if it had been uploaded long ago.
            connection.execute("UPDATE blobs SET uploaded_at = 0")
        if how == "by its owner":
            receipt = either.unregister(worker(large.key.slug)).json()
        else:
            receipt = either.client.delete(f"/v1/artifacts/{large.key.slug}/_base").json()
        assert len(receipt["removed"]) == 1
        assert either.fetch(large.key).status_code == 404
        received = first + line.read(len(LARGE) - len(first))
    assert received == LARGE or len(received) < len(LARGE)
    if source == "copied":
        assert either.client.head(f"/v1/blobs/{checksum(LARGE)}").status_code == 404


def test_content_that_is_replaced_while_it_is_sent_arrives_right_or_not_whole(
    either: Server, root: Path
) -> None:
    large = held(either, root, "copied", LARGE)
    with Line(either, receive_buffer_bytes=SLOW_BYTES) as line:
        line.ask(large.url)
        _, head = line.read_head()
        assert head["etag"] == f'"{checksum(LARGE)}"'
        first = line.read(SLOW_BYTES)
        with sql(either.database) as connection:
            connection.execute("UPDATE blobs SET uploaded_at = 0")
        either.register_copies(worker(large.key.slug), {large.key: SMALL})
        assert either.fetch(large.key).content == SMALL
        received = first + line.read(len(LARGE) - len(first))
    assert received == LARGE or len(received) < len(LARGE)


# Many clients

HUGE = content_of(40 * MIB, seed=4)
READERS = 64
GROWTH_MAX_BYTES = 160 * MIB
"""Above what the service has when nobody reads: the content once if there is room for it, and for
each reader what is on its way, at most about a MiB. All readers' copies would be 2560 MiB."""


def peak_bytes(server: Server) -> int:
    """The most memory that the service has had at once since `forget_peak`."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


@pytest.mark.parametrize("source", ["copied", "in place"])
@pytest.mark.parametrize(
    "flags", [{}, {"content_cache_bytes": SLOW_BYTES}], ids=["memory", "stream"]
)
def test_many_slow_readers_of_a_large_file_take_bounded_memory_and_hold_up_nobody(
    serve: Callable[..., Server], root: Path, source: str, flags: dict[str, int]
) -> None:
    server = serve(artifact_root=root, **flags)
    large = held(server, root, source, HUGE)
    small = key_of(large.key.slug, "config.json")
    server.register_copies(worker(large.key.slug, 2), {small: b"{}"})
    forget_peak(server)
    before = peak_bytes(server)
    with ExitStack() as stack:
        lines = [
            stack.enter_context(Line(server, receive_buffer_bytes=SLOW_BYTES))
            for _ in range(READERS)
        ]
        for line in lines:
            line.ask(large.url)
        for line in lines:
            assert line.read_head()[0] == 200
        # Nobody reads on for now.
        assert server.client.get("/live").status_code == 200
        assert server.fetch(small).content == b"{}"
        answer = server.register_copies(worker(large.key.slug, 3), {small: b"{}"})
        assert answer.status_code == 200
        assert server.fetch(large.key, range="bytes=-5").status_code in (200, 206)
        for line in lines:
            assert line.read(2 * MIB) == HUGE[: 2 * MIB]
        for line in lines[:3]:
            assert line.read(len(HUGE) - 2 * MIB) == HUGE[2 * MIB :]
    growth = peak_bytes(server) - before
    assert growth < GROWTH_MAX_BYTES, f"{growth >> 20} MiB"


def test_slow_readers_of_many_large_files_stay_within_the_budget(
    serve: Callable[..., Server], root: Path
) -> None:
    """Content that is being sent is not forgotten while it is still in memory."""
    size, budget_bytes = 24 * MIB, 64 * MIB
    server = serve(artifact_root=root, content_cache_bytes=budget_bytes)
    slug = new_slug()
    lines = []
    for number in range(8):
        path = root / f"{slug}-{os.getpid()}-{number}"
        path.write_bytes(b"%d" % number)
        os.truncate(path, size)
        lines.append(in_place(key_of(slug, str(number)), path))
    assert server.register(worker(slug), lines).status_code == 200
    forget_peak(server)
    before = peak_bytes(server)
    with ExitStack() as stack:
        for line in lines:
            reader = stack.enter_context(Line(server, receive_buffer_bytes=SLOW_BYTES))
            reader.ask(f"/v1/metadata/{slug}/_base/{line['filename']}")
            assert reader.read_head()[0] == 200
            assert reader.read(1) == line["filename"].encode()
    growth = peak_bytes(server) - before
    assert growth < budget_bytes + 32 * MIB, f"{growth >> 20} MiB"


def test_nothing_is_read_for_clients_that_are_gone(tight: Server, root: Path) -> None:
    large = held(tight, root, "in place", LARGE)
    process = Path(f"/proc/{tight.process.pid}")

    def read_bytes() -> int:
        return int((process / "io").read_text().split()[1])

    def is_open() -> bool:
        return str(large.path) in opened_by(tight.process.pid)

    trust(large)
    before = read_bytes()
    with ExitStack() as stack:
        for _ in range(READERS):
            line = stack.enter_context(Line(tight, receive_buffer_bytes=SLOW_BYTES))
            line.ask(large.url)
            assert line.read_head()[0] == 200
    wait_for(lambda: not is_open())
    assert read_bytes() - before < READERS * len(LARGE) / 2
