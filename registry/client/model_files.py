"""Which files of a model directory are registered.

All that a frontend may need to prepare requests, and nothing else: every regular file directly in
the directory, symlinks followed (a Hugging Face snapshot is all symlinks), except weights,
dotfiles, images and the papers that come with a model (README, licence, use policy).

What is odd is not what is absent. A file with a place of its own in a model card must be whole, or
there is no card: a model without its tokenizer is another one. Any other file that cannot be
registered is left out, and named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from registry.core.checks import check_filename
from registry.core.hashing import looking_at
from registry.core.regular import shown_path
from registry.core.text import shown
from registry.discovery.cards import TYPED_FILENAMES, is_typed
from registry.errors import FileUnreadable, Invalid

# Endings of weights, whole or in parts. An index of weights ends in .json and is metadata.
_WEIGHTS = (
    *("bin", "caffemodel", "ckpt", "dduf", "distcp", "engine", "gguf", "ggml", "h5", "hdf5"),
    *(
        "joblib",
        "keras",
        "litertlm",
        "llamafile",
        "mar",
        "mlmodel",
        "mnn",
        "msgpack",
        "nemo",
        "npy",
    ),
    *(
        "npz",
        "onnx",
        "onnx_data",
        "ot",
        "params",
        "pb",
        "pdiparams",
        "pdmodel",
        "pdopt",
        "pdparams",
    ),
    *(
        "pickle",
        "pkl",
        "plan",
        "pt",
        "pt2",
        "pte",
        "pth",
        "ptl",
        "rten",
        "safetensors",
        "t7",
        "task",
    ),
    *("tensors", "tflite", "trt", "weights"),
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
_part = r"\.(index|meta|data-\d+-of-\d+|part[-_.]?\d*|\d+|a[a-z])"
_is_weights = re.compile(rf".*\.({'|'.join(_WEIGHTS)})({_part})?", re.DOTALL).fullmatch
_is_paper = re.compile(r"(readme|licen[cs]e|copying|use_policy)([^a-z0-9].*)?").fullmatch
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
"""Endings of downloads that are under way, or were broken off."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file to register. `path` is absolute, and may be a symlink."""

    filename: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that would be registered if it were not odd, and what is odd about it."""

    filename: str
    why: str


@dataclass(frozen=True, slots=True)
class Harvest:
    """The files of a model directory to register, and those that cannot be."""

    files: tuple[ModelFile, ...]
    left_out: tuple[LeftOut, ...]


def harvest(directory: Path, *, exclude: Sequence[str] = ()) -> Harvest:
    """The files of a model directory to register: those with a typed place first, then by name.

    Args:
        exclude: patterns of names that are not looked at, like `*.distcp`.

    Raises:
        FileUnreadable: it is not a directory, cannot be read, or has no such file; or a file with
            a typed place is broken.
        Busy: it cannot be looked at now.
    """
    files: list[ModelFile] = []
    left_out: list[LeftOut] = []
    names = [name for name in _names_in(directory) if not _is_excluded(name, exclude)]
    for name in sorted(names):
        found = _look_at(directory.absolute() / name, beside=names)
        if isinstance(found, ModelFile):
            files.append(found)
        elif found is not None:
            left_out.append(LeftOut(name, found))
    if not files:
        odd = "".join(f" {shown(each.filename)} {each.why}." for each in left_out[:3])
        raise FileUnreadable(
            f"{shown_path(directory)} has no metadata file to register, such as config.json or "
            f"tokenizer.json.{odd} Give the directory that holds a model's files."
        )
    return Harvest(tuple(sorted(files, key=_rank)), tuple(left_out))


def broken(path: Path, why: str) -> FileUnreadable:
    """The error for a file that a model cannot be without."""
    return FileUnreadable(
        f"{shown_path(path)} {why}. Put the whole file there, or exclude it if the model is to be "
        "registered without it."
    )


def _look_at(path: Path, beside: Sequence[str]) -> ModelFile | str | None:
    """A file to register, what is odd about one that is not, or None for what is none."""
    filename = path.name
    whole = _find_whole(filename)
    if not _is_metadata(whole):
        return None
    if whole != filename:
        if is_typed(whole) and whole not in beside:
            raise broken(path.with_name(whole), "was not downloaded to its end")
        return "is a download that was not finished"
    try:
        with looking_at(str(path)):
            status = path.stat()
    except FileUnreadable as error:
        why = reason_of(error)
        if os.path.islink(path):
            why = f"is a link to what {why} (an interrupted download?)"
    else:
        if stat.S_ISDIR(status.st_mode) and not is_typed(filename):
            return None
        why = _find_oddity(filename, status)
        if not why:
            return ModelFile(filename, path, status.st_size)
    if is_typed(filename):
        raise broken(path, why)
    return why


def _find_oddity(filename: str, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if is_typed(filename) and status.st_size == 0:
        return "is empty"
    try:
        check_filename(filename)
    except Invalid:
        return "has a name that cannot be served"
    return ""


def reason_of(error: FileUnreadable) -> str:
    """What a file could not be read for, as a part of a sentence about the file."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return f"cannot be read: {cause.strerror}"
    return f"cannot be read: {cause or error.detail}"


def _names_in(directory: Path) -> list[str]:
    try:
        with looking_at(str(directory)):
            return os.listdir(directory)
    except FileUnreadable as error:
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) else cause
        raise FileUnreadable(
            f"{shown_path(directory)} cannot be listed: {why}. Give the directory that holds a "
            "model's files."
        ) from error


def _is_excluded(filename: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(filename, pattern) for pattern in patterns)


def _find_whole(filename: str) -> str:
    """The name that a file gets when its download ends; its own if it is none."""
    ending = next((each for each in _UNFINISHED if filename.lower().endswith(each)), "")
    return filename[: -len(ending)] if ending else filename


def _is_metadata(filename: str) -> bool:
    name = filename.lower()
    return not (
        name.startswith(".") or name.endswith(_IMAGES) or _is_weights(name) or _is_paper(name)
    )


def _rank(file: ModelFile) -> tuple[int, str]:
    if file.filename in TYPED_FILENAMES:
        return TYPED_FILENAMES.index(file.filename), ""
    return len(TYPED_FILENAMES), file.filename
