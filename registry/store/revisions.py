"""The revisions in `migrations/`: which there are, and running them through Alembic."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.errors import DatabaseRefused, Invalid

if TYPE_CHECKING:
    from alembic.config import Config

Direction = Literal["upgrade", "downgrade"]

_alembic = threading.Lock()  # Alembic keeps the running environment in a global.


@dataclass(frozen=True, slots=True)
class Revision:
    """A step in the history of the schema."""

    revision: str
    down_revision: str | None
    title: str


def history() -> list[Revision]:
    """Every revision that this program knows, the oldest first."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    revisions = [
        Revision(each.revision, each.down_revision, each.doc.rstrip("."))  # type: ignore[arg-type]
        for each in script.walk_revisions()
    ]
    return revisions[::-1]


def check_revision(revision: str) -> None:
    """Raise Invalid for a revision that this program does not know."""
    known = [each.revision for each in history()]
    if revision not in known:
        raise Invalid(
            f"There is no schema revision {revision!r}; there are {', '.join(known)} and head."
        )


def run_alembic(direction: Direction, revision: str, **attributes: object) -> None:
    """Run the revisions on a database; `migrations/env.py` says what the attributes are.

    Raises:
        CommandError: Alembic's, or a refusal of env.py's.
    """
    from alembic import command

    config = _config()
    config.attributes.update(attributes)
    with _alembic:
        getattr(command, direction)(config, revision)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrations_directory() -> Path:
    """Where the revisions are: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "migrations", package.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise DatabaseRefused(
        f"The migrations are neither in {package} nor beside it. Install metadata-registry again."
    )
