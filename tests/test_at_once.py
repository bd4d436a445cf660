"""The short way of a read: what usual clients ask for is answered at the head of the request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from registry.config import Settings
from registry.core import hashing
from registry.core.records import ArtifactKey, Offer, Owner
from registry.server import file_keys
from registry.server.app import create_app
from registry.store.sqlite.migrate import prepare
from tests.support import assert_sound, checksum

COPIED, IN_PLACE = (
    ArtifactKey("copied", "_base", "a.json"),
    ArtifactKey("in-place", "_base", "a.json"),
)
CONTENT = b'{"model_type": "llama"}'
Answer = Any

CLIENTS: dict[str, list[tuple[bytes, bytes]]] = {
    "NVIDIA Dynamo": [(b"accept", b"*/*"), (b"host", b"registry:8090")],
    "curl": [(b"host", b"127.0.0.1"), (b"user-agent", b"curl/8.14.1"), (b"accept", b"*/*")],
    "Python": [
        (b"host", b"127.0.0.1"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
        (b"user-agent", b"python-httpx2/2.16"),
    ],
}
CONDITIONS = [
    (b"if-none-match", b'"x"'),
    (b"if-match", b'"x"'),
    (b"range", b"bytes=0-1"),
    (b"content-length", b"2"),
    (b"expect", b"100-continue"),
]


async def _parts(content: bytes) -> Any:
    yield content


async def answers(tmp_path: Path) -> dict[str, list[Answer]]:
    """What is answered at once to each client, first and when the content is in memory, and to one
    with each condition."""
    file = tmp_path / "a.json"
    file.write_bytes(CONTENT)
    url = f"sqlite:///{tmp_path}/registry.db"
    prepare(url)
    app = create_app(Settings(database_url=url, artifact_roots=(str(tmp_path),)))
    starlette: Any = app._app.app  # type: ignore[attr-defined]
    found: dict[str, list[Answer]] = {}
    async with starlette.router.lifespan_context(starlette) as state:
        registry = state["registry"]
        await registry.upload(checksum(CONTENT), _parts(CONTENT), None, None)
        offers = [
            Offer(COPIED, None, checksum(CONTENT), None),
            Offer(IN_PLACE, str(file), None, None),
        ]
        await registry.register(Owner("n", "c", "e", 1), offers, lease_ttl_ms=None)
        for key in (COPIED, IN_PLACE):
            target = f"/v1/metadata/{key}".encode()
            first = app.at_once(target, CLIENTS["curl"], state)
            app._paths.keep(target, file_keys.path_of(target))
            location = await registry.keys.find((key.slug, key.suffix, key.filename))
            await registry.open((key.slug, key.suffix, key.filename), location)
            found[str(key)] = [first]
            found[str(key)] += [app.at_once(target, headers, state) for headers in CLIENTS.values()]
            found[f"{key} if"] = [app.at_once(target, [each], state) for each in CONDITIONS]
        await registry.unregister_for_owner(Owner("n", "c", "e", 1))
        found["gone"] = [app.at_once(b"/v1/metadata/" + str(COPIED).encode(), [], state)]
    assert_sound(tmp_path / "registry.db")
    return found


def test_usual_clients_are_answered_at_once_and_conditions_go_the_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "IDENTITY_TRUSTED_AFTER_NS", 0)
    found = asyncio.run(answers(tmp_path))
    for key in (COPIED, IN_PLACE):
        first, *usual = found[str(key)]
        assert first is None
        assert len(usual) == len(CLIENTS)
        for answer in usual:
            assert answer is not None
            assert answer[1] == CONTENT
            assert checksum(CONTENT).encode() in answer[0]
        assert found[f"{key} if"] == [None] * len(CONDITIONS)
    assert found["gone"] == [None]
