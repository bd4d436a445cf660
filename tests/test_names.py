"""Names of owners: what is remembered of them, and what is not."""

from __future__ import annotations

import pytest

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
