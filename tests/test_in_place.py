"""Files that stay where they are: which may be registered (S13), and whether their bytes are still
the ones that were (S5, S12)."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from registry.core.records import ArtifactKey
from tests.exchanges import journal, key_of, new_slug, problem_of, rows_of, running, settle, worker
from tests.support import Server, checksum, copied, in_place, wait_for

LIMIT_BYTES = 65_536
AGED_FILES = 48
TRUSTED_AFTER_S = 2

GOOD = b"these bytes were registered"
WRONG = b"THOSE bytes were registered"
"""As long as the good ones."""


@dataclass(frozen=True)
class Tree:
    """An artifact root with everything in and around it that could be taken for a file of it."""

    base: Path

    @property
    def root(self) -> Path:
        return self.base / "root"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    base = tmp_path_factory.mktemp("tree").resolve()
    for name in ("root/sub", "root-sibling", "outside"):
        (base / name).mkdir(parents=True)
        (base / name / "file.json").write_bytes(GOOD)
    root = base / "root"
    (root / "file.json").write_bytes(GOOD)
    (root / "limit.json").write_bytes(bytes(LIMIT_BYTES))
    (root / "large.json").write_bytes(bytes(LIMIT_BYTES + 1))
    (root / "unreadable.json").write_bytes(GOOD)
    (root / "unreadable.json").chmod(0)
    (root / "unreadable").mkdir()
    (root / "unreadable/file.json").write_bytes(GOOD)
    (root / "unreadable").chmod(0)
    links: dict[str, str | bytes | Path] = {
        "link-outside.json": base / "outside/file.json",
        "link-sibling.json": "../root-sibling/file.json",
        "link-outside": "../outside",
        "link-up": "..",
        "link-inside.json": "sub/file.json",
        "link-to-link.json": "link-inside.json",
        "link-inside": root / "sub",
        "loop": "loop",
        "dangling": "nothing",
        "link-fifo": "fifo",
        "link-zero": "/dev/zero",
        "link-latin-1": b"gr\xf6\xdfe",
    }
    for name, target in links.items():
        os.symlink(target, root / name)
    (base / "link-root").symlink_to(root)
    Path(os.fsdecode(bytes(root) + b"/gr\xf6\xdfe")).write_bytes(GOOD)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix, suppress(OSError):
        here = os.open(root, os.O_PATH)
        unix.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with suppress(PermissionError):
        os.mknod(root / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    return Tree(base)


@pytest.fixture(scope="module")
def shared(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with one root, which files permissions bind even if the tests run as root."""
    folder = tmp_path_factory.mktemp("in-place")
    with running(
        folder, start=bound, artifact_root=tree.root, max_blob_bytes=LIMIT_BYTES
    ) as server:
        yield server


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that may serve any file of the machine."""
    with running(tmp_path_factory.mktemp("wide"), artifact_root="/") as server:
        yield server


def bound(start: Callable[[], Server]) -> Server:
    """Start a service without the right to read what file permissions forbid."""

    def work() -> Server:
        # Capabilities are dropped for this thread and for the processes that it starts.
        libc = ctypes.CDLL(None)
        drop, dac_override, dac_read_search = 24, 1, 2
        for capability in (dac_override, dac_read_search):
            libc.prctl(drop, capability, 0, 0, 0)
        return start()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


@pytest.fixture
def slug() -> str:
    return new_slug()


@pytest.fixture
def path(tree: Tree, slug: str) -> Path:
    """A file with the good bytes, in a folder of its own."""
    path = tree.root / slug / "file.json"
    path.parent.mkdir()
    path.write_bytes(GOOD)
    return path


@pytest.fixture(scope="module")
def aged_files(tree: Tree) -> Iterator[Path]:
    """Files that are so old that their identity is trusted, each in a folder of its own."""
    paths = [tree.root / f"aged-{number}" / "file.json" for number in range(AGED_FILES)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(GOOD)
    changed_at = max(path.stat().st_ctime for path in paths)
    wait_for(lambda: time.time() > changed_at + TRUSTED_AFTER_S + 0.1)
    return iter(paths)


@pytest.fixture(params=["young", "aged"])
def file(request: pytest.FixtureRequest, path: Path, aged_files: Iterator[Path]) -> Path:
    """A file whose identity is not trusted yet, and one whose identity is."""
    return path if request.param == "young" else next(aged_files)


# S13: which files may be registered

REFUSED = {
    "outside": ("outside/file.json", 403),
    "dots that leave the root": ("root/../outside/file.json", 403),
    "dots through a folder": ("root/sub/../../outside/file.json", 403),
    "a sibling whose name begins with the root's": ("root-sibling/file.json", 403),
    "a link that leaves the root": ("root/link-outside.json", 403),
    "a relative link to the sibling": ("root/link-sibling.json", 403),
    "a folder that is a link out": ("root/link-outside/file.json", 403),
    "a folder that is a link up": ("root/link-up/outside/file.json", 403),
    "a link to a device": ("root/link-zero", 403),
    "the root itself": ("root", 403),
    "the folder above": ("", 403),
    "a folder": ("root/sub", 422),
    "a folder with a slash behind": ("root/sub/", 422),
    "a FIFO": ("root/fifo", 422),
    "a link to a FIFO": ("root/link-fifo", 422),
    "a socket": ("root/socket", 422),
    "a device": ("root/device", 422),
    "nothing": ("root/nothing.json", 422),
    "a link to nothing": ("root/dangling", 422),
    "a link to itself": ("root/loop", 422),
    "a file as a folder": ("root/file.json/file.json", 422),
    "a file that must not be read": ("root/unreadable.json", 422),
    "a file in a folder that must not be read": ("root/unreadable/file.json", 422),
    "a name that is not UTF-8": ("root/link-latin-1", 422),
    "a file over the limit": ("root/large.json", 413),
}
CODES = {403: "path_not_allowed", 413: "too_large", 422: "file_unreadable"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_the_root_is_refused(
    shared: Server, tree: Tree, slug: str, name: str
) -> None:
    relative, status = REFUSED[name]
    path = f"{tree.base}/{relative}"
    if name == "a device" and not os.path.exists(path):
        pytest.skip("making a device needs privileges")
    shared.upload(GOOD)
    lines = [
        in_place(key_of(slug, "good"), tree.root / "file.json"),
        in_place(key_of(slug, "bad"), path),
        copied(key_of(slug, "copy"), GOOD),
    ]
    before = rows_of(shared.place)
    problem_of(shared.register(worker(slug), lines), status, CODES[status])
    assert rows_of(shared.place) == before


@pytest.mark.parametrize("name", ["fifo", "link-fifo", "socket", "device", "sub", "large.json"])
def test_what_is_refused_is_not_even_opened(
    shared: Server, tree: Tree, slug: str, name: str
) -> None:
    path = tree.root / name
    if not path.exists():
        pytest.skip("making a device needs privileges")
    opens = watch_opens(path)
    answer = shared.register(worker(slug), [in_place(key_of(slug), path)])
    assert answer.status_code in (413, 422)
    if name == "large.json":
        assert was_opened(opens)  # Its size is taken from the opened file.
    else:
        assert not was_opened(opens)
    os.close(opens)


def watch_opens(path: Path) -> int:
    """A descriptor that has something to read once the file was opened by anybody."""
    in_open = 0x20
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(descriptor, os.fsencode(path), in_open) > 0
    return descriptor


def was_opened(watch: int) -> bool:
    try:
        return len(os.read(watch, 4096)) > 0
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/proc/self/environ", 403, "path_not_allowed"),
        ("/etc/passwd", 403, "path_not_allowed"),
        ("/dev/stdin", 403, "path_not_allowed"),
        ("/", 403, "path_not_allowed"),
        ("file.json", 422, "file_unreadable"),
        ("../root/file.json", 422, "file_unreadable"),
        ("~/file.json", 422, "file_unreadable"),
        ("", 422, "invalid"),
        ("/a\0b", 422, "invalid"),
        pytest.param("/" + "x" * 5000, 422, "invalid", id="5000 characters"),
        pytest.param("/d" * 256, 422, "invalid", id="256 components"),
    ],
)
def test_a_path_that_leads_nowhere_near_is_refused(
    shared: Server, slug: str, path: str, status: int, code: str
) -> None:
    before = rows_of(shared.place)
    problem_of(shared.register(worker(slug), [in_place(key_of(slug), path)]), status, code)
    assert rows_of(shared.place) == before


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/environ",
        "/proc/self/mem",
        "/proc/version",
        "/dev/zero",
        "/dev/null",
        "/dev/urandom",
        "/dev/tty",
        "/dev",
        "/",
    ],
)
def test_what_is_not_a_stable_file_is_refused_even_if_the_root_is_everything(
    wide: Server, slug: str, path: str
) -> None:
    before = rows_of(wide.database)
    answer = wide.register(worker(slug), [in_place(key_of(slug), path)])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) in [
        (422, "file_unreadable"),
        (403, "path_not_allowed"),
    ]
    assert rows_of(wide.database) == before


def test_without_a_root_nothing_can_be_registered_in_place(
    server: Server, tree: Tree, slug: str
) -> None:
    before = rows_of(server.place)
    lines = [in_place(key_of(slug), tree.root / "file.json")]
    problem = problem_of(server.register(worker(slug), lines), 403, "path_not_allowed")
    assert "--artifact-root" in problem["detail"]
    assert rows_of(server.place) == before
    assert server.register_copies(worker(slug), {key_of(slug): GOOD}).status_code == 200


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("root/file.json", "root/file.json"),
        ("root/link-inside.json", "root/sub/file.json"),
        ("root/link-to-link.json", "root/sub/file.json"),
        ("root/link-inside/file.json", "root/sub/file.json"),
        ("root/sub/../file.json", "root/file.json"),
        ("root/./sub//file.json", "root/sub/file.json"),
        ("root/../root/file.json", "root/file.json"),
        ("link-root/file.json", "root/file.json"),
        ("root/link-up/root/sub/file.json", "root/sub/file.json"),
        ("root/limit.json", "root/limit.json"),
    ],
)
def test_links_within_the_root_are_followed_and_the_path_is_kept_as_it_was_given(
    shared: Server, tree: Tree, slug: str, given: str, resolved: str
) -> None:
    key = key_of(slug)
    answer = shared.register(worker(slug), [in_place(key, tree.base / "x" / ".." / given)])
    assert answer.status_code in (200, 422)
    answer = shared.register(worker(slug), [in_place(key, f"{tree.base}/{given}")])
    assert answer.status_code == 200
    path = tree.base / resolved
    explained = shared.client.get(f"/v1/artifacts/{key}").json()
    assert [holder["path"] for holder in explained["holders"]] == [str(path)]
    kept = path if ".." in given or given.startswith("link-root") else tree.base / given
    with shared.place.sql() as connection:
        query = "SELECT path, source FROM holders WHERE slug = ?"
        assert connection.execute(query, [slug]).fetchall() == [(str(kept), "in_place")]
    assert shared.fetch(key).content == path.read_bytes()


def test_a_root_that_is_a_link_stands_for_what_it_leads_to(
    serve: Callable[..., Server], tree: Tree, slug: str
) -> None:
    server = serve(artifact_root=[tree.base / "link-root", tree.base / "outside"])
    for name in ("link-root/file.json", "root/sub/file.json", "outside/file.json"):
        line = in_place(key_of(slug, name.replace("/", "-")), tree.base / name)
        assert server.register(worker(slug), [line]).status_code == 200
    line = in_place(key_of(slug), tree.base / "root-sibling/file.json")
    problem_of(server.register(worker(slug), [line]), 403, "path_not_allowed")


def test_a_link_that_is_turned_elsewhere_changes_nothing(
    shared: Server, tree: Tree, slug: str, path: Path
) -> None:
    link = tree.root / f"{slug}.json"
    link.symlink_to(path)
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, link)])
    link.unlink()
    link.symlink_to(tree.base / "outside/file.json")
    assert shared.fetch(key).content == GOOD
    link.unlink()
    assert shared.fetch(key).content == GOOD


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 200),
        ({"checksum": checksum(GOOD)}, 200),
        ({"size": len(GOOD)}, 200),
        ({"checksum": checksum(GOOD), "size": len(GOOD)}, 200),
        ({"checksum": checksum(WRONG)}, 422),
        ({"size": len(GOOD) + 1}, 422),
        ({"size": 0}, 422),
        ({"checksum": checksum(GOOD), "size": len(GOOD) - 1}, 422),
        ({"checksum": checksum(WRONG), "size": len(GOOD)}, 422),
    ],
    ids=str,
)
def test_a_given_checksum_and_size_must_agree_with_the_file(
    shared: Server, path: Path, slug: str, given: dict[str, object], status: int
) -> None:
    before = rows_of(shared.place)
    answer = shared.register(worker(slug), [{**in_place(key_of(slug), path), **given}])
    if status == 200:
        [artifact] = answer.json()["artifacts"]
        assert (artifact["checksum"], artifact["size"]) == (checksum(GOOD), len(GOOD))
    else:
        problem_of(answer, 422, "checksum_mismatch")
        assert rows_of(shared.place) == before


# S12: what became of a registered file


def edited(path: Path) -> None:
    path.write_bytes(WRONG)


def edited_in_one_byte(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(b"T")


def edited_with_its_times_put_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as opened:
        opened.write(WRONG)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def grown(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"\n")


def cut(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(WRONG)
    other.rename(path)


def deleted(path: Path) -> None:
    path.unlink()


def swapped_for_a_link_inside(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def swapped_for_a_link_outside(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent.parent.parent / "outside/file.json")


def swapped_for_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swapped_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_unreadable(path: Path) -> None:
    path.chmod(0)


def in_a_folder_that_went(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def in_a_folder_swapped_for_a_link(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(path.parent.parent.parent / "outside")


def put_back(path: Path) -> None:
    if path.parent.is_symlink():
        path.parent.unlink()
    path.parent.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(GOOD)


DRIFTS: list[tuple[Callable[[Path], None], str]] = [
    (edited, "drifted"),
    (edited_in_one_byte, "drifted"),
    (edited_with_its_times_put_back, "drifted"),
    (grown, "drifted"),
    (cut, "drifted"),
    (replaced, "drifted"),
    (made_unreadable, "drifted"),
    (in_a_folder_swapped_for_a_link, "drifted"),
    (deleted, "missing"),
    (swapped_for_a_link_outside, "missing"),
    (swapped_for_a_fifo, "missing"),
    (swapped_for_a_folder, "missing"),
    (in_a_folder_that_went, "missing"),
]


def statuses(server: Server, key: ArtifactKey) -> list[str]:
    """What is known of the bytes of a key's holders, in the order in which they came."""
    holders = server.client.get(f"/v1/artifacts/{key}").json()["holders"]
    return [holder["status"] for holder in holders]


