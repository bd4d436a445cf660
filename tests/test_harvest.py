"""Which files of a model directory are registered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.client.model_files import find_broken_links, harvest
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
    found = harvest(model)
    assert [(each.filename, each.size) for each in found] == [
        (name, len(content)) for name, content in REGISTERED.items()
    ]
    assert all(each.path == model / each.filename for each in found)


def test_only_regular_files_directly_in_the_directory_are_taken(tmp_path: Path) -> None:
    model = snapshot(tmp_path)
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    (model / "linked_directory").symlink_to(tmp_path / "blobs")
    (model / "dangling.json").symlink_to("../../blobs/none")
    os.mkfifo(model / "pipe.json")
    (model / "device.json").symlink_to("/dev/null")
    assert {each.filename for each in harvest(model)} == set(REGISTERED)


def test_links_to_nothing_are_found_where_metadata_should_be(tmp_path: Path) -> None:
    model = snapshot(tmp_path)
    (model / "vocab.json").symlink_to("../../blobs/none")
    (model / "loop.json").symlink_to("loop.json")
    (model / "other.safetensors").symlink_to("../../blobs/none")
    assert find_broken_links(model) == ["loop.json", "vocab.json"]


def test_paths_are_absolute_when_the_directory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert [each.path for each in harvest(Path())] == [tmp_path / "config.json"]


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
    assert [each.filename for each in harvest(MODEL)] == [
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
