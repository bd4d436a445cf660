"""What a step of a connection raises, as the HTTP library wants it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raising(timed_out: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """What a step raises becomes what the HTTP library raises. A host name that cannot be one is
    a ValueError, also in the handshake."""
    try:
        yield
    except TimeoutError as error:
        raise timed_out(error) from error
    except (OSError, ValueError, OverflowError) as error:
        raise failed(error) from error
