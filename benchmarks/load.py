"""The load: `wrk` for GETs, and callers of our own where every request is another.

Our callers are bounded in number and time, and check every answer. They are raw sockets under one
epoll: a request is one `send` of bytes that were put together before, an answer is found complete
by its Content-Length or its last chunk. That costs about 15 us a request, a tenth of what it costs
the service.
"""

from __future__ import annotations

import itertools
import re
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from benchmarks.machine import LOAD_CORE

ANSWER_S = 30.0

_requests = re.compile(r"(\d+) requests in ")
_rate = re.compile(r"Requests/sec:\s+([\d.]+)")
_p99 = re.compile(r"99%\s+([\d.]+)(us|ms|s)")
_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True, slots=True)
class Gets:
    """What a run of `wrk` found."""

    requests: int
    per_s: float
    p99_ms: float


def wrk(binary: str, url: str, *, connections: int = 16, seconds: float = 2) -> Gets:
    """GETs of one URL as fast as they are answered.

    Raises:
        RuntimeError: an answer was no 2xx, or a connection failed.
    """
    return wrk_result(wrk_begun(binary, url, connections=connections, seconds=seconds))


def wrk_begun(
    binary: str, url: str, *, connections: int, seconds: float, script: str | None = None
) -> subprocess.Popen[str]:
    """`wrk` in the background; `wrk_result` waits for it."""
    command = [binary, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    command += ["-s", script] if script else []
    return subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), *command, url], stdout=subprocess.PIPE, text=True
    )


def wrk_result(process: subprocess.Popen[str]) -> Gets:
    """What a run of `wrk` found, once it is over.

    Raises:
        RuntimeError: an answer was no 2xx, or a connection failed.
    """
    try:
        report, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    requests, rate, p99 = (each.search(report) for each in (_requests, _rate, _p99))
    wrong = "Non-2xx" in report or "Socket errors" in report
    if requests is None or rate is None or p99 is None or wrong:
        raise RuntimeError(f"wrk failed:\n{report}")
    return Gets(int(requests[1]), float(rate[1]), float(p99[1]) * _UNIT_MS[p99[2]])


@dataclass(slots=True)
class Load:
    """What callers found: when each answer was complete, and how long it took."""

    seconds: float
    ended_at: list[float]
    latencies_s: list[float]

    @property
    def requests(self) -> int:
        return len(self.latencies_s)

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds

    def latency_s(self, part: float) -> float:
        """The latency that `part` of the requests did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


class Caller:
    """A keep-alive connection with at most one request on its way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sent_at = 0.0

    def send(self, request: bytes) -> None:
        self._sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> tuple[bytes, float] | None:
        """Take in what is there: the answer and its latency in seconds, once it is complete."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise RuntimeError(f"the connection was closed after {self._received!r}")
        self._received += part
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or not _is_whole(head, body):
            return None
        answer, self._received = self._received, b""
        return answer, time.perf_counter() - self._sent_at

    def call(self, request: bytes) -> tuple[bytes, float]:
        """Send a request and wait for its answer; the answer and its latency."""
        self.send(request)
        while (found := self.receive()) is None:
            pass
        return found

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_whole(head: bytes, body: bytes) -> bool:
    if b"transfer-encoding: chunked" in head.lower():  # As etcd's gateway answers a keep-alive.
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= _length(head)


def _length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    if at < 0:
        return 0
    end = head.find(b"\r\n", at)
    return int(head[at + 15 : end if end >= 0 else None])


Check = Callable[[bytes], bool]


def call_in_turn(
    addresses: Sequence[tuple[str, int]],
    requests: Sequence[Iterator[bytes]],
    check: Check,
    *,
    seconds: float,
) -> Load:
    """Callers at once, one for each stream of requests; each sends its next when it is answered.
    Several servers get as many callers each.

    Raises:
        RuntimeError: an answer did not pass the check.
    """
    load = Load(0.0, [], [])
    with ExitStack() as stack, select.epoll() as poll:
        callers = [
            stack.enter_context(Caller(address))
            for _, address in zip(requests, itertools.cycle(addresses), strict=False)
        ]
        waiting = {each.socket.fileno(): i for i, each in enumerate(callers)}
        for number in waiting:
            poll.register(number, select.EPOLLIN)
        began = time.perf_counter()
        for caller, stream in zip(callers, requests, strict=True):
            caller.send(next(stream))
        while waiting:
            for number, _ in _ready(poll):
                index = waiting[number]
                found = callers[index].receive()
                if found is None:
                    continue
                _take(load, found, check)
                if load.ended_at[-1] - began < seconds:
                    callers[index].send(next(requests[index]))
                else:
                    poll.unregister(number)
                    del waiting[number]
        load.seconds = time.perf_counter() - began
    return load


def call_at_rate(
    address: tuple[str, int],
    requests: Iterator[bytes],
    check: Check,
    *,
    per_s: float,
    seconds: float,
    callers: int = 16,
) -> Load:
    """Requests at a given rate, as long as one of the callers is free; latencies are from when
    each was due."""
    load = Load(seconds, [], [])
    with ExitStack() as stack, select.epoll() as poll:
        # One after the other: a connection that nobody uses for long is closed.
        free = deque(stack.enter_context(Caller(address)) for _ in range(callers))
        busy: dict[int, tuple[Caller, float]] = {}
        for each in free:
            poll.register(each.socket.fileno(), select.EPOLLIN)
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < seconds or busy:
            due = sent / per_s
            if now < seconds and due <= now and free:
                caller = free.popleft()
                caller.send(next(requests))
                busy[caller.socket.fileno()] = (caller, began + due)
                sent += 1
                continue
            pause = max(0.0, due - now) if now < seconds and free else 1.0
            for number, _ in poll.poll(min(pause, 1.0)):
                caller, due_at = busy[number]
                found = caller.receive()
                if found is not None:
                    _take(load, (found[0], time.perf_counter() - due_at), check)
                    free.append(busy.pop(number)[0])
    return load


def _ready(poll: select.epoll) -> list[tuple[int, int]]:
    ready = poll.poll(ANSWER_S)
    if not ready:
        raise RuntimeError(f"no answer within {ANSWER_S:g} s")
    return ready


def _take(load: Load, found: tuple[bytes, float], check: Check) -> None:
    answer, latency_s = found
    if not check(answer):
        raise RuntimeError(f"a wrong answer: {answer[:600]!r}")
    load.ended_at.append(time.perf_counter())
    load.latencies_s.append(latency_s)
