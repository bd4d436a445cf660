"""What is remembered of what comes from outside: names of owners, and no text of any length."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import registry
from registry.core import checks
from registry.core.identity import Identity
from registry.core.records import Owner
from registry.errors import Invalid


def remembered() -> int:
    return checks._is_short_name.cache_info().currsize


@pytest.mark.parametrize("name", ["x" * 256, "n" * 1_000_000 + "€", "😀" * 1000])
def test_a_name_that_is_too_long_is_refused_and_not_remembered(name: str) -> None:
    before = remembered()
    for number in range(3):
        with pytest.raises(Invalid, match="namespace"):
            Owner(name + str(number), "backend", "generate", 7)
        with pytest.raises(Invalid, match="endpoint"):
            Identity.checked("dynamo", "backend", name + str(number), "7", None)
    assert remembered() <= before + 2  # dynamo and backend


def test_however_many_names_come_few_are_remembered() -> None:
    for number in range(5000):
        Owner(f"namespace-{number}", "backend", "generate", 7)
        with pytest.raises(Invalid):
            Owner("dynamo", f"wrong/{number}", "generate", 7)
    assert remembered() <= 1024


def test_columns_are_those_of_the_owner() -> None:
    assert Identity.checked("a", "b", "c", "7", None) == ("a", "b", "c", "7", "")
    assert Identity.checked("a", "b", "c", 2**64 - 1, "lora") == (
        "a",
        "b",
        "c",
        str(2**64 - 1),
        "lora",
    )
    for wrong in ("07", "-1", 2**64, "7.0"):
        with pytest.raises(Invalid, match="instance_id"):
            Identity.checked("a", "b", "c", wrong, None)
    with pytest.raises(Invalid, match="lora_slug"):
        Identity.checked("a", "b", "c", 7, "_base")


CACHES: dict[str, str] = {
    "client.answers._checks": "types of ours",
    "core.checks._is_short_name": "texts of at most 255 characters",
    "core.logs._second": "numbers",
    "core.times._format_second": "numbers",
    "network.environment._read_authorities": "what the configuration names",
    "network.environment._system_trust": "nothing",
    "server.pages.rendering._environment": "nothing",
    "server.pages.rendering._style": "nothing",
    "server.pages.rendering.policy": "nothing",
    "server.pages.sql.questions": "nothing",
    "store.ops.lost_roots._count_lost": "numbers",
    "store.ops.lost_roots._missing_below": "numbers",
    "store.ops.lost_roots._outside": "numbers",
    "store.postgresql.connection._statement_of": "the text of statements of ours",
    "store.reads.events._event_statements": "names of filters",
    "store.reads.queries._entries_page": "names of filters",
}
"""The functions whose results are kept, and what they are kept by. What a caller sends is none of
it, unless its length is bounded: a cache of a thousand texts of a few megabytes is all memory."""


def cached() -> Iterator[tuple[str, Any]]:
    for module in pkgutil.walk_packages(registry.__path__, "registry."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if hasattr(value, "cache_info") and value.__module__ == module.name:
                    yield f"{module.name}.{value.__qualname__}".removeprefix("registry."), value


def test_every_cache_says_what_it_is_kept_by() -> None:
    found = dict(cached())
    assert found.keys() == CACHES.keys()
    for name, kept_by in CACHES.items():
        bound = found[name].cache_info().maxsize
        assert bound is not None or kept_by in ("nothing", "types of ours"), name
