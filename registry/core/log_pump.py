"""Log lines on their way to a descriptor, without anybody waiting for its reader.

A pipe whose reader has stopped to read takes nothing more, and whoever writes to it waits, the
event loop included. So a thread of its own writes, and what it cannot get rid of is counted and
given up. A full disk and a reader that has gone are met in the same way.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import select
import threading

LINES_MAX = 10_000
"""As many lines wait; those that come then are lost."""
FLUSH_S = 2.0
"""How long the end of the program waits for the last lines to be taken."""


class LogPump(logging.Handler):
    """Writes records to a descriptor, in order, and says how many were lost when it can again."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._next: bytes | None = None
        self._lost = 0
        threading.Thread(target=self._write_all, name="registry-log", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. It never waits and never raises."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.take(line)

    def take(self, line: str) -> None:
        """Take a line. It never waits and never raises."""
        if self._lines.qsize() < LINES_MAX:
            self._lines.put(line.encode(errors="backslashreplace") + b"\n")
        else:
            self._lost += 1

    def flush(self) -> None:
        """Wait until what was taken is written, for at most two seconds."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(FLUSH_S)

    def close(self) -> None:
        atexit.unregister(self.flush)
        super().close()

    def _write_all(self) -> None:
        while True:
            parts, waiting = self._gather()
            try:
                self._write(b"".join(parts))
                self._tell_lost()
            except OSError:
                self._lost += len(parts)
            for each in waiting:
                each.set()

    def _gather(self) -> tuple[list[bytes], list[threading.Event]]:
        """The next line and those behind it, as many as a pipe takes in one piece, so that other
        processes that write to it get none in between; and who waits for them."""
        parts: list[bytes] = []
        waiting: list[threading.Event] = []
        size = 0
        while self._next is not None or not (parts or waiting) or not self._lines.empty():
            item = self._next or self._lines.get()
            self._next = None
            if isinstance(item, threading.Event):
                waiting.append(item)
                continue
            size += len(item)
            if parts and size > select.PIPE_BUF:
                self._next = item
                break
            parts.append(item)
        return parts, waiting

    def _write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._descriptor, content) :]

    def _tell_lost(self) -> None:
        lost = self._lost
        if not lost:
            return
        record = logging.makeLogRecord(
            {
                "name": "registry",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": f"{lost} lines of the log were lost before this one: nobody took them",
            }
        )
        self._write((self.format(record) + "\n").encode(errors="backslashreplace"))
        self._lost -= lost