def looks(server: Server, slug: str) -> list[str]:
    """What the journal says of looks at the files of a model."""
    events = journal(server.place, "drifted", "missing", "restored", slug=slug)
    return [event["kind"] for event in events]


@pytest.mark.parametrize(
    ("drift", "status"), DRIFTS, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_file_that_changed_is_not_served_until_it_is_put_back(
    shared: Server,
    file: Path,
    slug: str,
    drift: Callable[[Path], None],
    status: str,
    warm: bool,
) -> None:
    key = key_of(slug)
    assert shared.register(worker(slug), [in_place(key, file)]).status_code == 200
    if warm:
        assert shared.fetch(key).content == GOOD
        assert shared.fetch(key).content == GOOD

    drift(file)
    unserveable = shared.fetch(key)
    problem_of(unserveable, 503, "unserveable")
    assert int(unserveable.headers["retry-after"]) > 0
    wait_for(lambda: statuses(shared, key) == [status])
    assert looks(shared, slug) == [status]
    problem_of(shared.fetch(key, range="bytes=0-3"), 503, "unserveable")
    url = f"/v1/metadata/{key}"
    assert shared.client.head(url).status_code == 503
    settle(shared)
    assert looks(shared, slug) == [status]

    put_back(file)
    assert shared.fetch(key).content == GOOD
    wait_for(lambda: statuses(shared, key) == ["ok"])
    assert looks(shared, slug) == [status, "restored"]
    assert shared.fetch(key).content == GOOD
    assert shared.client.get(f"/v1/owners/{worker(slug)}").json()["state"] == "active"
    settle(shared)
    assert looks(shared, slug) == [status, "restored"]


def test_the_identity_of_an_aged_file_is_kept_and_that_of_a_young_one_is_not(
    shared: Server, path: Path, aged_files: Iterator[Path], slug: str
) -> None:
    lines = [
        in_place(key_of(slug, "aged"), next(aged_files)),
        in_place(key_of(slug, "young"), path),
    ]
    shared.register(worker(slug), lines)
    with shared.place.sql() as connection:
        rows = connection.execute(
            "SELECT e.filename, r.file_identity IS NOT NULL FROM owner_refs r "
            "JOIN entries e ON e.id = r.entry_id WHERE e.slug = ?",
            [slug],
        ).fetchall()
    assert sorted(rows) == [("aged", 1), ("young", 0)]


def test_a_file_whose_folder_was_away_for_a_while_is_restored(
    shared: Server, file: Path, slug: str
) -> None:
    """Its identity is the same as ever, so that nothing needs to be hashed again."""
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, file)])
    assert shared.fetch(key).content == GOOD
    for _ in range(2):
        away = file.parent.rename(file.parent.with_name(f"{slug}-away"))
        problem_of(shared.fetch(key), 503, "unserveable")
        wait_for(lambda: statuses(shared, key) == ["missing"])
        away.rename(file.parent)
        assert shared.fetch(key).content == GOOD
        wait_for(lambda: statuses(shared, key) == ["ok"])
    assert looks(shared, slug) == ["missing", "restored"] * 2


