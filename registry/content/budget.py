"""Room for what is on its way in. What does not fit is refused at once and never queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry.errors import RegistryError


class Share:
    """What one request has of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.taken_bytes = 0

    def take(self, size: int) -> None:
        """Take more; raise the room's refusal if it is full."""
        self._room.take(size)
        self.taken_bytes += size


class Room:
    """A number of bytes, shared by the requests of an event loop.

    `refusal` makes the error that is raised when there is no room.
    """

    def __init__(self, max_bytes: int, refusal: Callable[[], RegistryError]) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._refusal = refusal

    def take(self, size: int) -> None:
        """Take bytes, or raise the refusal."""
        if self.used_bytes + size > self.max_bytes:
            raise self._refusal()
        self.used_bytes += size

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share that is given back when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used_bytes -= share.taken_bytes
