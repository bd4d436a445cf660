"""The disk of the database server is full: writes are refused, nothing acknowledged is lost."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.core.records import ArtifactKey, Owner
from tests.postgres import ROLE, Cluster
from tests.replicas import assert_refused, assert_sound_at, start
from tests.support import checksum

MIB = 1 << 20
KEY = ArtifactKey("tiny", "_base", "config.json")
OWNER = Owner("ns", "backend", "generate", 1)


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[Path]:
    """A file system of 24 MiB that the server may write to."""
    with tempfile.TemporaryDirectory(prefix="pg-disk-", dir=cluster.folder) as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"this user may not mount a file system: {mounted.stderr.decode().strip()}")
        try:
            owner = cluster.data.stat()
            os.chown(folder, owner.st_uid, owner.st_gid)
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_of_the_server_refuses_writes_and_keeps_what_was_acknowledged(
    cluster: Cluster, small_disk: Path
) -> None:
    cluster.execute(f"CREATE TABLESPACE small OWNER {ROLE} LOCATION '{small_disk}'")
    cluster.execute(f"CREATE DATABASE small OWNER {ROLE} TEMPLATE template1 TABLESPACE small")
    try:
        url = cluster.url("small")
        with start(url) as service:
            assert service.register_copies(OWNER, {KEY: b"{}"}).status_code == 200
            contents = [os.urandom(MIB) for _ in range(24)]
            answers = [service.upload(each) for each in contents]
            kept = [answer.status_code == 201 for answer in answers]
            assert any(kept)
            refused = kept.index(False)
            assert_refused(answers[refused], "the disk of the server is full")
            assert service.fetch(KEY).content == b"{}"
            for content, was_kept in zip(contents, kept, strict=True):
                found = service.client.head(f"/v1/blobs/{checksum(content)}")
                assert found.status_code == (200 if was_kept else 404)
            subprocess.run(["mount", "-o", "remount,size=128m", small_disk], check=True)
            assert service.upload(contents[refused]).status_code == 201
        assert_sound_at(url)
    finally:
        cluster.drop_database(cluster.url("small"))
        cluster.execute("DROP TABLESPACE small")
