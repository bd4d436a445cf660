"""What the service takes of its machine, under the names that every dashboard knows: `process_*`.

With several worker processes each value is the sum over them, so that a ratio of two stays what it
is; what those took that are gone still counts in the CPU time. When the service started is told by
the process that started them. Without `/proc` there are none of these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_START = "process_start_time_seconds"


class OwnProcess(Collector):
    """CPU time, memory and open files of this process."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        yield from (each for each in self._process.collect() if each.name != _START)


class StartOfService(Collector):
    """When the service started, in seconds since 1970. A worker asks for its parent's time."""

    def __init__(self, *, is_worker: bool) -> None:
        pid = os.getppid() if is_worker else os.getpid()
        self._process = ProcessCollector(pid=lambda: pid, registry=None)

    def collect(self) -> Iterator[Metric]:
        yield from (each for each in self._process.collect() if each.name == _START)
