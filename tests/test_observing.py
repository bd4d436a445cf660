"""Looks at files in place are put down in the order in which they were made."""

from __future__ import annotations

import asyncio
from pathlib import Path

from registry.config import Settings
from registry.core.records import Artifact, ArtifactKey, Owner, RefStatus, Registration
from registry.service.registry import Registry
from registry.store.engine import Engine
from registry.store.ops import register
from registry.store.ops.file_status import Observation
from tests.exchanges import journal
from tests.places import Place, on_both
from tests.support import checksum

pytestmark = on_both

KEY = ArtifactKey("tiny", "_base", "a.json")


def test_what_is_seen_while_a_look_is_put_down_is_put_down_behind_it(
    place: Place, database: Engine, tmp_path: Path
) -> None:
    """The file was away for a moment, and its only reader since came before that was committed."""
    file = tmp_path / "a.json"
    file.touch()

    async def scenario() -> None:
        registry = Registry(Settings(database_url=place.url), database)
        await registry.start()
        try:
            for status in (RefStatus.MISSING, RefStatus.OK, RefStatus.OK):
                registry.observations.note(Observation(1, 1, str(file), checksum(b""), status))
            while registry.observations.writing:
                await asyncio.gather(*registry.observations.writing.values())
            assert registry.observations._latest == {}
        finally:
            await registry.close()

    with database.write() as conn:
        artifact = Artifact(KEY, checksum(b""), 0, str(file))
        item = Registration(Owner("n", "c", "e", 1), (artifact,), None)
        register.register(conn, conn.now, [item])
    asyncio.run(scenario())
    told = [event["kind"] for event in journal(place, "missing", "restored")]
    assert told == ["missing", "restored"]
