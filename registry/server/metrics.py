"""What the service counts, for Prometheus.

With several worker processes each tells what it has counted (registry/server/siblings.py), and
whichever is asked adds that up. What happens for every request is counted in plain dictionaries of
the event loop, which costs a fraction of a microsecond, and is moved into the metrics once a second
and before they are shown.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    values,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from registry import __version__
from registry.server.process_metrics import OwnProcess, StartOfService
from registry.server.siblings import Counts, Others, Sample, added
from registry.store.reads.audit import CLASSES
from registry.store.tables import HEAD_REVISION

# Whatever the environment says of a directory in which processes share values: it is not ours.
values.ValueClass = values.MutexValue

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
PREFIX = "metadata_registry_"
FLUSH_EVERY_S = 1.0
WRITTEN_MAX = 64
"""As many transactions of the writer are counted together: while it counts, nobody is answered."""
UNMATCHED = "unmatched"
"""The route of a request that no route takes."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Size:
    """A gauge of what the database holds, with its label if it has one. `also` is a second label,
    and its value for each of the first."""

    name: str
    help: str
    label: str | None = None
    also: tuple[str, Mapping[str, str]] | None = None

    def family(self, value: float | Mapping[str, float]) -> GaugeMetricFamily:
        """The gauge with a value, or with one for each value of its label."""
        if not isinstance(value, Mapping):
            return GaugeMetricFamily(PREFIX + self.name, self.help, value)
        second, of_first = self.also or (None, {})
        names = [name for name in (self.label, second) if name is not None]
        family = GaugeMetricFamily(PREFIX + self.name, self.help, labels=names)
        for label, number in value.items():
            family.add_metric([label, of_first[label]] if second else [label], number)
        return family


_SEVERITIES = ("severity", {name: str(severity) for name, severity in CLASSES.items()})

SIZES = (
    Size("entries", "Entries."),
    Size("owners", "Owners by state; suspect ones are active with a lapsed lease.", "state"),
    Size("owner_refs", "References of owners to entries."),
    Size("blobs", "Copied contents."),
    Size("blob_bytes", "Bytes of the copied contents."),
    Size("findings", "What the audit finds, by class and severity.", "class", _SEVERITIES),
    Size("brake_engaged", "1 while expiry is paused because too many owners lapsed together."),
    Size("sweep_age_seconds", "Seconds since the last sweep."),
    Size("database_bytes", "Size of the database file."),
    Size("wal_bytes", "Size of the database's write-ahead log."),
    Size("free_bytes", "Free disk space for the database."),
    Size("discovery_up", "1 if the last comparison with discovery could be made, 0 if not."),
    Size("discovery_age_seconds", "Seconds since the registry was last compared with discovery."),
    Size("discovery_cards", "Live cards in discovery at the last comparison."),
    Size(
        "tls_certificate_end_timestamp_seconds",
        "When the certificate of HTTPS ends, in seconds since 1970; the first of its chain.",
    ),
)
"""What is counted in the database when the metrics are asked for, a few seconds old at most
unless counting takes long."""

SizeValues = Mapping[str, float | Mapping[str, float]]


class Counters:
    """Plain counts of one event loop, until they are moved into the metrics."""

    __slots__ = ("reads", "requests", "served_bytes")

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self.reads: defaultdict[str, int] = defaultdict(int)
        self.served_bytes = 0

    def read(self, route: str, method: str, status: int, outcome: str, size: int) -> None:
        """Count one request of a metadata file, and the bytes of it that were sent."""
        self.requests[route, method, status] += 1
        self.reads[outcome] += 1
        self.served_bytes += size


