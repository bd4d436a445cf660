"""Which files may be held in place: those below the artifact roots, links followed (S13)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from registry.core.hashing import is_about_the_file, looking_at
from registry.core.regular import shown_path
from registry.core.work_progress import step
from registry.errors import FileUnreadable, PathNotAllowed, SettingsError

LINKS_MAX = 40
"""As many symlinks are followed in one path, as the kernel does."""


class Walk:
    """A path that is being resolved, component by component, as `os.path.realpath` does.

    Where nothing is there, or a link leads nowhere, the rest of the path stands for itself, and
    nothing of it is looked at.
    """

    __slots__ = ("_absent", "_links", "_rest", "at", "path", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self.at = "/"
        """What is resolved of it."""
        self._rest = path.split("/")[::-1]
        self._links = 0
        self._absent = 0
        """How many components at the end of `at` are not there."""
        self.size = 0
        """Of what is at its end, if anything is."""

    @property
    def following(self) -> str | None:
        """The path that is looked at next, or None: it is resolved."""
        while self._rest:
            name = self._rest[-1]
            if name == "..":
                self.at = self.at[: self.at.rindex("/")] or "/"
                self._absent -= self._absent > 0
            elif name not in ("", "."):
                path = f"{self.at}/{name}" if self.at != "/" else f"/{name}"
                if not self._absent:
                    return path
                self.at = path
                self._absent += 1
            self._rest.pop()
        return None

    def go(self, may_look: Callable[[str], bool]) -> None:
        """Go on until the end, or until what may not be looked at from here.

        Raises:
            FileUnreadable: it is none that a path can be.
            Busy: it cannot be looked at now.
        """
        while (path := self.following) is not None and may_look(path):
            self._rest.pop()
            with looking_at(path):
                target = self._find_target(path)
            step()
            if target is None:
                self.at = path
            else:
                self._rest += target.split("/")[::-1]
                if target.startswith("/"):
                    self.at = "/"

    def _find_target(self, path: str) -> str | None:
        """Where a link leads; None: it is none, or nothing that could be followed."""
        try:
            status = os.lstat(path)
            self.size = status.st_size
            if not stat.S_ISLNK(status.st_mode):
                return None
            if self._links < LINKS_MAX:
                target = os.readlink(path)
                self._links += 1
                return target
        except OSError as error:
            if not is_about_the_file(error):
                raise
            self.size = 0
        # Judged by where it would be: whether something is there is told below a root only.
        self._absent = 1
        return None


class ArtifactRoots:
    """The directories below which files may be held in place (S13).

    None trusts the caller with any path; an empty list allows none. `resolve_root` gives the real
    path of a root that is a directory.

    Raises:
        SettingsError: a root is not a directory.
    """

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]] | None,
        resolve_root: Callable[[str], str] | None = None,
    ) -> None:
        self.roots: tuple[str, ...] | None = None
        if roots is not None:
            resolve_root = resolve_root or resolved_root
            self.roots = tuple(resolve_root(os.fspath(root)) for root in roots)
            self._prefixes = tuple(root.rstrip("/") + "/" for root in self.roots)
            written = (os.path.abspath(os.fspath(root)).rstrip("/") + "/" for root in roots)
            self._written = tuple(zip(written, self._prefixes, strict=True))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The roots, each with a slash at its end; none where the caller is trusted."""
        return self._prefixes if self.roots is not None else ()

    def allow(self, resolved_path: str) -> bool:
        """Whether a resolved path lies below a root."""
        return self.roots is None or resolved_path.startswith(self._prefixes)

    def root_of(self, path: str) -> str | None:
        """The innermost root that a path lies below, or None."""
        if not self.roots:
            return None
        above = [prefix for prefix in self._prefixes if path.startswith(prefix)]
        return max(above, key=len, default=None)

    def check(self, path: str) -> None:
        """Raise unless a path may be resolved at all.

        Raises:
            PathNotAllowed: no root is configured.
            FileUnreadable: the path is relative.
        """
        if self.roots == ():
            raise PathNotAllowed(
                "This registry has no artifact root, so no file can be registered in place. Copy "
                "the content in, or start the service with --artifact-root."
            )
        if not os.path.isabs(path):
            raise FileUnreadable(
                f"The path {shown_path(path)} is not absolute. Give the full path."
            )

    def check_resolved(self, walk: Walk) -> None:
        """Raise unless a file where a walk led to may be held in place.

        Raises:
            PathNotAllowed: it lies outside of every root.
            FileUnreadable: its name is not UTF-8.
        """
        if not _is_text(walk.at):
            raise FileUnreadable(
                f"The path {shown_path(walk.path)} leads to a name that is not UTF-8."
            )
        if not self.allow(walk.at):
            raise PathNotAllowed(
                f"{shown_path(walk.path)} is not below an artifact root of this registry, symlinks "
                "followed. Copy the content in, or start the service with another --artifact-root."
            )

    def kept(self, walk: Walk) -> str:
        """The path to keep of one that may be held: as it was given below its root, so that it can
        be followed again; where it led, if it was not given below a root, or with `..`."""
        if ".." in walk.path.split("/") or not _is_text(walk.path):
            return walk.at
        path = os.path.normpath(walk.path)
        if self.roots is None or self.allow(path):
            return path
        for written, prefix in self._written:
            if path.startswith(written):
                return prefix + path.removeprefix(written)
        return walk.at

    def resolve(self, path: str) -> str:
        """The real path of a file that may be held in place. Looks wherever it leads.

        Raises:
            PathNotAllowed: it lies outside of every root, or no root is configured.
            FileUnreadable: the path is relative, or is none.
            Busy: it cannot be looked at now, which says nothing about the file.
        """
        return self.follow(path).at

    def follow(self, path: str) -> Walk:
        """As `resolve`, the walk to its end."""
        self.check(path)
        walk = Walk(path)
        walk.go(lambda _: True)
        self.check_resolved(walk)
        return walk


def _is_text(path: str) -> bool:
    """Whether a path can be kept as text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def resolved_root(root: str) -> str:
    """The real path of a root.

    Raises:
        SettingsError: it is not a directory.
    """
    resolved = os.path.realpath(root)
    if not os.path.isdir(resolved):
        raise SettingsError(f"The artifact root {root} is not a directory. Create it, or drop it.")
    return resolved
