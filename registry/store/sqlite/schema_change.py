"""Around the one commit that changes a schema: a backup before it, and a sentence after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registry.errors import Refused
from registry.store.sqlite import backup as backup_module
from registry.store.sqlite.in_use import find_holders, find_id

Notify = Callable[[str], None]


class SchemaChange:
    """What is done around the one commit that changes a schema."""

    def __init__(self, path: Path, notify: Notify, *, is_for_one: bool) -> None:
        self._path = path
        self._is_for_one = is_for_one
        self.notify = notify
        self._result: str | None = None

    def before_commit(self, before: str | None, after: str | None) -> None:
        """Write a backup: other connections still see the schema as it was, and all rows."""
        path = self._path
        if before is None:
            self._result = f"Made {path} with schema revision {after}."
            return
        backup = backup_module.find_free_name(path, before)
        self.notify(
            f"Changing {path} from schema revision {before} to {after or 'none'}; "
            f"the backup is {backup.name}."
        )
        backup_module.write_backup(path, backup)
        if self._is_for_one and (holders := find_holders(find_id(str(path)))):
            backup.unlink()
            raise Refused(
                f"Another process (pid {', '.join(map(str, sorted(holders)))}) has opened {path} "
                "meanwhile, as a service that starts does. Nothing was changed. Stop it first, "
                "then do this again."
            )
        self._result = f"{path} has schema revision {after or 'none'}."

    def on_views(self) -> None:
        """The schema is as it should be, and its views were replaced."""
        self._result = f"Made the views of {self._path} anew, as this version has them."

    def after_commit(self) -> None:
        """Tell what was done."""
        if self._result is not None:
            self.notify(self._result)
