"""Which files of a model directory are registered."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.client.attach import hash_files
from registry.client.model_files import harvest
from registry.discovery.cards import TYPED_FILENAMES
from registry.errors import FileUnreadable
from tests.support import MODEL

REGISTERED = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "tokenizer_config.json": b"{ }",
    "chat_template.jinja": b"{{ x }}",
    "generation_config.json": b"{}\n",
    "Tokens ünd.txt": b"t",
    "added_tokens.json": b"",
    "merges.txt": b"m",
    "model.safetensors.index.json": b"i",
    "modeling_tiny.py": b"p",
    "tokenizer.model": b"s",
}
"""In the order in which they are harvested."""

LEFT_OUT = (
    ".gitattributes",
    ".hidden.json",
    "COPYING",
    "LICENSE",
    "LICENSE-MODEL.txt",
    "Licence.md",
    "README",
    "README.md",
    "USE_POLICY.md",
    "logo.PNG",
    "model-00001-of-00002.safetensors",
    "model.gguf",
    "model.onnx",
    "model.onnx_data",
    "photo.jpeg",
    "picture.svg",
    "pytorch_model.bin",
    "readme_zh.md",
    "tf_model.h5",
    "weights.MSGPACK",
    "x.pt",
    "y.pth",
)


def snapshot(folder: Path) -> Path:
    """A model as the Hugging Face cache lays it out: names are symlinks to content elsewhere."""
    blobs = folder / "blobs"
    model = folder / "snapshots" / "0123abcd"
    blobs.mkdir()
    model.mkdir(parents=True)
    contents = REGISTERED | dict.fromkeys(LEFT_OUT, b"not metadata")
    for number, (name, content) in enumerate(contents.items()):
        (blobs / str(number)).write_bytes(content)
        (model / name).symlink_to(Path("../../blobs") / str(number))
    return model


def test_a_snapshot_of_symlinks_gives_its_metadata_files_only(tmp_path: Path) -> None:
    model = snapshot(tmp_path)
    found = harvest(model).files
    assert [(each.filename, each.size) for each in found] == [
        (name, len(content)) for name, content in REGISTERED.items()
    ]
    assert all(each.path == model / each.filename for each in found)


def test_subdirectories_are_not_looked_into(tmp_path: Path) -> None:
    model = snapshot(tmp_path)
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    (model / "linked_directory").symlink_to(tmp_path / "blobs")
    found = harvest(model)
    assert {each.filename for each in found.files} == set(REGISTERED)
    assert found.left_out == ()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nothing": (lambda path: path.symlink_to("../../blobs/none"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "a link into a file": (lambda path: path.symlink_to("merges.txt/x"), "Not a directory"),
    "a FIFO": (fifo, "is not a regular file"),
    "a socket": (a_socket, "is not a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/null"), "is not a regular file"),
}
TYPED_ODD: dict[str, tuple[Callable[[Path], object], str]] = ODD | {
    "a directory": (lambda path: path.mkdir(), "is not a regular file"),
    "an empty file": (lambda path: path.touch(), "is empty"),
    "a link to an empty file": (lambda path: path.symlink_to("added_tokens.json"), "is empty"),
    "an unfinished download": (
        lambda path: path.with_name(path.name + ".incomplete").touch(),
        "was not downloaded to its end",
    ),
}
TYPED = (*TYPED_FILENAMES, "qwen.tiktoken")


@pytest.mark.parametrize(("make", "says"), ODD.values(), ids=ODD.keys())
def test_an_odd_file_that_no_card_has_a_place_for_is_left_out_and_named(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    model = snapshot(tmp_path)
    make(model / "odd.json")
    (model / "odd.safetensors").symlink_to("nowhere")
    found = harvest(model)
    assert {each.filename for each in found.files} == set(REGISTERED)
    [left_out] = found.left_out
    assert left_out.filename == "odd.json"
    assert says in left_out.why


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize(("make", "says"), TYPED_ODD.values(), ids=TYPED_ODD.keys())
def test_a_broken_file_that_a_card_has_a_place_for_is_an_error_that_names_it(
    tmp_path: Path, make: Callable[[Path], object], says: str, name: str
) -> None:
    model = snapshot(tmp_path)
    (model / name).unlink(missing_ok=True)
    make(model / name)
    with pytest.raises(FileUnreadable, match=f"{re.escape(name)}.*{says}.*exclude it"):
        harvest(model)
    found = harvest(model, exclude=[f"{name}*"])
    assert {each.filename for each in found.files} == set(REGISTERED) - {name}


@pytest.mark.parametrize(
    "name", [b"caf\xe9.txt", b"a\nb.json", b"a\x1b[31m.json", b"a\\b.json", "ü".encode() * 127]
)
def test_a_name_that_cannot_be_served_is_left_out_and_named(tmp_path: Path, name: bytes) -> None:
    model = snapshot(tmp_path)
    (Path(os.fsdecode(os.fsencode(model) + b"/" + name))).write_text("x")
    found = harvest(model)
    expected = [] if b"\xc3" in name else [os.fsdecode(name)]
    assert [each.filename for each in found.left_out] == expected
    assert len(found.files) == len(REGISTERED) + (not expected)


@pytest.mark.parametrize(
    "name",
    [
        *("vocab.json.incomplete", "vocab.json.part", "vocab.json.crdownload", "vocab.json.aria2"),
        "Vocab.json.INCOMPLETE",
    ],
)
def test_a_download_that_is_not_finished_is_no_file_of_the_model(tmp_path: Path, name: str) -> None:
    model = snapshot(tmp_path)
    (model / name).write_text("{")
    (model / f"tokenizer.json.{name.rpartition('.')[2]}").write_text("{")
    (model / "model.safetensors.incomplete").write_text("w")
    found = harvest(model)
    assert [each.filename for each in found.files] == list(REGISTERED)
    assert name in [each.filename for each in found.left_out]
    assert len(found.left_out) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("__0_0.distcp", "model_state.pdparams", "x.pdiparams", "x.gguf", "x.npz", "x.npy"),
        *("x.nemo", "rank0.engine", "x.plan", "x.trt", "x.tflite", "x.ot", "x.pkl", "x.pickle"),
        *("x.keras", "x.hdf5", "x.pte", "x.dduf", "x.tensors", "x.weights", "x.llamafile"),
        *("model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00002", "X.PT2"),
        *("model.safetensors.part1", "model.safetensors.0", "x.gguf.part-2", "x.bin.aa"),
        *("pytorch_model.bin.part", "model-00001-of-00002.safetensors.incomplete", "x.onnx_data"),
    ],
)
def test_weights_are_left_out_in_silence_whole_or_in_parts(tmp_path: Path, name: str) -> None:
    model = snapshot(tmp_path)
    (model / name).symlink_to("nowhere")
    found = harvest(model)
    assert len(found.files) == len(REGISTERED)
    assert found.left_out == ()


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors.index.json", "pytorch_model.bin.index.json", "params.json"),
        *("tekken.json", "tokenizer.model", "bin", "pt", "plan.txt", "weights.json", "x.bins"),
    ],
)
def test_what_only_sounds_like_weights_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert [each.filename for each in harvest(tmp_path).files] == [name]


def test_what_is_excluded_is_not_looked_at(tmp_path: Path) -> None:
    model = snapshot(tmp_path)
    os.mkfifo(model / "pipe.json")
    found = harvest(model, exclude=["pipe.*", "*.txt", "Merges*", "to[k]en*.model"])
    assert found.left_out == ()
    gone = {"Tokens ünd.txt", "merges.txt", "tokenizer.model"}
    assert {each.filename for each in found.files} == set(REGISTERED) - gone


@pytest.mark.parametrize("change", ["swapped for a FIFO", "gone", "unreadable"])
@pytest.mark.parametrize("name", ["merges.txt", "config.json"])
def test_what_happens_to_a_file_after_it_was_found(tmp_path: Path, change: str, name: str) -> None:
    model = snapshot(tmp_path)
    files = harvest(model).files
    target = model / name
    target.unlink()
    if change == "swapped for a FIFO":
        os.mkfifo(target)
    elif change == "unreadable":
        target.write_text("x")
        target.chmod(0)
        if os.access(target, os.R_OK):
            pytest.skip("root reads everything")
    if name == "config.json":
        with pytest.raises(FileUnreadable, match=r"config.json.*exclude it"):
            hash_files(files)
    else:
        hashed, left_out = hash_files(files)
        assert len(hashed) == len(files) - 1
        assert [each.filename for each in left_out] == [name]


def test_paths_are_absolute_when_the_directory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert [each.path for each in harvest(Path()).files] == [tmp_path / "config.json"]


def test_a_directory_without_metadata_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w")
    with pytest.raises(FileUnreadable, match="has no metadata file to register"):
        harvest(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileUnreadable, match="cannot be listed"):
        harvest(tmp_path / name)


@pytest.mark.skipif(not MODEL.is_dir(), reason="`make test` installs the model")
def test_a_real_model_gives_the_files_that_a_frontend_needs() -> None:
    assert [each.filename for each in harvest(MODEL).files] == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "config_sentence_transformers.json",
        "data_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ]