def test_a_file_whose_folder_was_moved_out_of_the_root_is_not_read(
    serve: Callable[..., Server], tree: Tree, file: Path, slug: str
) -> None:
    shared = serve(artifact_root=tree.root)
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, file)])
    moved = file.parent.rename(tree.base / f"{slug}-moved")
    file.parent.symlink_to(moved)
    problem_of(shared.fetch(key), 503, "unserveable")
    wait_for(lambda: statuses(shared, key) == ["drifted"])
    problem_of(shared.fetch(key), 503, "unserveable")
    file.parent.unlink()
    moved.rename(file.parent)
    assert shared.fetch(key).content == GOOD
    wait_for(lambda: statuses(shared, key) == ["ok"])
    assert looks(shared, slug) == ["drifted", "restored"]


def test_a_file_that_was_only_touched_is_served(shared: Server, file: Path, slug: str) -> None:
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, file)])
    for touch in (
        lambda: os.utime(file),
        lambda: os.utime(file, (0, 0)),
        lambda: file.chmod(0o640),
        lambda: file.write_bytes(GOOD),
        lambda: os.utime(file, (2**32, 2**32)),
    ):
        touch()
        assert shared.fetch(key).content == GOOD
    settle(shared)
    assert looks(shared, slug) == []
    assert statuses(shared, key) == ["ok"]


