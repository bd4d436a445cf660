"""What the service counts: right, and for all of its processes together."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry import __version__
from registry.core.records import ArtifactKey, Owner
from registry.server.metrics import PREFIX, Metrics
from registry.store.reads.audit import CLASSES
from registry.store.reads.stats import Counted
from registry.store.tables import HEAD_REVISION
from tests.exchanges import Line, running
from tests.support import Server, checksum, in_place, opened_by, sql, wait_for, workers_of

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
READ = "/v1/metadata/{slug}/{suffix}/{filename}"
ENDPOINT_READ = "/v1/metadata/{namespace}/{component}/{endpoint}/{slug}/{suffix}/{filename}"
CONTENT = b'{"a": "small file"}'
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "other")


class Scraped:
    """What /metrics says."""

    def __init__(self, server: Server) -> None:
        # A connection of its own: with several workers anyone may answer.
        with httpx2.Client(base_url=server.url) as client:
            answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        self.families = list(text_string_to_metric_families(answer.text))
        self._samples: Samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        """The value of a sample; 0 if nothing was counted yet."""
        return self._samples.get((PREFIX + name, tuple(sorted(labels.items()))), 0.0)

    def requests(self, method: str, route: str, status: int) -> float:
        return self.get("requests_total", method=method, route=route, status=str(status))


class Growth:
    """How much counts have grown since then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = Scraped(server)

    def of(self, name: str, **labels: str) -> float:
        return Scraped(self._server).get(name, **labels) - self._before.get(name, **labels)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("metrics")
    with running(folder, artifact_root=folder, content_cache_bytes=64 << 10) as server:
        yield server


_instances = iter(range(1, 10_000))


def published(server: Server, content: bytes) -> ArtifactKey:
    """A new key with this content, copied."""
    number = next(_instances)
    key = ArtifactKey(f"model-{number}", "_base", "file.json")
    owner = Owner("metrics", "backend", "generate", number)
    assert server.register_copies(owner, {key: content}).status_code == 200
    return key


def test_requests_are_counted_by_route_method_and_status(shared: Server) -> None:
    before = Scraped(shared)
    key = published(shared, CONTENT)
    shared.client.get("/v1/owners?limit=1")
    shared.client.head("/v1/owners")
    shared.client.get("/v1/owners/a/b/c/1/_base")
    shared.client.get(f"/v1/artifacts/{key}")
    shared.client.get("/nowhere/at/all")
    shared.client.post("/live")
    shared.client.request("OPTIONS", "/v1/owners")
    after = Scraped(shared)
    owner = "/v1/owners/{namespace}/{component}/{endpoint}/{instance_id}/{suffix}"
    for method, route, status in (
        ("POST", "/v1/registrations", 200),
        ("PUT", "/v1/blobs/{checksum}", 201),
        ("GET", "/v1/owners", 200),
        ("HEAD", "/v1/owners", 200),
        ("GET", owner, 404),
        ("GET", "/v1/artifacts/{slug}/{suffix}/{filename}", 200),
        ("GET", "unmatched", 404),
        ("POST", "/live", 405),
        ("OPTIONS", "/v1/owners", 405),
    ):
        grown = after.requests(method, route, status) - before.requests(method, route, status)
        assert grown == 1, (method, route, status)
    seconds = "request_seconds_count"
    assert after.get(seconds, route="/v1/owners") - before.get(seconds, route="/v1/owners") == 3


def test_no_label_comes_from_outside(shared: Server) -> None:
    with Line(shared) as line:
        line.ask("/invented", method="REBIND")
        line.read_answer()
    shared.client.get("/v1/metadata/a/b/c/d/e")
    for family in Scraped(shared).families:
        for sample in family.samples:
            assert sample.labels.get("method", "other") in METHODS
            assert "invented" not in str(sample.labels)
            assert "model-" not in str(sample.labels)


