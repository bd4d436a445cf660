"""`metadata-registry sql` on PostgreSQL: what reads is answered, bounded, and nothing changes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from registry.errors import Invalid, Refused, RegistryError
from registry.store import statement_process
from registry.store.opening import run_query
from registry.store.query_result import QueryResult
from tests.postgres import Cluster
from tests.support import ROOT

ANSWERED = {
    "SELECT 1 AS a, 2 AS a": (("a", "a_2"), [(1, 2)]),
    "SELECT 100 % 7, '50%', ':x', '?'": (
        ("?column?", "?column?_2", "?column?_3", "?column?_4"),
        [(2, "50%", ":x", "?")],
    ),
    "VALUES (1::numeric, 1.5::numeric, NULL)": (
        ("column1", "column2", "column3"),
        [(1, 1.5, None)],
    ),
    "SELECT 10::numeric ^ 30 AS n": (("n",), [("1" + "0" * 30,)]),
    "/* a */ -- b\n (SELECT true AS t)": (("t",), [(True,)]),
    "SELECT '\\x00ff'::bytea AS b": (("b",), [(b"\x00\xff",)]),
    "SELECT '2026-01-02'::date AS d, '{\"a\": 1}'::jsonb AS j": (
        ("d", "j"),
        [("2026-01-02", "{'a': 1}")],
    ),
    "SELECT 1 AS a WHERE false": (("a",), []),
    "TABLE owners": None,
    "SHOW server_version": None,
    "EXPLAIN SELECT * FROM leaks": None,
}

REFUSED = {
    "DELETE FROM owners": Refused,
    "WITH x AS (DELETE FROM owners RETURNING 1) SELECT * FROM x": Refused,
    "SELECT setval('events_id_seq', 1)": Refused,
    "SELECT nextval('events_id_seq')": Refused,
    "EXPLAIN ANALYZE DELETE FROM owners": Refused,
    "SELECT pg_read_file('/etc/passwd')": Refused,
    "COPY owners TO PROGRAM 'id'": Refused,
    "SET statement_timeout = 0": Refused,
    "COMMIT": Refused,
    "SELECT 1; SELECT 2": Invalid,
    "SELECT 1/0": Invalid,
    "SELECT nothing FROM nowhere": Invalid,
    "SELECT '\0'": Invalid,
    "": Refused,
}

GREEDY = {
    "a value": "SELECT repeat('x', 900000000)",
    "a value of bytes": "SELECT decode(repeat('00', 400000000), 'hex')",
    "an array": "SELECT array_agg(g) FROM generate_series(1, 60000000) g",
    "rows": "SELECT g, repeat('x', 1000) FROM generate_series(1, 100000000) g",
    "time": "SELECT pg_sleep(60)",
    "recursion": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) FROM n",
}

ASKING = """
import resource, sys
from registry.errors import Refused
from registry.store.opening import run_query
try:
    run_query(*sys.argv[1:], timeout_s=2, max_rows=10_000_000, max_bytes=16 << 20)
except Refused:
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    print(most)
"""


def asked(url: str, query: str) -> QueryResult:
    return run_query(url, query, timeout_s=10, max_rows=1000)


@pytest.mark.parametrize("query", ANSWERED)
def test_what_reads_is_answered(postgres_url: str, query: str) -> None:
    found = asked(postgres_url, query)
    expected = ANSWERED[query]
    if expected is not None:
        assert (found.columns, found.rows, found.is_whole) == (*expected, True)
    assert json.dumps(found.rows, default=bytes.hex)


@pytest.mark.parametrize("query", REFUSED)
def test_what_does_not_read_is_refused_and_changes_nothing(
    cluster: Cluster, postgres_url: str, query: str
) -> None:
    database = postgres_url.rsplit("/", 1)[1]
    state = "SELECT (SELECT count(*) FROM owners), (SELECT last_value FROM events_id_seq)"
    with cluster.connected(database) as connection:
        before = connection.execute(state).fetchall()
        with pytest.raises(REFUSED[query]):
            asked(postgres_url, query)
        assert connection.execute(state).fetchall() == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT lo_create(0)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        'SELECT "pg_cancel_backend" /**/ (1)',
        "SELECT PG_Advisory_Lock(1297237319), pg_sleep(60)",
        "WITH a AS (SELECT pg_try_advisory_xact_lock(1)) TABLE a",
        "SELECT set_config('jit', 'off', false)",
        "SELECT query_to_xml('SELECT lo_create(0)', true, true, '')",
        "SELECT pg_catalog.pg_notify('a', 'b')",
        "EXPLAIN ANALYZE SELECT lo_create(0)",
        'SELECT U&"lo\\005fcreate"(0)',
    ],
)
def test_a_function_that_may_do_more_than_read_is_not_run(postgres_url: str, query: str) -> None:
    with pytest.raises(Refused, match=r"may do more than read|as they are"):
        asked(postgres_url, query)
    count = "SELECT COUNT(*) FROM pg_largeobject_metadata"
    assert list(asked(postgres_url, count).rows) == [(0,)]


def test_functions_of_time_chance_and_size_are_run(postgres_url: str) -> None:
    query = "SELECT clock_timestamp() IS NULL, random() > 2, pg_total_relation_size('events') < 0"
    assert list(asked(postgres_url, query).rows) == [(False, False, False)]


@pytest.mark.parametrize("name", GREEDY)
def test_a_statement_takes_no_more_memory_and_time_than_it_may(
    postgres_url: str, name: str
) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ASKING, postgres_url, GREEDY[name]],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert int(done.stdout) < statement_process.MEMORY_MAX_BYTES + (100 << 20)
    assert time.monotonic() - began < 60


def test_a_server_that_hangs_ends_the_statement_in_its_time() -> None:
    with Cluster() as hanging, hanging.database() as url:
        assert asked(url, "SELECT 1").rows == [(1,)]
        hanging.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(RegistryError):
                asked(url, "SELECT 1")
            assert time.monotonic() - began < 70
        finally:
            hanging.thaw()