def test_two_writes_in_quick_succession_are_told_apart(
    shared: Server, path: Path, slug: str
) -> None:
    key = key_of(slug)
    for _ in range(40):
        path.write_bytes(GOOD)
        assert shared.register(worker(slug), [in_place(key, path)]).status_code == 200
        with path.open("r+b") as opened:
            opened.write(WRONG)
        problem_of(shared.fetch(key), 503, "unserveable")
        with path.open("r+b") as opened:
            opened.write(GOOD)
        assert shared.fetch(key).content == GOOD
        with path.open("r+b") as opened:
            opened.write(WRONG)
        problem_of(shared.fetch(key), 503, "unserveable")


def test_if_none_match_is_answered_from_the_entry_alone(
    shared: Server, path: Path, slug: str
) -> None:
    """Whoever has these bytes already needs nobody to have them."""
    key = key_of(slug)
    shared.register(worker(slug), [in_place(key, path)])
    path.unlink()
    answer = shared.fetch(key, if_none_match=f'"{checksum(GOOD)}"')
    assert answer.status_code == 304


@pytest.mark.parametrize("remedy", ["the same bytes elsewhere", "a copy", "other bytes"])
def test_registering_again_heals(
    shared: Server, tree: Tree, path: Path, slug: str, remedy: str
) -> None:
    key, owner = key_of(slug), worker(slug)
    shared.register(owner, [in_place(key, path)])
    path.write_bytes(WRONG)
    problem_of(shared.fetch(key), 503, "unserveable")
    wait_for(lambda: statuses(shared, key) == ["drifted"])
    match remedy:
        case "the same bytes elsewhere":
            answer = shared.register(owner, [in_place(key, tree.root / "file.json")])
            expected = ("unchanged", GOOD)
        case "a copy":
            answer = shared.register_copies(owner, {key: GOOD})
            expected = ("unchanged", GOOD)
        case _:
            answer = shared.register(owner, [in_place(key, path)])
            expected = ("replaced", WRONG)
    outcome, content = expected
    assert answer.json()["artifacts"][0]["outcome"] == outcome
    assert shared.fetch(key).content == content
    assert statuses(shared, key) == ["ok"]
    settle(shared)
    assert looks(shared, slug) == ["drifted", "restored"]


