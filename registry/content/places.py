"""Looks at holders' files: how each is made without anybody waiting who does not ask for it.

A file of a local file system is looked at in the event loop, if it is but an `lstat`. Everything
else is done in the threads of the place where the file is: the artifact root, and the mount.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from registry.content.file_pools import FilePools, Patience
from registry.content.mounts import MountTable, read_mounts
from registry.content.roots import ArtifactRoots, Walk, resolved_root
from registry.errors import Busy

T = TypeVar("T")
Place = tuple[str | None, str]
"""An artifact root, or None outside of all; and a mount point."""

SLICE = 32
"""So many paths are seen to in the event loop before others have their turn."""

log = logging.getLogger("registry")


class Places:
    """The files of the artifact roots, for one event loop.

    `limit_s` is how long a call on a file may take.

    Raises:
        SettingsError: a root is not a directory.
    """

    def __init__(self, roots: Sequence[str] | None, limit_s: float) -> None:
        self._table = MountTable()
        self.roots = ArtifactRoots(roots, bounded_root(limit_s))
        self._pools = FilePools(self._place_of, limit_s)
        self.leave = self._pools.leave
        self.run = self._pools.run

    def start(self, on_change: Callable[[], None]) -> None:
        """Watch the mounts. `on_change` is called, in some thread, when some have come or gone:
        what was local may not be any more."""
        self._table.start(on_change)

    def close(self) -> None:
        """Watch the mounts no longer. Threads that hang are left to themselves."""
        self._table.close()

    @property
    def find_status(self) -> Callable[[str], os.stat_result] | None:
        """Looks at a local file at a resolved path as `os.lstat` does, and waits for nobody,
        wherever the path leads by now. None: every file must be looked at in a thread."""
        return self._table.find_status

    def is_local(self, path: str) -> bool:
        """Whether `find_status` may be used for a resolved path."""
        return self._table.find_status is not None and self._table.mounts.is_local(path)

    async def resolve(self, paths: Iterable[str]) -> list[Walk]:
        """Where paths lead, each once it is known that a file there may be held in place.

        Raises:
            PathNotAllowed, FileUnreadable, Busy: as `ArtifactRoots.resolve`.
        """
        walks = []
        for number, path in enumerate(paths):
            await take_turns(number)
            self.roots.check(path)
            walks.append(Walk(path))
        left = [(walk.path, walk) for walk in walks]
        while left:
            await self.in_each(left, self._walk)
            left = [(at, walk) for _, walk in left if (at := walk.following) is not None]
        for number, walk in enumerate(walks):
            await take_turns(number)
            self.roots.check_resolved(walk)
        return walks

    def _walk(self, walks: list[Walk], place: Place) -> None:
        """In a thread of a place: go on, as long as what is looked at is there or local."""
        mounts = self._table.mounts

        def may_look(path: str) -> bool:
            return mounts.is_local(path) or self._place_at(path) == place

        for walk in walks:
            walk.go(may_look)

    async def in_each(
        self, items: Iterable[tuple[str, T]], work: Callable[[list[T], Place], object]
    ) -> None:
        """Do some work on items, those of each place in a thread of it. The first error counts."""
        by_place: defaultdict[Place, list[tuple[str, T]]] = defaultdict(list)
        for number, (path, item) in enumerate(items):
            await take_turns(number)
            by_place[self._place_of(path)].append((path, item))
        await asyncio.gather(
            *(
                self.run(each[0][0], work, [item for _, item in each], place)
                for place, each in by_place.items()
            )
        )

    def _place_of(self, path: str) -> Place:
        return self._place_at(os.path.normpath(path))

    def _place_at(self, path: str) -> Place:
        """The place of a path without empty components and dots."""
        return self.roots.root_of(path), self._table.mounts.point_of(path)


async def take_turns(number: int) -> None:
    """Before each of many things that are done in the event loop: let others have their turn."""
    if number % SLICE == SLICE - 1:
        await asyncio.sleep(0)


def bounded_root(limit_s: float) -> Callable[[str], str]:
    """Resolves artifact roots. One that does not answer in time is taken as it is written."""
    patience = Patience(lambda root: root, limit_s)

    def resolve(root: str) -> str:
        try:
            return patience.run(root, resolved_root, root)
        except Busy as error:
            path = os.path.abspath(root)
            log.warning("what is below the artifact root %s is not served: %s", root, error)
            return path

    return resolve


def patience_for_files(limit_s: float) -> Patience:
    """Makes calls on files one after the other, and gives a mount up that does not answer."""
    return Patience(read_mounts().point_of, limit_s)
