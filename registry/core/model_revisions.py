"""Two revisions of one model side by side (S17): where the second is registered.

A manifest whose base slug is taken by other content goes under a slug of its own, which its files
make: the same files are the same revision, whoever registers them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from registry.core.checks import SLUG_MAX
from registry.core.hashing import checksum_of
from registry.core.text import shown
from registry.errors import Invalid

DIGITS = 8


class OnConflict(StrEnum):
    """What becomes of a manifest when another owner holds one of its keys with other content."""

    REFUSE = "refuse"
    """All of it is refused (S2)."""
    REVISION = "revision"
    """All of it is registered as a revision of the model (S17)."""

    @classmethod
    def of(cls, value: OnConflict | str) -> OnConflict:
        """Raises: Invalid: it is neither."""
        try:
            return cls(value)
        except ValueError:
            raise Invalid(
                f"on_conflict is {shown(value)}; it must be {' or '.join(cls)}."
            ) from None


def revision_slug(base_slug: str, files: Iterable[tuple[str, str]]) -> str:
    """The slug of a revision: the base slug, cut if it is long, and eight digits of a digest.

    Args:
        files: (filename, checksum) of every artifact of the manifest.
    """
    lines = sorted(f"{filename}\0{checksum}\n".encode() for filename, checksum in files)
    digest = checksum_of(b"".join(lines)).removeprefix("blake3:")[:DIGITS]
    return f"{base_slug[: SLUG_MAX - DIGITS - 1]}-{digest}"


def check_one_slug(slugs: Iterable[str]) -> None:
    """Raise Invalid for a manifest that cannot be a revision, as it is not of one model."""
    found = sorted(set(slugs))
    if len(found) > 1:
        raise Invalid(
            f"The manifest names the slugs {found[0]} and {found[1]}; one that may become a "
            "revision must be all of one slug. Register each model by itself."
        )