def test_reads_are_counted_by_outcome_with_their_bytes(shared: Server, tmp_path: Path) -> None:
    small, large = published(shared, CONTENT), published(shared, bytes(2 << 20))
    file = shared.database.parent / "gone.json"
    file.write_bytes(b"gone")
    gone = ArtifactKey(f"model-{next(_instances)}", "_base", "gone.json")
    owner = Owner("metrics", "backend", "generate", next(_instances))
    assert shared.register(owner, [in_place(gone, file)]).status_code == 200
    file.unlink()

    growth = Growth(shared)
    etag = shared.fetch(small).headers["etag"]  # loaded
    shared.fetch(small)  # from memory
    shared.client.head(f"/v1/metadata/{small}")  # from memory
    shared.fetch(small, if_none_match=etag)
    shared.fetch(small, range="bytes=0-4")  # from memory
    shared.client.get(f"/v1/metadata/metrics/backend/generate/{small}")  # from memory
    shared.fetch(large)  # streamed: the cache is too small for it
    shared.client.get("/v1/metadata/none/_base/x")
    assert shared.fetch(gone).status_code == 503
    shared.fetch(small, range="bytes=1000-")
    shared.client.post(f"/v1/metadata/{small}")

    expected = {
        "loaded": 1,
        "memory": 4,
        "not_modified": 1,
        "streamed": 1,
        "not_registered": 1,
        "unserveable": 1,
        "refused": 2,
    }
    assert {name: growth.of("reads_total", outcome=name) for name in expected} == expected
    assert growth.of("served_bytes_total") == 3 * len(CONTENT) + 5 + (2 << 20)
    statuses = {(READ, 206): 1, (READ, 304): 1, (READ, 404): 1, (READ, 503): 1, (READ, 416): 1}
    statuses |= {(ENDPOINT_READ, 200): 1}
    for (route, status), count in statuses.items():
        found = growth.of("requests_total", method="GET", route=route, status=str(status))
        assert found == count, (route, status)
    assert growth.of("requests_total", method="POST", route=READ, status="405") == 1


def test_writes_are_counted_by_operation_and_outcome_with_their_batches(shared: Server) -> None:
    growth = Growth(shared)
    key = published(shared, b"first")
    second = Owner("metrics", "backend", "generate", next(_instances))
    assert shared.upload(b"other").status_code == 201
    conflict = shared.register_copies(second, {key: b"other"})
    assert conflict.status_code == 409
    shared.unregister(second)
    shared.client.delete(f"/v1/artifacts/{key.slug}/_base")
    for operation, outcome, count in (
        ("store_blobs", "ok", 3),
        ("register", "ok", 1),
        ("register", "conflict", 1),
        ("unregister", "ok", 1),
        ("remove", "ok", 1),
    ):
        found = growth.of("writes_total", operation=operation, outcome=outcome)
        assert found == count, (operation, outcome)
    batches = growth.of("write_batch_items_count")
    assert growth.of("commit_seconds_count") == batches >= 7
    assert growth.of("write_batch_items_sum") >= batches
    assert growth.of("commit_seconds_sum") > 0


def test_what_the_database_holds_is_shown(serve: Callable[..., Server]) -> None:
    server = serve(lease_grace_s=1000)
    keys = [ArtifactKey("model", "_base", f"{number}.json") for number in range(3)]
    contents = {key: b"content %d" % number for number, key in enumerate(keys)}
    server.register_copies(Owner("a", "b", "c", 1), contents)
    server.register_copies(Owner("a", "b", "c", 2), contents, lease_ttl_s=1)
    server.register_copies(Owner("a", "b", "c", 3), {})
    server.client.post("/v1/owners/a/b/c/3/_base/drain")
    server.unregister(Owner("a", "b", "c", 4))
    server.register_copies(Owner("a", "b", "c", 5), {})
    server.unregister(Owner("a", "b", "c", 5))

    def found() -> dict[str, float]:
        scraped = Scraped(server)
        names = ("entries", "owner_refs", "blobs", "blob_bytes")
        states = ("active", "suspect", "draining", "detached", "expired", "superseded")
        return {name: scraped.get(name) for name in names} | {
            state: scraped.get("owners", state=state) for state in states
        }

    sizes = {"entries": 3, "owner_refs": 6, "blobs": 3, "blob_bytes": 27}
    states = {"active": 1, "suspect": 1, "draining": 1, "detached": 1, "expired": 0}
    wait_for(lambda: found() == sizes | states | {"superseded": 0})
    scraped = Scraped(server)
    assert scraped.get("database_bytes") == server.database.stat().st_size
    assert scraped.get("wal_bytes") == Path(f"{server.database}-wal").stat().st_size
    assert scraped.get("free_bytes") > 0
    assert scraped.get("write_queue_items") == 0