# S5: the bytes of whichever holder has them


@pytest.mark.parametrize("second", ["copied", "in place"])
@pytest.mark.parametrize("broken", ["the earlier", "the later"])
@pytest.mark.parametrize("drift", [edited_with_its_times_put_back, deleted])
def test_the_bytes_of_another_holder_are_served(
    shared: Server,
    tree: Tree,
    file: Path,
    slug: str,
    second: str,
    broken: str,
    drift: Callable[[Path], None],
) -> None:
    key = key_of(slug)
    other = tree.root / f"{slug}-other.json"
    other.write_bytes(GOOD)

    def register_first() -> httpx2.Response:
        return shared.register(worker(slug, 1), [in_place(key, file)])

    def register_second() -> httpx2.Response:
        if second == "copied":
            return shared.register_copies(worker(slug, 2), {key: GOOD})
        return shared.register(worker(slug, 2), [in_place(key, other)])

    steps = [register_first, register_second]
    for step in reversed(steps) if broken == "the later" else steps:
        assert step().status_code == 200
    assert shared.fetch(key).content == GOOD
    drift(file)
    for _ in range(3):
        assert shared.fetch(key).content == GOOD
    receipt = shared.unregister(worker(slug, 2)).json()
    assert receipt["kept"][0]["holders"] == 1
    problem_of(shared.fetch(key), 503, "unserveable")


