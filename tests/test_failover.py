"""When the server of the database fails: callers see success, or 503 with Retry-After, and nothing
that was acknowledged is lost (S16)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from registry.core.records import ArtifactKey, Owner
from registry.store.opening import missing_rights
from registry.store.postgresql.address import conninfo_of
from registry.store.postgresql.locks import WRITE_LOCK
from tests.ports import free_port
from tests.postgres import ROLE, Cluster
from tests.replicas import (
    CONTENT,
    FIXED,
    Callers,
    assert_refused,
    assert_sound_at,
    set_fixed,
    start,
    wait_for_success,
)
from tests.silent import SilentProxy
from tests.support import Server, copied, wait_for

FIRST_SUCCESS_S = 10.0
"""After a promotion."""
ENDS_WITHIN_S = 12.0
"""Whatever a caller asks for."""
CONNECTIONS = 40
PASSWORD = "correct-horse"
WRONG_PASSWORD = "battery-staple"

OTHER = ArtifactKey("other", "_base", "config.json")


def url_of(*clusters: Cluster, database: str) -> str:
    """One database, at whichever of the servers takes writes."""
    hosts = "&".join(f"host=127.0.0.1:{each.port}" for each in clusters)
    return f"postgresql://{ROLE}@/{database}?{hosts}"


def name_of(url: str) -> str:
    return url.rsplit("/", 1)[1]


def health(server: Server) -> dict[str, str]:
    """What /health names, in bounded time."""
    began = time.monotonic()
    answer = server.client.get("/health")
    assert time.monotonic() - began < 2 * ENDS_WITHIN_S
    assert answer.status_code == 503, answer.text
    return {name: said for name, said in answer.json()["checks"].items() if said != "ok"}


def wait_until_healthy(server: Server) -> None:
    wait_for(lambda: server.client.get("/health").status_code == 200, 30)


def register(server: Server, key: ArtifactKey = OTHER, number: int = 2) -> Any:
    """Register what is there already for an owner."""
    owner = Owner("ns", "backend", "other", number)
    return server.register(owner, [copied(key, CONTENT)], lease_ttl_s=None)


@contextmanager
def in_bounded_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < ENDS_WITHIN_S


# The primary is gone


@pytest.mark.parametrize("end", [Cluster.kill, Cluster.freeze])
def test_when_the_primary_dies_or_hangs_callers_go_on_with_the_standby_that_was_promoted(
    end: Any,
) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(Cluster(max_connections=CONNECTIONS))
        standby = stack.enter_context(primary.standby(synchronous=True))
        database = name_of(primary.new_database())
        url = url_of(primary, standby, database=database)
        services = [stack.enter_context(start(url)) for _ in range(2)]
        set_fixed(services[0])
        with Callers([each.url for each in services]) as callers:
            callers.wait_for_more(150)
            acknowledged = len(callers.acknowledged)
            ended = time.monotonic()
            end(primary)
            standby.promote()
            promoted = time.monotonic()
            callers.wait_for_more(100)
        for methods in (["POST", "DELETE"], ["GET"]):
            took = callers.first_success_after(promoted, *methods)
            assert took < FIRST_SUCCESS_S
            print(f"{end.__name__} {methods}: {took:.2f} s after the promotion")
        print(
            f"promoted after {promoted - ended:.2f} s; {acknowledged} acknowledged before, "
            f"{len(callers.acknowledged)} in all"
        )
        callers.check(standby.url(database))
        for each in services:
            wait_until_healthy(each)


# One server for the tests that leave it as it was


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    """A server that asks one of its users for a password."""
    with Cluster(max_connections=CONNECTIONS) as started:
        started.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}' IN ROLE {ROLE}")
        rules = started.data / "pg_hba.conf"
        rule = "host all guarded 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(rule + rules.read_text())
        started.execute("SELECT pg_reload_conf()")
        yield started


@pytest.fixture(scope="module")
def standby(primary: Cluster) -> Iterator[Cluster]:
    with primary.standby() as started:
        yield started


@pytest.fixture
def url(primary: Cluster) -> Iterator[str]:
    with primary.database() as made:
        yield made
        assert_sound_at(made)


def set_standbys(primary: Cluster, names: str) -> None:
    primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    primary.execute("SELECT pg_reload_conf()")


def test_a_write_without_its_synchronous_standby_ends_as_not_confirmed_and_frees_the_lock(
    primary: Cluster, standby: Cluster, url: str
) -> None:
    with start(url) as service:
        set_fixed(service)
        standby.freeze()
        try:
            set_standbys(primary, "*")
            with in_bounded_time():
                assert_refused(register(service), "did not confirm", "may have been written or not")
            assert "did not confirm" in health(service)["database"]
            assert service.fetch(FIXED).content == CONTENT
            set_standbys(primary, "")
            assert register(service).status_code == 200
            with primary.connected(name_of(url)) as connection:
                query = f"SELECT pg_try_advisory_lock({WRITE_LOCK})"
                wait_for(lambda: connection.execute(query).fetchone() == (True,), 10)
            wait_until_healthy(service)
        finally:
            set_standbys(primary, "")
            standby.thaw()


# The network is gone, and nobody is told


def through(proxy: SilentProxy, url: str) -> str:
    return f"postgresql://{ROLE}@127.0.0.1:{proxy.port}/{name_of(url)}"


def test_when_the_network_goes_silent_reads_and_writes_end_in_bounded_time(
    primary: Cluster, url: str
) -> None:
    with SilentProxy(primary.port) as proxy, start(through(proxy, url)) as service:
        set_fixed(service)
        assert service.fetch(FIXED).content == CONTENT
        proxy.silence(newcomers=True)
        with in_bounded_time():
            assert_refused(service.fetch(FIXED), "cannot be used")
        with in_bounded_time():
            assert_refused(register(service), "cannot be used")
        assert {"database", "schema"} <= set(health(service))
        proxy.pass_newcomers()
        wait_for_success(lambda: service.fetch(FIXED), FIRST_SUCCESS_S)
        wait_for_success(lambda: register(service), FIRST_SUCCESS_S)
        wait_until_healthy(service)


def test_when_only_the_connections_that_were_open_go_silent_new_ones_take_their_place(
    primary: Cluster, url: str
) -> None:
    """As when a firewall forgets them."""
    with SilentProxy(primary.port) as proxy, start(through(proxy, url)) as service:
        set_fixed(service)
        assert service.fetch(FIXED).content == CONTENT
        proxy.silence(newcomers=False)
        with in_bounded_time():
            wait_for_success(lambda: service.fetch(FIXED), FIRST_SUCCESS_S)
        with in_bounded_time():
            wait_for_success(lambda: register(service), FIRST_SUCCESS_S)
        wait_until_healthy(service)


def test_an_answer_to_a_commit_that_is_lost_on_the_way_is_told_as_not_confirmed(
    primary: Cluster, url: str
) -> None:
    with SilentProxy(primary.port) as proxy, start(through(proxy, url)) as service:
        set_fixed(service)
        register(service)
        proxy.silent_after = (b"unheard", b"COMMIT")
        key = ArtifactKey("unheard", "_base", "config.json")
        with in_bounded_time():
            answer = register(service, key, 3)
        assert proxy.met.is_set()
        assert_refused(answer, "did not confirm", "repeat it")
        again = register(service, key, 3)
        assert again.json()["artifacts"][0]["outcome"] == "unchanged"


# The server is there, and cannot be used


def test_without_a_free_connection_callers_are_told_so_and_go_on_as_soon_as_there_is_one(
    primary: Cluster, url: str
) -> None:
    with start(url) as service, ExitStack() as taken:
        set_fixed(service)
        conninfo = primary.conninfo("postgres")
        take_all(conninfo, taken)
        cut_off(primary, url)
        take_all(conninfo, taken)
        assert_refused(service.fetch(FIXED), "connection slots")
        assert_refused(register(service), "connection slots")
        found = health(service)
        assert "connection slots" in found["database"]
        assert "connection slots" in found["schema"]
        assert "connection slots" in refused(url)
        taken.close()
        wait_for_success(lambda: service.fetch(FIXED), FIRST_SUCCESS_S)
        wait_for_success(lambda: register(service), FIRST_SUCCESS_S)
        wait_until_healthy(service)


def take_all(conninfo: str, taken: ExitStack) -> None:
    """Take every connection that there is."""
    with suppress(psycopg.OperationalError):
        while True:
            taken.enter_context(closing(psycopg.connect(conninfo)))


def cut_off(primary: Cluster, url: str) -> None:
    """End every connection to a database."""
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
    primary.execute(query, name_of(url))


def refused(url: str) -> str:
    """What a service says that does not start."""
    with pytest.raises(AssertionError) as failed, start(url):
        pass
    return str(failed.value)


def test_a_standby_by_mistake_is_refused_at_the_start(
    primary: Cluster, standby: Cluster, url: str
) -> None:
    there = standby.url(name_of(url))
    wait_for(lambda: is_migrated(standby, url))
    said = refused(there)
    assert "it is a standby" in said
    assert "A:5432,B:5432" in said
    assert "Traceback" not in said


def test_what_an_administrator_changed_is_told_by_calls_and_by_health_and_never_as_our_fault(
    primary: Cluster, url: str
) -> None:
    with (
        start(url) as service,
        psycopg.connect(conninfo_of(url), autocommit=True) as connection,
    ):
        set_fixed(service)
        change = connection.execute
        change("ALTER TABLE entries RENAME COLUMN size TO bytes")
        assert_refused(register(service), "a column is missing")
        wait_for(lambda: service.client.get("/health").status_code == 503)
        assert "db check" in str(health(service))
        change("ALTER TABLE entries RENAME COLUMN bytes TO size")
        change("ALTER VIEW leaks RENAME TO drips")
        wait_for(lambda: service.client.get("/health").status_code == 503)
        assert "db upgrade" in str(health(service))
        change("ALTER VIEW drips RENAME TO leaks")
        wait_until_healthy(service)
        change(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'not on Fridays'; END $$"
        )
        change(
            "CREATE TRIGGER refuse BEFORE INSERT ON owners FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        assert_refused(register(service, number=77), "not on Fridays")
        change("DROP TRIGGER refuse ON owners")
        change("DROP FUNCTION refuse")
        change("ALTER TABLE owners ADD CONSTRAINT theirs CHECK (namespace = 'x') NOT VALID")
        assert_refused(register(service, number=78), "theirs")
        change("ALTER TABLE owners DROP CONSTRAINT theirs")
        assert register(service, number=79).status_code == 200
        assert "Traceback" not in service.log


def test_a_table_that_somebody_locked_keeps_nobody_waiting_for_long(
    primary: Cluster, url: str
) -> None:
    with start(url) as service, psycopg.connect(conninfo_of(url)) as connection:
        set_fixed(service)
        connection.execute("LOCK TABLE entries")
        with in_bounded_time():
            assert_refused(register(service), "a lock of a table")
        with in_bounded_time():
            assert_refused(service.client.get("/v1/models"), "a lock of a table")
        with in_bounded_time():
            assert_refused(service.fetch(FIXED))
        connection.rollback()
        wait_until_healthy(service)
        assert register(service).status_code == 200


def test_the_rights_that_a_user_lacks_are_named_by_doctor(primary: Cluster, url: str) -> None:
    name = name_of(url)
    primary.execute("CREATE ROLE looker LOGIN")
    try:
        with psycopg.connect(conninfo_of(url), autocommit=True) as connection:
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker")
        said = missing_rights(primary.url(name).replace(f"//{ROLE}", "//looker"))
        assert said is not None
        assert "looker may not read and write" in said
        assert "owners" in said
        assert "events" in said
        assert missing_rights(url) is None
    finally:
        with primary.connected(name) as administrator:
            administrator.execute("DROP OWNED BY looker")
        primary.execute("DROP ROLE looker")


def test_a_database_that_only_pretends_to_lock_is_refused_at_the_start(
    primary: Cluster, url: str
) -> None:
    """As some engines do that speak PostgreSQL's protocol."""
    pretended = "public.pg_try_advisory_xact_lock(bigint)"
    name = name_of(url)
    with psycopg.connect(conninfo_of(url), autocommit=True) as connection:
        connection.execute(
            f"CREATE FUNCTION {pretended} RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
        connection.execute(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
        try:
            said = refused(url)
        finally:
            connection.execute(f'ALTER DATABASE "{name}" RESET search_path')
            connection.execute(f"DROP FUNCTION {pretended}")
    assert "The service cannot start: The locks of this database keep nobody out" in said
    assert "Traceback" not in said


def is_migrated(standby: Cluster, url: str) -> bool:
    try:
        with standby.connected(name_of(url)) as connection:
            return connection.execute("SELECT to_regclass('owners')").fetchone() != (None,)
    except psycopg.OperationalError:
        return False


def test_a_server_that_is_set_to_read_only_is_told_and_used_again_afterwards(
    primary: Cluster, url: str
) -> None:
    """As managed services do whose disk is full."""
    with start(url) as service:
        set_fixed(service)
        try:
            primary.execute(f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
            cut_off(primary, url)
            assert_refused(register(service), "takes no writes")
            assert "takes no writes" in health(service)["database"]
        finally:
            primary.execute(f"ALTER DATABASE {name_of(url)} RESET default_transaction_read_only")
        wait_for_success(lambda: register(service), FIRST_SUCCESS_S)
        wait_for_success(lambda: service.fetch(FIXED), FIRST_SUCCESS_S)


def test_a_wrong_password_is_told_and_shown_nowhere(primary: Cluster, url: str) -> None:
    def as_guarded(password: str) -> str:
        return url.replace(f"{ROLE}@", f"guarded:{password}@")

    said = refused(as_guarded(WRONG_PASSWORD))
    assert "password authentication failed" in said
    assert WRONG_PASSWORD not in said
    with start(as_guarded(PASSWORD)) as service:
        set_fixed(service)
        try:
            primary.execute("ALTER ROLE guarded PASSWORD 'changed'")
            cut_off(primary, url)
            answers = [service.fetch(FIXED), register(service)]
            found = health(service)
        finally:
            primary.execute(f"ALTER ROLE guarded PASSWORD '{PASSWORD}'")
        for answer in answers:
            assert_refused(answer, "password authentication failed")
            assert PASSWORD not in answer.text
        assert "password authentication failed" in found["database"]
        assert PASSWORD not in str(found)
        wait_for_success(lambda: register(service), FIRST_SUCCESS_S)
    assert PASSWORD not in service.log


# Poolers


@contextmanager
def pgbouncer(primary: Cluster, folder: Path, mode: str) -> Iterator[int]:
    """PgBouncer before a server; its port."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer: it is the Debian package of that name")
    port = free_port()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={primary.port} user={ROLE}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\n"
    )
    settings.chmod(0o644)
    user: dict[str, Any] = (
        {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    )
    process = subprocess.Popen(
        [program, settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user
    )
    try:
        wait_for(lambda: answers(port, process))
        yield port
    finally:
        process.kill()
        process.wait()


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        psycopg.connect(f"host=127.0.0.1 port={port} user={ROLE} dbname=postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_before_the_server_is_refused_and_nothing_is_written(
    primary: Cluster, mode: str
) -> None:
    with (
        primary.database(migrated=False) as empty,
        tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder,
    ):
        os.chmod(folder, 0o755)
        with pgbouncer(primary, Path(folder), mode) as port:
            said = refused(f"postgresql://{ROLE}@127.0.0.1:{port}/{name_of(empty)}")
        assert "connection pooler" in said
        assert "address of the server itself" in said
        with primary.connected(name_of(empty)) as connection:
            assert connection.execute("SELECT to_regclass('owners')").fetchone() == (None,)