def test_metrics_are_shown_while_the_database_cannot_be_read(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    os.rename(server.database, f"{server.database}.away")
    try:
        scraped = Scraped(server)
        assert scraped.requests("GET", "/live", 200) >= 1
        assert scraped.get("database_bytes") == 0
    finally:
        os.rename(f"{server.database}.away", server.database)


def test_every_metric_has_our_prefix_and_a_help_text(shared: Server) -> None:
    families = Scraped(shared).families
    assert all(family.name.startswith((PREFIX, "process_")) for family in families)
    assert all(family.documentation.endswith(".") for family in families)
    assert len({family.name for family in families}) == len(families) >= 17


def test_counting_the_database_takes_a_twentieth_of_the_time_at_most() -> None:
    now = 0.0
    counted = 0

    def count() -> dict[str, Any]:
        nonlocal now, counted
        now += 2
        counted += 1
        return {"entries": counted}

    sizes = Counted(count, lambda: now)
    assert sizes.get() == {"entries": 1}
    now += 39
    assert sizes.get() == {"entries": 1}
    now += 2
    assert sizes.get() == {"entries": 2}


def test_what_happens_while_counts_are_moved_is_not_lost() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.tally.read(READ, "GET", 200, "memory", 10)
    metrics.flush()
    metrics.tally.read(READ, "GET", 200, "memory", 10)
    metrics.flush()
    text = metrics.text({}).decode()
    assert f'{PREFIX}reads_total{{outcome="memory"}} 4.0' in text
    assert f"{PREFIX}served_bytes_total 40.0" in text


def test_transactions_are_counted_once_whoever_counts_them() -> None:
    """The writer's thread counts many together, and the event loop what is left once a second."""
    metrics = Metrics()

    def write() -> None:
        for _ in range(1000):
            metrics.wrote({("register", "ok"): 2, ("renew", "ok"): 1}, 3, 0.001)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.flush()
    metrics.flush()
    text = metrics.text({}).decode()
    assert f'{PREFIX}writes_total{{operation="register",outcome="ok"}} 6000.0' in text
    assert f'{PREFIX}writes_total{{operation="renew",outcome="ok"}} 3000.0' in text
    assert f"{PREFIX}commit_seconds_count 3000.0" in text


# Several processes


def test_the_counts_of_all_workers_are_added_up(serve: Callable[..., Server]) -> None:
    server = serve(workers=3)
    key = published(server, CONTENT)
    before = Scraped(server).get("reads_total", outcome="memory")
    for _ in range(60):
        with httpx2.Client(base_url=server.url) as client:
            assert client.get(f"/v1/metadata/{key}").content == CONTENT
            assert client.get("/v1/owners").status_code == 200

    def counted() -> tuple[float, float, float, float]:
        scraped = Scraped(server)
        reads = [scraped.get("reads_total", outcome=name) for name in ("memory", "loaded")]
        return (
            sum(reads) - before,
            scraped.requests("GET", READ, 200),
            scraped.requests("GET", "/v1/owners", 200),
            scraped.get("served_bytes_total"),
        )

    wait_for(lambda: counted() == (60, 60, 60, 60 * len(CONTENT)))
    scraped = Scraped(server)
    assert scraped.get("writes_total", operation="register", outcome="ok") == 1
    assert scraped.get("entries") == 1


def test_counts_outlive_a_worker_and_what_is_about_now_does_not(
    serve: Callable[..., Server],
) -> None:
    server = serve(workers=2)
    key = published(server, CONTENT)

    def cached_bytes() -> float:
        return Scraped(server).get("content_cache_bytes")

    for _ in range(30):
        with httpx2.Client(base_url=server.url) as client:
            assert client.get("/v1/owners").status_code == 200
            assert client.get(f"/v1/metadata/{key}").status_code == 200
    wait_for(lambda: Scraped(server).requests("GET", "/v1/owners", 200) == 30)
    wait_for(lambda: cached_bytes() > 0)
    for pid in workers_of(server):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.log.count("was killed by SIGKILL") == 2)
    wait_for(lambda: answers(server))
    assert Scraped(server).get("worker_restarts_total") == 2
    assert Scraped(server).requests("GET", "/v1/owners", 200) == 30
    assert Scraped(server).requests("GET", READ, 200) == 30
    assert cached_bytes() == 0


