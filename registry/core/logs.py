"""How the service writes its log: a line for each record, to read or as JSON, on standard error.

A record says what happened, and carries fields for programs:

    log.info("registered", extra=fields(owner="ns/comp/ep/7/_base", files=3))

What comes from outside is spelled out where it could break a line. No token, no header and no
content of a file is ever given to the log.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import textwrap
import time
from typing import TextIO

from registry.core.log_pump import LogPump
from registry.core.text import printable

_QUIET = ("alembic", "httpx2", "httpcore2", "uvicorn")
"""Libraries that tell of their normal course at `info`: heard from `debug` on only."""


def set_up(level: str, form: str) -> None:
    """Send this process's log to standard error, as `text` or as `json`, from a level on."""
    handler = handler_of(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    # No line names a source file, a thread or a process: they are not looked up for each.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(level.upper())
    for name in _QUIET:
        loud = root.level <= logging.DEBUG or root.level > logging.WARNING
        logging.getLogger(name).setLevel(root.level if loud else logging.WARNING)


def flush() -> None:
    """Wait until the log is written, for a bounded time: what is written elsewhere comes next."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def handler_of(stream: TextIO | None) -> logging.Handler:
    """Writes to a stream's descriptor, without anybody waiting for its reader. Without a stream,
    as when it was closed before the program began, nothing is written."""
    try:
        return LogPump(stream.fileno()) if stream is not None else logging.NullHandler()
    except (OSError, ValueError):
        return logging.StreamHandler(stream)  # One of a program that has no descriptor for it.


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Fields of a record, as `extra` takes them. Those that are None are left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def tell(logger: logging.Logger, level: int, message: str, values: dict[str, object]) -> None:
    """Write a record of an enabled level, with its fields. Where the log goes only where `set_up`
    has sent it, no `LogRecord` is made: with one, the line of a request takes three times as long.
    """
    handlers = logging.getLogger().handlers
    pump = handlers[0] if len(handlers) == 1 else None
    form = pump.formatter if isinstance(pump, LogPump) else None
    if (
        not isinstance(pump, LogPump)
        or not isinstance(form, TextFormatter | JsonFormatter)
        or level < pump.level
        or pump.filters
        or not _leads_to_root(logger)
    ):
        logger.log(level, message, extra=fields(**values))
        return
    found = {name: value for name, value in values.items() if value is not None}
    pump.take(form.line(time.time(), logging.getLevelName(level), logger.name, message, found))


def _leads_to_root(logger: logging.Logger) -> bool:
    """Whether nobody hears or filters a logger's records before they come to the root."""
    if logger.filters:
        return False
    each = logger
    while each.parent is not None:
        if each.handlers or not each.propagate:
            return False
        each = each.parent
    return True


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO registry.http GET /v1/owners status=200`."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(*_parts(record))
        trace = _trace(self, record)
        # Indented, so that no line of it looks like a record of its own.
        return f"{line}\n{textwrap.indent(trace, '  ')}" if trace else line

    def line(
        self, at_s: float, level: str, logger: str, message: str, values: dict[str, object]
    ) -> str:
        """The line of a record without a trace."""
        parts = [_at(at_s), level, logger, message]
        parts += [f"{name}={value}" for name, value in values.items()]
        return printable(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """`{"at": "2026-01-31T12:00:00.000Z", "level": "info", ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        at_s, level, logger, message, values = _parts(record)
        trace = _trace(self, record)
        return self.line(
            at_s, level, logger, message, {**values, "trace": trace} if trace else values
        )

    def line(
        self, at_s: float, level: str, logger: str, message: str, values: dict[str, object]
    ) -> str:
        """The line of a record."""
        line = {
            "at": _at(at_s),
            "level": level.lower(),
            "logger": logger,
            "message": message,
            **values,
        }
        return json.dumps(line, default=str)


def _parts(record: logging.LogRecord) -> tuple[float, str, str, str, dict[str, object]]:
    found: dict[str, object] = getattr(record, "fields", {})
    return record.created, record.levelname, record.name, record.getMessage(), found


def _at(at_s: float) -> str:
    return f"{_second(int(at_s))}.{int(at_s % 1 * 1000):03}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = formatter.formatException(record.exc_info) if record.exc_info else ""
    return "\n".join(map(printable, text.split("\n")))