def test_only_the_holder_whose_file_changed_is_noted(
    shared: Server, tree: Tree, path: Path, slug: str
) -> None:
    key = key_of(slug)
    other = tree.root / f"{slug}-other.json"
    other.write_bytes(GOOD)
    shared.register(worker(slug, 1), [in_place(key, path)])
    shared.register(worker(slug, 2), [in_place(key, other)])
    path.write_bytes(WRONG)
    assert shared.fetch(key).content == GOOD
    wait_for(lambda: statuses(shared, key) == ["drifted", "ok"])
    other.unlink()
    problem_of(shared.fetch(key), 503, "unserveable")
    wait_for(lambda: statuses(shared, key) == ["drifted", "missing"])
    path.write_bytes(GOOD)
    assert shared.fetch(key).content == GOOD
    wait_for(lambda: statuses(shared, key) == ["ok", "missing"])
    assert looks(shared, slug) == ["drifted", "missing", "restored"]


@pytest.mark.parametrize("second", ["copied", "in place", "the same file"])
def test_the_first_owner_to_leave_takes_nothing_away(
    shared: Server, tree: Tree, path: Path, slug: str, second: str
) -> None:
    key = key_of(slug)
    other = tree.root / f"{slug}-other.json"
    other.write_bytes(GOOD)
    shared.register(worker(slug, 1), [in_place(key, path)])
    assert shared.fetch(key).content == GOOD
    if second == "copied":
        shared.register_copies(worker(slug, 2), {key: GOOD})
    else:
        shared.register(worker(slug, 2), [in_place(key, other if second == "in place" else path)])
    shared.unregister(worker(slug, 1))
    if second != "the same file":
        path.unlink()
    assert shared.fetch(key).content == GOOD
    assert looks(shared, slug) == []
    shared.unregister(worker(slug, 2))
    assert shared.fetch(key).status_code == 404


