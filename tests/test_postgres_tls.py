"""TLS to the server of the database: what is asked for is checked, and every connection has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from registry.core.records import ArtifactKey, Owner
from tests.postgres import WITH_TLS, Cluster
from tests.replicas import assert_sound_at, start

KEY = ArtifactKey("tiny", "_base", "config.json")
OWNER = Owner("ns", "backend", "generate", 1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(authority: trustme.CA) -> Iterator[Cluster]:
    """A server that takes registries by TLS only."""
    with Cluster(WITH_TLS) as started:
        issued = authority.issue_cert("127.0.0.1")
        key, chain = started.data / "server.key", started.data / "server.crt"
        issued.private_key_pem.write_to_path(key)
        issued.cert_chain_pems[0].write_to_path(chain)
        owner = started.data.stat()
        for each in (key, chain):
            each.chmod(0o600)
            os.chown(each, owner.st_uid, owner.st_gid)
        started.execute("ALTER SYSTEM SET ssl = on")
        rules = started.data / "pg_hba.conf"
        rule = "hostssl all registry 127.0.0.1/32 trust\nhost all registry 127.0.0.1/32 reject\n"
        rules.write_text(rule + rules.read_text())
        started.execute("SELECT pg_reload_conf()")
        yield started


def trusting(url: str, authority: trustme.CA, folder: Path) -> str:
    """The URL of somebody who believes an authority, and nobody else."""
    root = folder / "root.pem"
    authority.cert_pem.write_to_path(root)
    return f"{url}?sslmode=verify-full&sslrootcert={root}"


def test_every_connection_of_a_service_is_encrypted_and_verified(
    encrypted: Cluster, authority: trustme.CA, tmp_path: Path
) -> None:
    with encrypted.database(migrated=False) as bare:
        url = trusting(bare, authority, tmp_path)
        with start(url) as service:
            assert service.register_copies(OWNER, {KEY: b"{}"}).status_code == 200
            assert service.fetch(KEY).content == b"{}"
            assert service.client.get("/health").json()["checks"]["database"] == "ok"
            query = (
                "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                "WHERE usename = 'registry'"
            )
            assert encrypted.execute(query) == [(True,)]
        assert_sound_at(url)


def test_a_server_with_the_certificate_of_somebody_else_is_refused(
    encrypted: Cluster, tmp_path: Path
) -> None:
    with encrypted.database(migrated=False) as bare:
        url = trusting(bare, trustme.CA(), tmp_path)
        with pytest.raises(AssertionError) as failed, start(url):
            pass
    assert "certificate verify failed" in str(failed.value)


def test_a_server_that_is_called_otherwise_is_refused(
    encrypted: Cluster, authority: trustme.CA, tmp_path: Path
) -> None:
    with encrypted.database(migrated=False) as bare:
        url = trusting(bare.replace("127.0.0.1", "localhost"), authority, tmp_path)
        with pytest.raises(AssertionError) as failed, start(url):
            pass
    assert "localhost" in str(failed.value)