class Metrics:
    """The metrics of this process. Its methods are the event loop's, but for `wrote`."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._own = CollectorRegistry()
        self._own.register(OwnProcess())
        self.tally = Counters()
        self._written: deque[tuple[Mapping[tuple[str, str], int], int, float]] = deque()
        self._followed: list[tuple[Gauge, Callable[[], float]]] = []
        self._requests = self._counter(
            "requests", "Requests by route, method and status.", "route", "method", "status"
        )
        self._request_seconds = self._histogram(
            "request_seconds",
            "Time until a request was answered, by route. Reads of metadata files are not timed.",
            _SECONDS_BUCKETS,
            "route",
        )
        self._timed: dict[str, Histogram] = {}
        """The histogram of each route; to find one by its label takes longer than to count."""
        self._reads = self._counter(
            "reads",
            "Reads of metadata files by outcome: memory (from memory), loaded (into memory first), "
            "streamed, not_modified, not_registered, unserveable, interrupted (the bytes changed "
            "while they were sent), failed, refused (other errors).",
            "outcome",
        )
        for outcome in _WATCHED_READS:
            self._reads.labels(outcome)
        self._served_bytes = self._counter("served_bytes", "Bytes of metadata files sent.")
        self._writes = self._counter(
            "writes", "Writes by operation and outcome: ok, or an error's code.", *_WRITE_LABELS
        )
        self._writes.labels("register", "conflict")
        self._batch_items = self._histogram(
            "write_batch_items", "Writes that were committed together.", _BATCH_BUCKETS
        )
        self._commit_seconds = self._histogram(
            "commit_seconds",
            "Time of a transaction of writes, from its begin until it is on the disk.",
            _SECONDS_BUCKETS,
        )
        self.queue = self._gauge("write_queue_items", "Writes that wait.")
        self.cache = self._gauge(
            "content_cache_bytes", "Memory in use for content that is served, of all processes."
        )

    def follow(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Take a gauge's value from a function, whenever the counts are moved."""
        self._followed.append((gauge, read))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that is no read of a metadata file."""
        self.tally.requests[route, method_label(method), status] += 1
        timed = self._timed.get(route)
        if timed is None:
            timed = self._timed[route] = self._request_seconds.labels(route)
        timed.observe(seconds)

    def wrote(self, outcomes: Mapping[tuple[str, str], int], items: int, seconds: float) -> None:
        """Count a transaction of writes: how many had which (operation, outcome), how many in
        all, and how long it took. For any thread."""
        self._written.append((outcomes, items, seconds))
        if len(self._written) >= WRITTEN_MAX:
            self._count_written()

    def _count_written(self) -> None:
        """For any thread, also for several at once."""
        with suppress(IndexError):
            while True:
                outcomes, items, seconds = self._written.popleft()
                for labels, count in outcomes.items():
                    self._writes.labels(*labels).inc(count)
                self._batch_items.observe(items)
                self._commit_seconds.observe(seconds)

    def flush(self) -> None:
        """Move the counts of the event loop and of the writer into the metrics."""
        tally = self.tally
        self._count_written()
        for (route, method, status), count in tally.requests.items():
            self._requests.labels(route, method, str(status)).inc(count)
        for outcome, count in tally.reads.items():
            self._reads.labels(outcome).inc(count)
        self._served_bytes.inc(tally.served_bytes)
        tally.requests.clear()
        tally.reads.clear()
        tally.served_bytes = 0
        for gauge, read in self._followed:
            gauge.set(read())

    def counts(self) -> Counts:
        """What this process has counted, for others to add up. For any thread."""
        counts = Counts([], [])
        for family in self._own.collect():
            found = counts.gauges if family.type == "gauge" else counts.totals
            found += [(each.name, each.labels, each.value) for each in family.samples]
        return counts

    def text(self, sizes: SizeValues, others: Others | None = None) -> bytes:
        """All metrics, those of other processes added. For any thread."""
        shown = CollectorRegistry()
        if others is None:
            shown.register(self._own)
        else:
            shown.register(_Sum(self._own.collect(), others))
        shown.register(StartOfService(is_worker=others is not None))
        shown.register(_Sizes(sizes))
        shown.register(_Build())
        return generate_latest(shown)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help, labels, registry=self._own)

    def _histogram(self, name: str, help: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, help, labels, buckets=list(buckets), registry=self._own)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(PREFIX + name, help, registry=self._own)


def method_label(method: str) -> str:
    """A method as a label: there are few."""
    return method if method in _METHODS else "other"


_WRITE_LABELS = ("operation", "outcome")
_WATCHED_READS = ("unserveable", "interrupted")
"""What somebody is woken by is shown as 0 before it first happens, so that the first is a rise."""


class _Sum(Collector):
    """The metrics of this process with the values of all."""

    def __init__(self, own: Iterable[Metric], others: Others) -> None:
        self._own = own
        self._others = others

    def collect(self) -> Iterator[Metric]:
        families = list(self._own)
        samples: list[Sample] = []
        for family in families:
            samples += [(each.name, each.labels, each.value) for each in family.samples]
        for counts in self._others.counts:
            samples = added(samples, [*counts.totals, *counts.gauges])
        by_name: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_name[sample[0]].append(sample)
        for family in families:
            whole = Metric(family.name, family.documentation, family.type)
            for suffix in _SUFFIXES[family.type]:
                for name, labels, value in by_name[family.name + suffix]:
                    whole.add_sample(name, labels, value)
            yield whole
        restarts = CounterMetricFamily(
            PREFIX + "worker_restarts",
            "Worker processes that ended by themselves and were replaced.",
        )
        restarts.add_metric([], self._others.restarts)
        yield restarts


_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


class _Sizes(Collector):
    def __init__(self, values: SizeValues) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for size in SIZES:
            value = self._values.get(size.name)
            if value is not None:
                yield size.family(value)


class _Build(Collector):
    """Which program this is, as labels of a gauge that is always 1."""

    def collect(self) -> Iterator[Metric]:
        labels = {"version": __version__, "schema_revision": HEAD_REVISION}
        family = GaugeMetricFamily(
            f"{PREFIX}build_info",
            "The program: its version, and the schema revision that it knows.",
            labels=list(labels),
        )
        family.add_metric(list(labels.values()), 1)
        yield family