def test_content_in_memory_makes_no_entry_serveable_without_a_holder(
    shared: Server, file: Path, slug: str
) -> None:
    here, elsewhere = key_of(slug), key_of(slug, "elsewhere")
    shared.register(worker(slug, 1), [in_place(here, file)])
    shared.register_copies(worker(slug, 2), {elsewhere: GOOD})
    assert shared.fetch(here).content == shared.fetch(elsewhere).content == GOOD
    edited_with_its_times_put_back(file)
    for _ in range(3):
        problem_of(shared.fetch(here), 503, "unserveable")
        assert shared.fetch(elsewhere).content == GOOD
    file.unlink()
    for _ in range(3):
        problem_of(shared.fetch(here), 503, "unserveable")
        assert shared.fetch(elsewhere).content == GOOD


def test_a_file_that_changes_all_the_time_is_served_right_or_not_at_all(
    serve: Callable[..., Server], tree: Tree, path: Path, slug: str
) -> None:
    """And whoever has a copy of the same bytes does not suffer for it."""
    server = serve(artifact_root=tree.root, content_cache_bytes=0)
    flickering, copy = key_of(slug), key_of(slug, "copy")
    server.register(worker(slug, 1), [in_place(flickering, path)])
    server.register_copies(worker(slug, 2), {copy: GOOD})
    stop = threading.Event()

    def flicker() -> None:
        with path.open("r+b", buffering=0) as opened:
            while not stop.is_set():
                for content in (WRONG, GOOD):
                    os.pwrite(opened.fileno(), content, 0)

    def read(key: ArtifactKey) -> set[tuple[int, bytes]]:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            answers = [client.get(f"/v1/metadata/{key}") for _ in range(300)]
        return {(a.status_code, a.content if a.status_code == 200 else b"") for a in answers}

    with ThreadPoolExecutor(5) as threads:
        writer = threads.submit(flicker)
        found = [threads.submit(read, key) for key in (flickering, copy) * 2]
        answers = [each.result() for each in found]
        stop.set()
        writer.result()
    for number, answer in enumerate(answers):
        assert answer <= ({(200, GOOD)} if number % 2 else {(200, GOOD), (503, b"")})


def test_what_a_slow_look_finds_does_not_bring_a_holder_back(
    serve: Callable[..., Server], tree: Tree, path: Path, slug: str
) -> None:
    """The second owner is unregistered while its large file is hashed for a request."""
    server = serve(artifact_root=tree.root)
    large, other = tree.root / f"{slug}-1", tree.root / f"{slug}-2"
    for each in (large, other):
        each.touch()
        os.truncate(each, 60 << 20)
    key = key_of(slug)
    url = f"/v1/metadata/{key}"
    with ThreadPoolExecutor(1) as thread, httpx2.Client(base_url=server.url, timeout=60) as client:
        for _ in range(5):
            large.touch()
            os.truncate(large, 60 << 20)
            other.touch()
            server.register(worker(slug, 1), [in_place(key, large)])
            server.register(worker(slug, 2), [in_place(key, other)])
            large.unlink()
            slow = thread.submit(lambda: client.head(url).status_code)
            server.unregister(worker(slug, 2))
            problem_of(server.fetch(key), 503, "unserveable")
            assert slow.result() in (200, 503)
            problem_of(server.fetch(key), 503, "unserveable")
            server.unregister(worker(slug, 1))


# Restarts


def test_files_are_checked_again_after_a_restart(
    serve: Callable[..., Server], tree: Tree, file: Path, slug: str
) -> None:
    key, changed = key_of(slug), key_of(slug, "changed")
    other = tree.root / f"{slug}-other.json"
    other.write_bytes(GOOD)
    server = serve(artifact_root=tree.root)
    server.register(worker(slug), [in_place(key, file), in_place(changed, other)])
    server.stop()
    edited_with_its_times_put_back(other)
    server = serve(artifact_root=tree.root)
    assert server.fetch(key).content == GOOD
    problem_of(server.fetch(changed), 503, "unserveable")
    server.stop()
    server = serve(artifact_root=tree.base / "outside")
    problem_of(server.fetch(key), 503, "unserveable")
