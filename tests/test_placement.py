"""Placing fetched files in a directory: all of them, or nothing changes there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.client import install
from registry.client.install import Placed, place
from registry.core.hashing import checksum_of
from registry.errors import ChecksumMismatch, FileUnreadable

CONTENTS = {"config.json": b"{}", "tokenizer.json": b"[1]" * 100_000, "copy.json": b"{}"}


def contents_of(directory: Path) -> dict[str, bytes]:
    """Everything in a directory, hidden files as well."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def placed(folder: Path, contents: dict[str, bytes]) -> list[Placed]:
    """Files as the cache would give them."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, content in contents.items():
        path = folder / checksum_of(content)
        path.write_bytes(content)
        files.append(Placed(name, checksum_of(content), len(content), path))
    return files


def test_a_new_directory_appears_with_all_files_and_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert contents_of(target) == CONTENTS
    assert os.listdir(tmp_path / "a") == ["b"]


def test_in_a_directory_that_exists_other_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_bytes(b"mine")
    (target / "config.json").write_bytes(b"old")
    (target / "copy.json").symlink_to("mine.txt")
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert contents_of(target) == {"mine.txt": b"mine", **CONTENTS}
    assert not (target / "copy.json").is_symlink()


def test_a_file_that_is_right_already_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes(b"{}")
    before = (target / "config.json").stat().st_ino
    place(placed(tmp_path / "cache", CONTENTS), target)
    assert (target / "config.json").stat().st_ino == before


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes(b"old")
    files = placed(tmp_path / "cache", CONTENTS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    place(files, target)
    place(files, tmp_path / "new")
    assert contents_of(target) == contents_of(tmp_path / "new") == CONTENTS
    assert all(path.stat().st_nlink == 1 for path in target.iterdir())

    files[0].path.write_bytes(b"[]")
    with pytest.raises(ChecksumMismatch):
        place(files, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_when_a_file_cannot_be_replaced_all_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, links: bool
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    before = {"config.json": b"old", "copy.json": b"older"}
    for name, content in before.items():
        (target / name).write_bytes(content)
    files = placed(tmp_path / "cache", CONTENTS)
    replaced: list[Path] = []
    replace, link = os.replace, os.link

    def fail_once(source: Path, destination: Path) -> None:
        replaced.append(destination)
        if len(replaced) == failing:
            raise OSError("disk full")
        replace(source, destination)

    def keep_no_links(source: Path, destination: Path, **kwargs: bool) -> None:
        if not links and kwargs:
            raise OSError("no links here")
        link(source, destination, **kwargs)

    monkeypatch.setattr(os, "replace", fail_once)
    monkeypatch.setattr(os, "link", keep_no_links)
    with pytest.raises(OSError, match="disk full"):
        place(files, target)
    assert contents_of(target) == before


def test_a_directory_in_the_way_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(FileUnreadable, match="is a directory"):
        place(placed(tmp_path / "cache", CONTENTS), target)
    assert os.listdir(target) == ["tokenizer.json"]


def test_an_interrupted_staging_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = placed(tmp_path / "cache", CONTENTS)

    def interrupt(directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "sync_directory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        place(files, tmp_path / "new")
    assert os.listdir(tmp_path) == ["cache"]
