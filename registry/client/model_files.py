"""Which files of a model directory are registered.

All that a frontend may need to prepare requests, and nothing else: every regular file directly in
the directory, symlinks followed (a Hugging Face snapshot is all symlinks), except weights,
dotfiles, images and the papers that come with a model (README, licence, use policy).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from registry.core.hashing import looking_at
from registry.core.records import shown
from registry.errors import FileUnreadable

TYPED_FILENAMES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""The files with a place of their own in a model card. They come first."""

_WEIGHTS = (
    ".bin",
    ".ckpt",
    ".ckpt.index",
    ".engine",
    ".ggml",
    ".gguf",
    ".h5",
    ".msgpack",
    ".nemo",
    ".npz",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".pb",
    ".pt",
    ".pth",
    ".safetensors",
    ".tflite",
)
_IMAGES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".ico",
    ".jpeg",
    ".jpg",
    ".png",
    ".svg",
    ".tif",
    ".tiff",
    ".webp",
)
_is_paper = re.compile(r"(readme|licen[cs]e|copying|use_policy)([^a-z0-9].*)?").fullmatch


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file to register. `path` is absolute, and may be a symlink."""

    filename: str
    path: Path
    size: int


def harvest(directory: Path) -> list[ModelFile]:
    """The files of a model directory to register: those with a typed place first, then by name.

    Raises:
        FileUnreadable: it is not a directory, cannot be read, or has no such file.
    """
    found = [
        ModelFile(name, directory.absolute() / name, status.st_size)
        for name, status in _entries(directory)
        if status is not None and stat.S_ISREG(status.st_mode) and _is_metadata(name)
    ]
    if not found:
        raise FileUnreadable(
            f"{shown(str(directory))} has no metadata file to register, such as config.json or "
            "tokenizer.json. Give the directory that holds a model's files."
        )
    return sorted(found, key=_rank)


def find_broken_links(directory: Path) -> list[str]:
    """Names that would be registered if their symlinks did not lead nowhere.

    In a Hugging Face cache they are files whose download was broken off.

    Raises:
        FileUnreadable: it is not a directory, or cannot be read.
    """
    entries = _entries(directory)
    return sorted(name for name, status in entries if status is None and _is_metadata(name))


def _entries(directory: Path) -> list[tuple[str, os.stat_result | None]]:
    """Every name in a directory with what it stands for; None for a symlink to nothing."""
    try:
        with looking_at(str(directory)):
            names = os.listdir(directory)
    except FileUnreadable as error:
        reason = error.__cause__
        why = reason.strerror if isinstance(reason, OSError) else reason
        raise FileUnreadable(
            f"{shown(str(directory))} cannot be listed: {why}. Give the directory "
            "that holds a model's files."
        ) from error
    return [(name, _find_status(directory / name)) for name in names]


def _find_status(path: Path) -> os.stat_result | None:
    try:
        with looking_at(str(path)):
            return path.stat()
    except FileUnreadable:
        return None


def _is_metadata(filename: str) -> bool:
    name = filename.lower()
    return not (name.startswith(".") or name.endswith(_WEIGHTS + _IMAGES) or _is_paper(name))


def _rank(file: ModelFile) -> tuple[int, str]:
    if file.filename in TYPED_FILENAMES:
        return TYPED_FILENAMES.index(file.filename), ""
    return len(TYPED_FILENAMES), file.filename