def answers(server: Server) -> bool:
    try:
        return httpx2.get(f"{server.url}/live").status_code == 200
    except httpx2.TransportError:
        return False


def files_of(pid: int) -> set[Path]:
    """The files that a process has open, but for what the kernel tells of it."""
    return {
        path
        for path in map(Path, opened_by(pid))
        if path.is_absolute() and path.is_file() and not path.is_relative_to("/proc")
    }


def test_workers_share_no_file(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that none can be full, removed or forbidden."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    server = serve(workers=2)
    assert Scraped(server).get("worker_restarts_total") == 0
    beside = {Path(f"{server.database}{suffix}") for suffix in ("", "-wal", "-shm")}
    for pid in workers_of(server):
        wait_for(lambda pid=pid: files_of(pid) >= beside)  # type: ignore[misc]
        assert files_of(pid) == beside
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()


def test_the_directory_of_another_program_is_left_alone(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(others))
    server = serve()
    assert server.upload(CONTENT).status_code == 201
    assert Scraped(server).requests("PUT", "/v1/blobs/{checksum}", 201) == 1
    assert server.client.head(f"/v1/blobs/{checksum(CONTENT)}").status_code == 200
    assert list(others.iterdir()) == []


def test_what_takes_more_than_a_look_at_the_tables_is_absent(serve: Callable[..., Server]) -> None:
    """A count of 0 would say that somebody had looked."""
    server = serve()
    scraped = Scraped(server)
    with sql(server.database) as connection:
        ((view,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'leaks'")
    found = {
        label
        for family in scraped.families
        for sample in family.samples
        if sample.name == f"{PREFIX}findings"
        for label in [sample.labels["class"]]
    }
    assert found == {name for name in CLASSES if f"'{name}'" in view}
    assert not found & {"path_outside_roots", "integrity", "journal_says_held"}


def test_the_program_says_which_it_is(serve: Callable[..., Server]) -> None:
    (sample,) = [
        sample
        for family in Scraped(serve()).families
        for sample in family.samples
        if sample.name == f"{PREFIX}build_info"
    ]
    assert sample.labels == {"version": __version__, "schema_revision": HEAD_REVISION}
    assert sample.value == 1


def test_findings_say_how_bad_they_are(shared: Server) -> None:
    found = {
        sample.labels["class"]: sample.labels["severity"]
        for family in Scraped(shared).families
        for sample in family.samples
        if sample.name == f"{PREFIX}findings"
    }
    assert found.items() <= {name: str(severity) for name, severity in CLASSES.items()}.items()


# What the service takes of its machine


def process_values(server: Server) -> dict[str, float]:
    return {
        family.name: family.samples[0].value
        for family in Scraped(server).families
        if family.name.startswith("process_")
    }


def test_a_process_tells_what_it_takes_of_its_machine(shared: Server) -> None:
    found = process_values(shared)
    proc = Path(f"/proc/{shared.process.pid}")
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)
    assert found["process_virtual_memory_bytes"] > resident
    assert found["process_cpu_seconds"] > 0.1
    assert abs(found["process_open_fds"] - len(list((proc / "fd").iterdir()))) < 10
    assert found["process_max_fds"] >= 1024
    assert time.time() - 600 < found["process_start_time_seconds"] <= time.time() + 1


def test_workers_tell_together_what_they_take_and_when_their_parent_began(
    serve: Callable[..., Server],
) -> None:
    server = serve(workers=2)
    resident = {
        pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in workers_of(server)
    }
    together = 1.5 * min(resident.values())
    wait_for(lambda: process_values(server)["process_resident_memory_bytes"] > together)
    before = process_values(server)
    began = started_at(server.process.pid)
    assert before["process_start_time_seconds"] == pytest.approx(began, abs=0.1)
    for pid in resident:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.log.count("was killed by SIGKILL") == 2)
    wait_for(lambda: answers(server))
    after = process_values(server)
    assert after["process_cpu_seconds"] > before["process_cpu_seconds"]
    assert after["process_start_time_seconds"] == before["process_start_time_seconds"]


def started_at(pid: int) -> float:
    """When a process began, in seconds since 1970."""
    (boot,) = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.M)
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return int(boot) + ticks / os.sysconf("SC_CLK_TCK")
